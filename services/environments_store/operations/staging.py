"""The rows of an import beside the database until all are there: a file of SQLite has one writer at a time, and reading
lines takes far longer than storing what they mean."""

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import anyio
import anyio.to_thread

from broker.errors import MoleculerError
from services.environments_store.database.base import Database, Queries
from services.environments_store.defaults import OperationLimits
from services.environments_store.operations.line_files import Batch
from services.environments_store.queries.transfer import StagedRow, Staging, StoredRow

__all__ = ["Stage", "staged"]

logger = logging.getLogger("environments-store")


class Stage:
    """A staging table that is there."""

    def __init__(self, database: Database, staging: Staging) -> None:
        self._database = database
        self._staging = staging
        self._rows = 0
        self._bytes = 0

    async def add(self, batch: Batch[StoredRow]) -> None:
        """Put the rows of a batch behind the others; other writers have their turn before the next."""
        arguments = await anyio.to_thread.run_sync(self._staging.pack, batch.rows, batch.numbers)
        await self._database.execute(self._staging.add, *arguments)
        self._rows += len(batch.rows)
        self._bytes += sum(len(row.document) for row in batch.rows)

    def say_what_waits(self, limits: OperationLimits) -> None:
        """Before it begins: how long others cannot write, when that is long."""
        if self._bytes >= limits.told_import_bytes:
            logger.warning(
                "Storing %d environments (%d MB) in one transaction, so that all are there or none: until its end no"
                " other can write the SQLite file, and processes that wait for more than some seconds are answered 503."
                " Where they must not wait, import in parts of less than %d MB",
                self._rows,
                self._bytes // 1_000_000,
                limits.told_import_bytes // 1_000_000,
            )

    async def batches(self, connection: Queries, limits: OperationLimits) -> AsyncGenerator[Batch[StagedRow]]:
        """The staged rows in batches of different ids, read in the transaction that stores them."""
        last = 0
        while found := await connection.fetch(self._staging.rows, last, limits.import_rows):
            rows: dict[str, StagedRow] = {}
            for row in (StagedRow(one["n"], one["id"], one["line"]) for one in found):
                if row.id in rows:
                    break
                rows[row.id] = row
                last = row.n
            yield Batch(list(rows.values()), [row.line for row in rows.values()])


@asynccontextmanager
async def staged(database: Database, staging: Staging) -> AsyncGenerator[Stage]:
    """Make the table, and drop it at the end; what a killed process leaves is a file that its system has deleted."""
    await database.execute(staging.create)
    try:
        yield Stage(database, staging)
    finally:
        with anyio.CancelScope(shield=True), suppress(MoleculerError):
            await database.execute(staging.drop)
