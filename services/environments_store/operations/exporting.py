"""Records as NDJSON: one a line, of one snapshot of the table, in constant memory."""

import logging
from collections.abc import AsyncGenerator
from typing import Literal

import msgspec

from services.environments_store.database.base import Database, Row
from services.environments_store.defaults import OperationLimits, StoreLimits
from services.environments_store.model import read_row
from services.environments_store.operations.lines import export_line
from services.environments_store.queries.transfer import choose_transfer
from services.environments_store.records import Records
from services.environments_store.shape import TableShape

__all__ = ["Export", "Selection"]

Selection = Literal["live", "deleted", "all"]


class Export:
    """One export. `exported` and `damaged` count up while it runs; a damaged row, which has no readable document, is
    named in the log and has null for it."""

    def __init__(
        self,
        database: Database,
        shape: TableShape,
        logger: logging.Logger,
        *,
        limits: OperationLimits | None = None,
        store_limits: StoreLimits | None = None,
    ) -> None:
        self._database = database
        self._shape = shape
        self._logger = logger
        self._limits = limits or OperationLimits()
        # No hash is needed twice: remembering them would only cost memory.
        forgetful = msgspec.structs.replace(store_limits or StoreLimits(), hash_entries=1)
        self._records = Records(forgetful, logger)
        self.exported = 0
        self.damaged = 0

    async def chunks(self, selection: Selection) -> AsyncGenerator[bytes]:
        """Whole lines, many at once. Raises SoftDeleteUnavailableError for the trash when there is no column."""
        query, limit = self._query(selection)
        lines: list[bytes] = []
        size = 0
        with self._shape.watched():
            async with self._database.stream(query, limit, batch=self._limits.export_batch, paced=True) as batches:
                async for rows in batches:
                    for row in rows:
                        lines.append(await self._line(row))
                        size += len(lines[-1])
                    if size >= self._limits.export_chunk_bytes:
                        yield b"".join(lines)
                        lines, size = [], 0
        if lines:
            yield b"".join(lines)

    def _query(self, selection: Selection) -> tuple[str, int | None]:
        queries = self._shape.queries("list")
        if selection == "all":
            return choose_transfer(self._shape.status).everything, queries.no_limit
        if selection == "live":
            return queries.listing.first, queries.no_limit
        queries, soft_delete = self._shape.soft_delete()
        return soft_delete.listing.first, queries.no_limit

    async def _line(self, row: Row) -> bytes:
        environment = read_row(row)
        try:
            line = export_line(environment, await self._records.hash(environment))
        except ValueError as error:
            self.damaged += 1
            self._logger.warning("The environment '%s' is damaged and exported without document: %s", row["id"], error)
            line = export_line(environment._replace(document=None), None)
        self.exported += 1
        return line
