"""What the command line does with a database beside serving it."""

import logging

from services.environments_store.database.connect import open_database
from services.environments_store.database.location import read_location
from services.environments_store.errors import DatabaseError
from services.environments_store.schema.check import check
from services.environments_store.schema.sql import script
from services.environments_store.schema.status import SchemaStatus
from services.environments_store.store import Store

__all__ = ["count", "migration_script"]


def migration_script(url: str) -> str:
    """The migration as SQL for a DBA, in the dialect of the URL. Does not connect."""
    return script(read_location(url).dialect)


async def count(url: str, recent_days: int, logger: logging.Logger) -> dict[str, int]:
    """The counts of the `stats` action, read by this process. Changes nothing, the schema included."""
    location = read_location(url)
    report = await check(url)
    done = {step.name for step in report.steps if step.state == "done"}
    if "table" not in done:
        raise DatabaseError(f"There is no table '{report.table}' in {location.label}.")
    # Connections of the service are in UTC, so that the guide's TIMESTAMP compares like TIMESTAMPTZ.
    status = SchemaStatus(state="ready", dialect=report.dialect, soft_delete="column" in done)
    database = open_database(url if location.path is None or location.read_only else f"{url}?mode=ro")
    await database.open()
    try:
        store = Store(database, lambda: status, report_missing_column=lambda: None, logger=logger)
        return await store.stats(recent_days)
    finally:
        await database.close()
