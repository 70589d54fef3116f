"""A temporary staging table for the rows of an import: SQLite has a single writer, and parsing lines takes far longer
than copying rows."""

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
    """An existing staging table."""

    def __init__(self, database: Database, staging: Staging) -> None:
        self._database = database
        self._staging = staging
        self._rows = 0
        self._bytes = 0

    async def add(self, batch: Batch[StoredRow]) -> None:
        """Append a batch; other writers may write before the next one."""
        arguments = await anyio.to_thread.run_sync(self._staging.pack, batch.rows, batch.numbers)
        await self._database.execute(self._staging.add, *arguments)
        self._rows += len(batch.rows)
        self._bytes += sum(len(row.document) for row in batch.rows)

    def warn_of_long_lock(self, limits: OperationLimits) -> None:
        """Log a warning when storing the rows will block other writers for long."""
        if self._bytes >= limits.told_import_bytes:
            logger.warning(
                "Storing %d environments (%d MB) in one transaction. Until it commits, no other process can write to"
                " the SQLite file, and writes that wait for more than a few seconds fail with 503. To keep it short,"
                " import in parts of less than %d MB",
                self._rows,
                self._bytes // 1_000_000,
                limits.told_import_bytes // 1_000_000,
            )

    async def batches(self, connection: Queries, limits: OperationLimits) -> AsyncGenerator[Batch[StagedRow]]:
        """The staged rows in batches of distinct ids, read in the transaction that stores them."""
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
    """Create the table and drop it at the end. It is temporary: SQLite removes it when the process is killed."""
    await database.execute(staging.create)
    try:
        yield Stage(database, staging)
    finally:
        with anyio.CancelScope(shield=True), suppress(MoleculerError):
            await database.execute(staging.drop)
