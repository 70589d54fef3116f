"""Export as NDJSON, one record a line, from one snapshot, with a few small documents or one large one in memory."""

import logging
from collections.abc import AsyncGenerator, Iterator
from typing import Literal

import msgspec

from services.environments_store.database.base import Database, Row
from services.environments_store.defaults import OperationLimits, StoreLimits
from services.environments_store.document import away_when_large
from services.environments_store.model import read_row
from services.environments_store.operations.lines import export_pieces, layout_of
from services.environments_store.queries import Queries
from services.environments_store.queries.transfer import choose_transfer
from services.environments_store.records import Records
from services.environments_store.shape import TableShape

__all__ = ["Export", "Selection"]

Selection = Literal["live", "deleted", "all"]


class Export:
    """One export, which counts the records as it goes. `damaged` rows have no readable document: they are exported
    with null for it, and named in the log."""

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
        # No hash is needed twice, so none is cached.
        self._store_limits = msgspec.structs.replace(store_limits or StoreLimits(), hash_entries=0)
        self._records = Records(self._store_limits, logger)
        self.exported = 0
        self.damaged = 0

    async def chunks(self, selection: Selection) -> AsyncGenerator[bytes]:
        """The lines in chunks of bounded size. Raises SoftDeleteUnavailableError for the trash without the column."""
        queries = self._shape.queries("list")
        query = self._query(queries, selection)
        pieces: list[bytes] = []
        size = 0
        with self._shape.watched():
            async with self._database.stream(
                query, queries.no_limit, batch=self._limits.export_batch, paced=True, documents=queries.documents
            ) as batches:
                async for rows in batches:
                    for row in rows:
                        for piece in await self._line(row):
                            pieces.append(piece)
                            size += len(piece)
                            if size >= self._limits.export_chunk_bytes:
                                yield b"".join(pieces)
                                pieces, size = [], 0
                    rows = row = ()  # free a large document before the next is fetched
        if pieces:
            yield b"".join(pieces)

    def _query(self, queries: Queries, selection: Selection) -> str:
        if selection == "all":
            return choose_transfer(self._shape.status).everything
        if selection == "live":
            return queries.listing.first
        return self._shape.soft_delete()[1].listing.first

    async def _line(self, row: Row) -> Iterator[bytes]:
        environment = read_row(row)
        hash = None
        try:
            hash = await self._records.hash(environment)
        except ValueError as error:
            self.damaged += 1
            self._logger.warning(
                "The document of environment '%s' is damaged and was exported as null: %s", row["id"], error
            )
            environment = environment._replace(document=None)
        document = environment.document
        layout = await away_when_large(lambda: layout_of(document), len(document or b""), self._store_limits)
        self.exported += 1
        return export_pieces(environment, hash, layout, self._limits.export_chunk_bytes)
