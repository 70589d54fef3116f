"""A database opened by a command: looked at first, then served by no more than the table allows."""

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import NamedTuple

from services.environments_store.database.base import Database
from services.environments_store.database.connect import open_database
from services.environments_store.database.location import Location, read_location
from services.environments_store.defaults import DatabaseSettings
from services.environments_store.errors import DatabaseError
from services.environments_store.schema.check import Seen, look
from services.environments_store.schema.inspection import Inspection
from services.environments_store.schema.names import qualified, quoted
from services.environments_store.schema.plan import obstacle_to_column, status_of
from services.environments_store.schema.sql import script
from services.environments_store.shape import TableShape
from services.environments_store.store import Store

__all__ = ["Opened", "count", "migration_script", "open_table"]

_SETTINGS = DatabaseSettings(application_name="environments-store command")


class Opened(NamedTuple):
    """The table of a database, and connections to it."""

    location: Location
    found: Inspection
    database: Database
    shape: TableShape
    store: Store

    @property
    def table(self) -> str:
        """The table as a person names it."""
        return self.found.table if self.found.dialect == "sqlite" else f"{self.found.schema}.{self.found.table}"


@asynccontextmanager
async def open_table(url: str, logger: logging.Logger, *, writes: bool) -> AsyncGenerator[Opened]:
    """Changes nothing of the schema. Raises DatabaseError when there is no table."""
    seen = await look(url)
    require_table(seen)
    location, found, _ = seen
    status = status_of(found)
    if found.row_security and not found.without_policy:
        logger.warning(
            "Row level security may hide rows of %s from role %s: what it cannot see is not counted, copied or deleted",
            qualified(found.schema, found.table),
            quoted(found.role),
        )
    # Opened to write, a SQLite file would be put into WAL mode: a command that reads leaves it as it is.
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
    """Raises DatabaseError, with the name and the place, when there is no table, or none that the role can see."""
    if seen.found.kind is None:
        obstacle = obstacle_to_column(seen.found)
        if obstacle is not None and (seen.found.no_schema or seen.found.hidden_in or seen.found.seen_in):
            raise DatabaseError(obstacle.text)
        name = seen.found.table if seen.found.dialect == "sqlite" else f"{seen.found.schema}.{seen.found.table}"
        raise DatabaseError(f"There is no table '{name}' in {seen.location.label}.")


def migration_script(url: str) -> str:
    """The migration as SQL for a DBA, in the dialect of the URL. Does not connect."""
    return script(read_location(url).dialect)


async def count(url: str, recent_days: int, logger: logging.Logger) -> dict[str, int]:
    """The counts of the `stats` action, read by this process. Changes nothing, the schema included."""
    async with open_table(url, logger, writes=False) as opened:
        return await opened.store.stats(recent_days)
