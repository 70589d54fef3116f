"""The rollback: copy the trash to a file and to a table of its own, then drop `deletedAt`.

The guide's DROP COLUMN alone makes every deleted environment live again, without a record of which ones were deleted.
"""

import logging
from datetime import UTC, datetime
from typing import Literal

import msgspec

from services.environments_store.database.base import Dialect
from services.environments_store.database.location import Location
from services.environments_store.errors import OperationError
from services.environments_store.operations.opening import open_table, require_table
from services.environments_store.schema.check import look
from services.environments_store.schema.inspection import Inspection
from services.environments_store.schema.names import COLUMN, counted, qualified, quoted

__all__ = ["RolledBack", "Survey", "Trash", "commands_to_undo", "refuse_unsafe", "roll_back", "survey"]

Trash = Literal["keep", "remove"]


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """The state before a rollback. `serving` names the nodes that would lose the column while they serve."""

    dialect: Dialect
    database: str
    table: str
    column: bool
    total: int
    deleted: int
    serving: tuple[str, ...]
    obstacle: str | None
    """Why this role may not roll back, with the remedy."""


class RolledBack(msgspec.Struct, frozen=True, kw_only=True):
    """`copy` is the table that holds the trash now; `removed` says that its rows are no longer in `environments`."""

    dialect: Dialect
    schema: str
    table: str
    copy: str
    rows: int
    removed: bool


async def survey(url: str, logger: logging.Logger) -> Survey:
    """Look at the table and change nothing. Raises DatabaseError when there is no table."""
    async with open_table(url, logger, writes=False) as opened:
        counts = await opened.store.stats(0)
    return Survey(
        dialect=opened.found.dialect,
        database=opened.location.label,
        table=opened.table,
        column=opened.found.soft_delete,
        total=counts["total"],
        deleted=counts["deleted"],
        serving=await _who_serves(url, opened.location),
        obstacle=_obstacle(opened.found),
    )


def refuse_unsafe(seen: Survey, trash: Trash | None, force: bool) -> None:
    """Raises OperationError when `trash` is not chosen, when the role may not roll back, and, unless `force`, while
    nodes serve."""
    if seen.obstacle is not None:
        raise OperationError(seen.obstacle)
    if trash is None:
        raise OperationError(
            f"Without {quoted(COLUMN)} {counted(seen.deleted, 'deleted environment', 'deleted environments')} of"
            f" {seen.table} would be live again. Choose what happens to the trash: --trash=keep leaves it in the table,"
            " live; --trash=remove deletes it from the table. Both keep a copy of it in the database and in a file."
        )
    if seen.serving and not force:
        raise OperationError(
            f"{'; '.join(seen.serving)}. Stop every node first: it would lose the column while it serves, and add it "
            "again at its next start. Pass --force to roll back all the same."
        )


def _obstacle(found: Inspection) -> str | None:
    if found.dialect == "sqlite" or not found.soft_delete:
        return None
    role, schema = quoted(found.role), quoted(found.schema)
    if found.row_security:
        return (
            f"Row level security may hide deleted environments from role {role}: they would be lost."
            f" Nothing was changed. Use a role that sees all of them, or run: ALTER ROLE {role} BYPASSRLS;"
        )
    if not found.can_alter or not found.can_index:
        return (
            f"Role {role} must own {qualified(found.schema, found.table)}, and needs CREATE on the schema for the copy:"
            f" GRANT CREATE ON SCHEMA {schema} TO {role};"
        )
    return None


async def roll_back(url: str, trash: Trash, *, force: bool, logger: logging.Logger) -> RolledBack:
    """Copy the trash and drop the column with its indexes, in one transaction.

    Raises OperationError when the table cannot be locked, or a node has started to serve (unless `force`).
    """
    seen = await look(url)
    require_table(seen)
    if not seen.found.soft_delete:
        raise OperationError(f"There is no column {quoted(COLUMN)} in {seen.location.label}: nothing to roll back.")
    if (obstacle := _obstacle(seen.found)) is not None:
        raise OperationError(obstacle)
    copy = f"{seen.found.table}_deleted_{datetime.now(UTC):%Y%m%d_%H%M%S}"
    if seen.location.path is not None:
        from services.environments_store.operations.rollback_sqlite import drop_column as drop_from_file

        rows = await drop_from_file(seen.location.path, seen.found, copy, trash == "remove", force=force)
    else:
        from services.environments_store.operations.rollback_postgres import drop_column

        rows = await drop_column(url, seen.found, copy, trash == "remove", force=force, logger=logger)
    return RolledBack(
        dialect=seen.found.dialect,
        schema=seen.found.schema,
        table=seen.found.table,
        copy=copy,
        rows=rows,
        removed=trash == "remove",
    )


def commands_to_undo(done: RolledBack, export: str) -> tuple[str, ...]:
    """The commands that restore the trash as it was, `deletedAt` included."""
    conflict = "" if done.removed else " --on-conflict replace"
    return (
        "environments-store migrate run",
        f"environments-store import '{export}'{conflict}",
        f"or instead of the import, in SQL: {_sql(done)}",
    )


def _sql(done: RolledBack) -> str:
    table, copy = (
        quoted(name) if done.dialect == "sqlite" else qualified(done.schema, name) for name in (done.table, done.copy)
    )
    columns = ("id", "environment", "environmentUuid", "timestamp", "createdAt", "updatedAt", COLUMN)
    if done.removed:
        names = ", ".join(map(quoted, columns))
        return f"INSERT INTO {table} ({names}) SELECT {names} FROM {copy};"
    date, changed = quoted(COLUMN), quoted("updatedAt")
    return (
        f'UPDATE {table} SET {date} = c.{date}, {changed} = c.{changed} FROM {copy} AS c WHERE {table}."id" = c."id";'
    )


async def _who_serves(url: str, location: Location) -> tuple[str, ...]:
    if location.path is not None:
        from services.environments_store.operations.rollback_sqlite import others_in_file

        return await others_in_file(location.path)
    from services.environments_store.operations.rollback_postgres import nodes_of

    return await nodes_of(url)
