"""The backup of a SQLite file: a compact copy of one snapshot, made while others read and write."""

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

_BUSY_S = 30.0  # a backup may wait for a writer; nobody waits for the backup


async def vacuum_into(path: Path, copy: Path) -> dict[str, int]:
    """Copy, check the copy, and count its rows. Raises OperationError; copying a live file as it lies could tear it."""
    try:
        source = await connect(path, mode="rw", busy_timeout_s=_BUSY_S)
        try:
            before = await _counts(source, path)
            await query(source, path, "VACUUM INTO $1", str(copy))
            after = await _counts(source, path)
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
    for table, count in counts.items():
        # Others may have written between the three counts.
        if not min(before[table], after[table]) <= count <= max(before[table], after[table]):
            raise OperationError(f"The backup has {count} rows of {table}, the file {after[table]}: try again.")
    return counts


async def _counts(connection: "aiosqlite.Connection", path: Path) -> dict[str, int]:
    counts = {}
    for table in (TABLE, METADATA_TABLE):
        there = await query(connection, path, "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = $1", table)
        if there:
            rows = await query(connection, path, f"SELECT count(*) FROM {quoted(table)}")
            counts[table] = int(rows[0][0])
    return counts
