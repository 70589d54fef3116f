"""A database opened for a command: the table is inspected first, then accessed as the inspection allows."""

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import NamedTuple

from services.environments_store.database.base import Database
from services.environments_store.database.connect import open_database
from services.environments_store.database.location import Location
from services.environments_store.defaults import DatabaseSettings
from services.environments_store.errors import DatabaseError
from services.environments_store.schema.check import Seen, look
from services.environments_store.schema.inspection import Inspection
from services.environments_store.schema.names import qualified, quoted
from services.environments_store.schema.plan import obstacle_to_column, status_of
from services.environments_store.shape import TableShape
from services.environments_store.store import Store

__all__ = ["Opened", "count", "open_table"]

_SETTINGS = DatabaseSettings(application_name="environments-store command")


class Opened(NamedTuple):
    """An inspected table and an open database."""

    location: Location
    found: Inspection
    database: Database
    shape: TableShape
    store: Store

    @property
    def table(self) -> str:
        """The table's name for messages."""
        return self.found.table if self.found.dialect == "sqlite" else f"{self.found.schema}.{self.found.table}"


@asynccontextmanager
async def open_table(url: str, logger: logging.Logger, *, writes: bool) -> AsyncGenerator[Opened]:
    """Open the database without changing its schema. Raises DatabaseError when there is no table."""
    seen = await look(url)
    require_table(seen)
    location, found, _ = seen
    status = status_of(found)
    if found.row_security and not found.without_policy:
        logger.warning(
            "Row level security may hide rows of %s from role %s: hidden rows are not counted, copied or deleted",
            qualified(found.schema, found.table),
            quoted(found.role),
        )
    # Opening a SQLite file for writing would switch it to WAL mode; a command that only reads must not.
    reads_only = location.path is not None and not location.read_only and not writes
    database = open_database(f"{url}?mode=ro" if reads_only else url, _SETTINGS)
    await database.open()
    try:
        shape = TableShape(lambda: status, lambda: None)
        store = Store(database, shape, logger=logger)
        yield Opened(location, found, database, shape, store)
    finally:
        await database.close()


def require_table(seen: Seen) -> None:
    """Raises DatabaseError, naming table and database, when there is no table or the role cannot see it."""
    if seen.found.kind is None:
        obstacle = obstacle_to_column(seen.found)
        if obstacle is not None and (seen.found.no_schema or seen.found.hidden_in or seen.found.seen_in):
            raise DatabaseError(obstacle.text)
        name = seen.found.table if seen.found.dialect == "sqlite" else f"{seen.found.schema}.{seen.found.table}"
        raise DatabaseError(f"There is no table '{name}' in {seen.location.label}.")


async def count(url: str, recent_days: int, logger: logging.Logger) -> dict[str, int]:
    """The counts of the `stats` action. Changes nothing."""
    async with open_table(url, logger, writes=False) as opened:
        return await opened.store.stats(recent_days)
