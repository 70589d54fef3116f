"""Take `deletedAt` away again, and keep what it said: the trash goes into a file and into a table of its own first.

The guide's DROP COLUMN alone makes every deleted environment live again, and nothing tells which ones they were.
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

__all__ = ["Outcome", "Survey", "Trash", "refuse_unsafe", "roll_back", "survey", "way_back"]

Trash = Literal["keep", "remove"]


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """What a rollback would meet. `serving` names the nodes that would lose the column while they work."""

    dialect: Dialect
    database: str
    table: str
    column: bool
    total: int
    deleted: int
    serving: tuple[str, ...]
    obstacle: str | None
    """Why this role may not do it, with what would help."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """`copy` is the table that holds the trash now; `removed`: its rows are not in `environments` any more."""

    dialect: Dialect
    schema: str
    table: str
    copy: str
    rows: int
    removed: bool

    def sql_name(self, table: str) -> str:
        """The name of one of the two tables for SQL."""
        return quoted(table) if self.dialect == "sqlite" else qualified(self.schema, table)


async def survey(url: str, logger: logging.Logger) -> Survey:
    """Look, and change nothing. Raises DatabaseError when there is no table."""
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
    """Raises OperationError when nobody said what becomes of the trash, when the role may not do it, and while nodes
    serve, unless `force`."""
    if seen.obstacle is not None:
        raise OperationError(seen.obstacle)
    if trash is None:
        raise OperationError(
            f"Without {quoted(COLUMN)} {counted(seen.deleted, 'deleted environment', 'deleted environments')} of"
            f" {seen.table} would be live again. Say what becomes of the trash: --trash=keep leaves it in the table,"
            " live; --trash=remove takes it out. Both keep a copy of it in the database and in a file."
        )
    if seen.serving and not force:
        raise OperationError(
            f"{'; '.join(seen.serving)}. Stop every node first: it would lose the column while it works, and add it "
            "again at its next start. --force goes on all the same."
        )


def _obstacle(found: Inspection) -> str | None:
    if found.dialect == "sqlite" or not found.soft_delete:
        return None
    role, schema = quoted(found.role), quoted(found.schema)
    if found.row_security:
        return (
            f"Row level security may hide deleted environments from role {role}: they would be lost."
            f" Nothing was changed. Do it as a role that sees all of them, or: ALTER ROLE {role} BYPASSRLS;"
        )
    if not found.can_alter or not found.can_index:
        return (
            f"Role {role} must own {qualified(found.schema, found.table)}, and may have to CREATE in the schema for the"
            f" copy: GRANT CREATE ON SCHEMA {schema} TO {role};"
        )
    return None


async def roll_back(url: str, trash: Trash, *, force: bool, logger: logging.Logger) -> Outcome:
    """Copy the trash, and drop the column with its indexes, in one transaction: all of it or nothing.

    Raises OperationError when the table cannot be had, or a node began to serve meanwhile (unless `force`).
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
    return Outcome(
        dialect=seen.found.dialect,
        schema=seen.found.schema,
        table=seen.found.table,
        copy=copy,
        rows=rows,
        removed=trash == "remove",
    )


def way_back(outcome: Outcome, export: str | None) -> tuple[str, ...]:
    """The commands that bring the trash back as it was, `deletedAt` included."""
    commands = ["environments-store migrate run"]
    if export is not None:
        conflict = "" if outcome.removed else " --on-conflict replace"
        commands.append(f"environments-store import '{export}'{conflict}")
    return (*commands, f"or instead of the import, in SQL: {_sql(outcome)}")


def _sql(outcome: Outcome) -> str:
    table, copy = outcome.sql_name(outcome.table), outcome.sql_name(outcome.copy)
    columns = ("id", "environment", "environmentUuid", "timestamp", "createdAt", "updatedAt", COLUMN)
    if outcome.removed:
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
