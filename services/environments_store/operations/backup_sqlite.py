"""The backup of a SQLite file: a compact copy of one snapshot, made while other processes read and write."""

from pathlib import Path
from typing import TYPE_CHECKING

from services.environments_store.database.failures import StatementFailure
from services.environments_store.database.sqlite_connection import close_quietly, connect
from services.environments_store.errors import OperationError
from services.environments_store.schema.inspect_sqlite import query
from services.environments_store.schema.names import METADATA_TABLE, TABLE, quoted

if TYPE_CHECKING:
    import aiosqlite

__all__ = ["vacuum_into"]

_OF_THE_COPY = ("SQLITE_FULL", "SQLITE_CANTOPEN", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_FSYNC", "SQLITE_IOERR_TRUNCATE")
_BUSY_S = 30.0  # a backup may wait for a writer, but no writer waits for the backup


async def vacuum_into(path: Path, copy: Path) -> dict[str, int]:
    """Copy the database (a plain copy of a live file could be torn), check the copy, and count its rows.

    Raises OperationError.
    """
    try:
        source = await connect(path, mode="rw", busy_timeout_s=_BUSY_S)
        try:
            version = await _version(source, path)
            there = await _counts(source, path)
            await _vacuum(source, path, copy)
            written = await _version(source, path) != version
        finally:
            await close_quietly(source)
        backup = await connect(copy, mode="ro", busy_timeout_s=_BUSY_S)
        try:
            problems = [str(row[0]) for row in await query(backup, copy, "PRAGMA integrity_check")]
            counts = await _counts(backup, copy)
        finally:
            await close_quietly(backup)
    except StatementFailure as failure:
        raise OperationError(f"The backup failed: {failure}.") from failure
    if problems != ["ok"]:
        raise OperationError(f"The backup is damaged, and so may be '{path}': {'; '.join(problems)}.")
    # Other processes may have added or removed rows since the first count.
    if counts.keys() != there.keys() or (counts != there and not written):
        raise OperationError(f"The backup is incomplete and was removed: it has {counts} rows, the file {there}.")
    return counts


async def _vacuum(source: "aiosqlite.Connection", path: Path, copy: Path) -> None:
    try:
        await query(source, path, "VACUUM INTO $1", str(copy))
    except StatementFailure as failure:
        if (failure.sqlstate or "").startswith(_OF_THE_COPY):
            # SQLite's own error names no file.
            raise StatementFailure(
                f"it cannot be written to the folder '{copy.parent}' ({failure.__cause__})", sqlstate=failure.sqlstate
            ) from failure
        raise


async def _version(connection: "aiosqlite.Connection", path: Path) -> int:
    """Changes with every commit of another connection."""
    return int((await query(connection, path, "PRAGMA data_version"))[0][0])


async def _counts(connection: "aiosqlite.Connection", path: Path) -> dict[str, int]:
    counts = {}
    for table in (TABLE, METADATA_TABLE):
        there = await query(connection, path, "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = $1", table)
        if there:
            rows = await query(connection, path, f"SELECT count(*) FROM {quoted(table)}")
            counts[table] = int(rows[0][0])
    return counts
