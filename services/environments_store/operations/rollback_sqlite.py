"""The rollback of a SQLite file in one transaction. Indexes are dropped first: SQLite drops no indexed column."""

import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from services.environments_store.database.failures import StatementFailure
from services.environments_store.database.sqlite_connection import close_quietly, connect
from services.environments_store.errors import OperationError
from services.environments_store.schema.guards import KEPT
from services.environments_store.schema.inspect_sqlite import query
from services.environments_store.schema.inspection import Inspection
from services.environments_store.schema.names import COLUMN, counted, quoted

if TYPE_CHECKING:
    import aiosqlite

__all__ = ["drop_column", "others_in_file"]

_BUSY_S = 5.0
_FIRST_DROPPING_VERSION = (3, 35, 0)


async def others_in_file(path: Path) -> tuple[str, ...]:
    """A description of another process that has the file open, if there is one.

    A process that has opened the file in WAL mode, as every node does, keeps a shared lock on it, and leaving WAL mode
    needs exclusive access; WAL mode is restored at once. In other modes no node has the file open.
    """
    try:
        async with _opened(path, 0.5) as connection:
            mode = (await query(connection, path, "PRAGMA journal_mode"))[0][0]
            if mode != "wal":
                return ()
            try:
                await query(connection, path, "PRAGMA journal_mode = DELETE")
            except StatementFailure as failure:
                if not (failure.sqlstate or "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
                    raise
                return (f"Another process has '{path}' open",)
            await query(connection, path, "PRAGMA journal_mode = WAL")
            return ()
    except StatementFailure as failure:
        raise OperationError(f"Cannot find out whether another process has the file open: {failure}.") from failure


async def drop_column(path: Path, found: Inspection, copy: str, remove: bool, *, force: bool) -> int:
    """Copy the trash, drop the column and its indexes, and return the number of rows in the copy."""
    if sqlite3.sqlite_version_info < _FIRST_DROPPING_VERSION:
        raise OperationError(
            f"Python's SQLite {sqlite3.sqlite_version} cannot drop a column: use a Python with SQLite 3.35 or newer."
        )
    if not force and (others := await others_in_file(path)):
        raise OperationError(f"{others[0]}: a node may have started to serve. Nothing was changed.")
    try:
        async with _opened(path, _BUSY_S) as connection:
            await query(connection, path, "BEGIN IMMEDIATE")
            rows = await _drop(connection, path, found, copy, remove)
            await query(connection, path, "COMMIT")
            return rows
    except StatementFailure as failure:
        raise OperationError(f"The rollback failed, and nothing was changed: {failure}.") from failure


async def _drop(connection: "aiosqlite.Connection", path: Path, found: Inspection, copy: str, remove: bool) -> int:
    table, column = quoted(found.table), quoted(COLUMN)
    trash = f"FROM {table} WHERE {column} IS NOT NULL"
    count = int((await query(connection, path, f"SELECT count(*) {trash}"))[0][0])
    await query(connection, path, f"CREATE TABLE {quoted(copy)} AS SELECT * {trash}")
    copied = int((await query(connection, path, f"SELECT count(*) FROM {quoted(copy)}"))[0][0])
    if copied != count:
        raise OperationError(
            f"The copy has {counted(copied, 'row', 'rows')}, but the trash {count}: nothing was changed. Try again."
        )
    for index in found.indexes:
        if index.on_column:
            await query(connection, path, f"DROP INDEX IF EXISTS {quoted(index.name)}")
    if remove:
        await query(connection, path, f"DELETE {trash}")
        if kept := int((await query(connection, path, f"SELECT count(*) {trash}"))[0][0]):
            raise OperationError(KEPT.format(kept))
    await query(connection, path, f"ALTER TABLE {table} DROP COLUMN {column}")
    return copied


@asynccontextmanager
async def _opened(path: Path, busy_timeout_s: float) -> AsyncGenerator["aiosqlite.Connection"]:
    connection = await connect(path, mode="rw", busy_timeout_s=busy_timeout_s)
    try:
        yield connection
    finally:
        await close_quietly(connection)  # which rolls an open transaction back
