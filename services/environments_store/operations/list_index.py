"""An index for pages of live environments, for tables so large that sorting them for each page takes too long.

It is not part of the guide and only built on demand, as it costs space and slows each create a little. It is built like
the guide's index: concurrently, under the lock of the migration, replacing an INVALID one.
"""

import logging
from pathlib import Path
from typing import Literal

from services.environments_store.database.failures import StatementFailure
from services.environments_store.defaults import MigrationBudgets
from services.environments_store.errors import OperationError
from services.environments_store.operations.opening import require_table
from services.environments_store.schema.check import look
from services.environments_store.schema.index import FIRST_BROKEN_VERSION, FIRST_REPAIRED_VERSION
from services.environments_store.schema.inspection import Inspection
from services.environments_store.schema.names import qualified, quoted
from services.environments_store.schema.sql import create_list_index

__all__ = ["Built", "build_list_index"]

Built = Literal["built", "there already"]


async def build_list_index(url: str, logger: logging.Logger, budgets: MigrationBudgets | None = None) -> Built:
    """Build the index unless there is one. Raises OperationError with the obstacle, DatabaseError without a table."""
    seen = await look(url)
    require_table(seen)
    found = seen.found
    if found.list_index is not None and found.list_index.valid:
        return "there already"
    if (obstacle := _obstacle(found)) is not None:
        raise OperationError(obstacle)
    try:
        if seen.location.path is not None:
            await _build_in_file(seen.location.path, found)
        else:
            await _build_on_server(url, found, budgets or MigrationBudgets(), logger)
    except StatementFailure as failure:
        raise OperationError(f"The index was not built: {failure}. You can try again at any time.") from failure
    return "built"


def _obstacle(found: Inspection) -> str | None:
    if found.kind != "r":
        return "This is not an ordinary table: create the index by hand on the tables that hold its rows."
    if not found.writable:
        return "The database is read-only: give the URL of the primary."
    if not (found.can_alter and found.can_index):
        return (
            f"Role {quoted(found.role)} must own {qualified(found.schema, found.table)} and have CREATE on its"
            f" schema. As the owner run: {create_list_index(found.dialect, found.schema, found.table)};"
        )
    if FIRST_BROKEN_VERSION <= found.version < FIRST_REPAIRED_VERSION:
        return "PostgreSQL 14.0 to 14.3 can build a corrupt index concurrently: update the server first."
    return None


async def _build_in_file(path: Path, found: Inspection) -> None:
    from services.environments_store.database.sqlite_connection import close_quietly, connect
    from services.environments_store.schema.inspect_sqlite import query

    connection = await connect(path, mode="rw", busy_timeout_s=MigrationBudgets().start_s)
    try:
        # Without statistics of the new index SQLite's planner keeps sorting. Open connections read them when they meet
        # a new schema, so both are committed together.
        await query(connection, path, "BEGIN IMMEDIATE")
        await query(connection, path, create_list_index("sqlite", found.schema, found.table))
        await query(connection, path, f"ANALYZE {quoted(found.table)}")
        await query(connection, path, "COMMIT")
    finally:
        await close_quietly(connection)


async def _build_on_server(url: str, found: Inspection, budgets: MigrationBudgets, logger: logging.Logger) -> None:
    from services.environments_store.schema.inspect_postgres import inspect
    from services.environments_store.schema.postgres_steps import (
        build_index,
        migration_lock,
        open_session,
        remove_index,
    )

    session = await open_session(url, "list-index", budgets)
    lock = migration_lock(session, url, "list-index", budgets, found)
    try:
        if not await lock.try_acquire():
            raise OperationError(
                "Another node is migrating the table. Nothing was changed: try again when it has finished."
            )
        found = await inspect(session, found.table)
        invalid = found.list_index
        if invalid is not None and invalid.valid:
            return
        if invalid is not None:
            if found.maintained:
                raise OperationError(
                    f"Another session maintains the table, perhaps building {quoted(invalid.name)}. Try again later."
                )
            logger.warning('Dropping the INVALID index "%s" of an interrupted build', invalid.name)
            await remove_index(session, found, invalid.name, budgets)
        await build_index(session, create_list_index("postgresql", found.schema, found.table), budgets)
    finally:
        await lock.release()
        await session.close()
