"""Backup tables that a killed start of the original left in a SQLite file.

The original rebuilds each table at every start, without a transaction: copy to `<table>_backup`, drop, create, copy
back, drop the backup. Killed in between, the backup may hold the only rows, and the next start would drop it first. A
backup is therefore never dropped here: it becomes the table, fills an empty one, or is kept under another name.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

from services.environments_store.database.base import Row
from services.environments_store.schema.names import METADATA_TABLE, TABLE, backup_name, quoted

__all__ = ["Fingerprint", "Run", "fingerprint", "put_back", "rename_missing"]

Run = Callable[..., Awaitable[Sequence[Row]]]
Fingerprint = tuple[object, ...]

KEYS = {TABLE: "id", METADATA_TABLE: "key"}


async def fingerprint(run: Run, table: str) -> Fingerprint | None:
    """A value that every step of a rebuild changes; None without a backup. To be read inside a write transaction, when
    no step is running."""
    copies = [backup_name(one) for one in (table, METADATA_TABLE) if await _exists(run, backup_name(one))]
    if not copies:
        return None
    tables = [name for name in (table, METADATA_TABLE, *copies) if await _exists(run, name)]
    empty = [await _is_empty(run, name) for name in tables]
    return (await run("PRAGMA schema_version"))[0][0], *tables, *empty


async def rename_missing(run: Run, table: str, backup: str) -> str | None:
    """Rename the backup to the table when the table is missing. Returns what was done, for the log."""
    if await _exists(run, table) or not await _exists(run, backup):
        return None
    await run(f"ALTER TABLE {quoted(backup)} RENAME TO {quoted(table)}")
    return f"The table {quoted(table)} was missing after an interrupted start: {quoted(backup)} was renamed to it"


async def put_back(run: Run, table: str, backup: str) -> str | None:
    """Fill an empty table from the backup, then rename the backup so that the original does not drop it."""
    if not (await _exists(run, table) and await _exists(run, backup)):
        return None
    kept = await _free_name(run, f"{backup}_kept_{datetime.now(UTC):%Y%m%d}")
    text = f"{quoted(backup)} of an interrupted start is kept as {quoted(kept)}"
    if await _is_empty(run, table) and not await _is_empty(run, backup):
        names = ", ".join(map(quoted, await _common_columns(run, table, backup)))
        await run(f"INSERT INTO {quoted(table)} ({names}) SELECT {names} FROM {quoted(backup)}")
        text = f"The table {quoted(table)} was empty after an interrupted start, and its rows were restored: {text}"
    else:
        text = f"{text}; {await _only_in_copy(run, table, backup)} of its rows are not in {quoted(table)}"
    await run(f"ALTER TABLE {quoted(backup)} RENAME TO {quoted(kept)}")
    return text


async def _exists(run: Run, table: str) -> bool:
    return bool(await run("SELECT 1 FROM sqlite_master WHERE type = 'table' AND lower(name) = lower($1)", table))


async def _is_empty(run: Run, table: str) -> bool:
    return not await run(f"SELECT 1 FROM {quoted(table)} LIMIT 1")


async def _common_columns(run: Run, table: str, backup: str) -> list[str]:
    there = {row["name"] for row in await run(f"PRAGMA table_info({quoted(backup)})")}
    return [row["name"] for row in await run(f"PRAGMA table_info({quoted(table)})") if row["name"] in there]


async def _only_in_copy(run: Run, table: str, backup: str) -> int:
    key = quoted(KEYS[table])
    rows = await run(
        f"SELECT count(*) AS count FROM {quoted(backup)} AS b "
        f"WHERE NOT EXISTS (SELECT 1 FROM {quoted(table)} AS t WHERE t.{key} = b.{key})"
    )
    count: int = rows[0]["count"]
    return count


async def _free_name(run: Run, name: str) -> str:
    number, free = 1, name
    while await _exists(run, free):
        number += 1
        free = f"{name}_{number}"
    return free
