"""The inspection of a SQLite file, by the schema table and pragmas."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import aiosqlite
import anyio

from services.environments_store.database.base import Row
from services.environments_store.database.sqlite_connection import bind, file_failures
from services.environments_store.schema.inspection import ROW_NUMBER, Column, Index, Inspection
from services.environments_store.schema.names import COLUMN, INDEX, METADATA_TABLE, TABLE, backup_name, quoted

__all__ = ["inspect", "query"]

OBJECTS = "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_autoindex_%'"
WHERE = re.compile(r"\bwhere\b(.*)$", re.IGNORECASE | re.DOTALL)


async def query(connection: aiosqlite.Connection, path: Path, text: str, *arguments: object) -> Sequence[Row]:
    """Run one statement. Raises StatementFailure."""
    with file_failures(path):
        return list(await connection.execute_fetchall(text, bind(arguments)))


async def inspect(
    connection: aiosqlite.Connection, path: Path, *, table: str = TABLE, read_only: bool = False
) -> Inspection:
    """Inspect in one transaction, since another process may be changing the schema. Raises StatementFailure."""
    if connection.in_transaction:
        return await _inspect(connection, path, table, read_only)
    await query(connection, path, "BEGIN")
    try:
        return await _inspect(connection, path, table, read_only)
    finally:
        with anyio.CancelScope(shield=True):
            await connection.rollback()


async def _inspect(connection: aiosqlite.Connection, path: Path, table: str, read_only: bool) -> Inspection:
    objects = await query(connection, path, OBJECTS)
    kinds = {row["name"].lower(): row["type"] for row in objects}
    kind = kinds.get(table.lower())
    leftovers = tuple(backup_name(t) for t in (table, METADATA_TABLE) if kinds.get(backup_name(t).lower()) == "table")
    reason = _why_read_only(path, asked=read_only)
    if kind not in ("table", "view"):
        return Inspection(
            dialect="sqlite",
            schema="main",
            table=table,
            kind=None,
            leftovers=leftovers,
            read_only=bool(reason),
            read_only_reason=reason,
        )
    columns = await query(connection, path, f"PRAGMA table_xinfo({quoted(table)})")
    indexes = await _indexes(connection, path, table)
    plain = next((index for index in indexes if index.serves and not index.partial), None)
    return Inspection(
        dialect="sqlite",
        schema="main",
        table=table,
        kind="r" if kind == "table" else "v",
        columns=tuple(_column(row) for row in columns),
        indexes=(*indexes, *_row_key(columns)),
        taken_names=frozenset(
            row["name"] for row in objects if row["name"].startswith(INDEX) and row["tbl_name"].lower() != table.lower()
        ),
        leftovers=leftovers,
        triggers=any(row["type"] == "trigger" and row["tbl_name"].lower() == table.lower() for row in objects),
        read_only=bool(reason),
        read_only_reason=reason,
        rows_estimate=await _has_rows(connection, path, table),
        has_statistics=plain is None or await _has_statistics(connection, path, plain.name, kinds),
    )


def _column(row: Row) -> Column:
    generated = {2: "virtual", 3: "stored"}.get(row["hidden"], "")
    filled = row["dflt_value"] is not None or bool(generated)
    return Column(_as_we_write_it(row["name"]), row["type"], bool(row["notnull"]), filled, generated)


def _row_key(columns: Sequence[Row]) -> tuple[Index, ...]:
    """The key of an INTEGER PRIMARY KEY, which is the row number and has no index."""
    keys = [row for row in columns if row["pk"]]
    if len(keys) != 1 or keys[0]["name"].lower() != "id" or keys[0]["type"].upper() != "INTEGER":
        return ()
    return (Index(name=ROW_NUMBER, first_column="id", unique=True, key=True, primary=True),)


async def _indexes(connection: aiosqlite.Connection, path: Path, table: str) -> tuple[Index, ...]:
    indexes = []
    for row in await query(connection, path, f"PRAGMA index_list({quoted(table)})"):
        columns = await query(connection, path, f"PRAGMA index_info({quoted(row['name'])})")
        first = columns[0]["name"] if columns else None
        text = await query(connection, path, "SELECT sql FROM sqlite_master WHERE name = $1", row["name"])
        indexes.append(
            Index(
                name=row["name"],
                first_column=None if first is None else _as_we_write_it(first),
                unique=bool(row["unique"]),
                partial=bool(row["partial"]),
                narrowed=bool(row["partial"]) and _narrows(text[0]["sql"] if text else ""),
                key=bool(row["unique"]) and not row["partial"] and len(columns) == 1 and (first or "").lower() == "id",
                primary=row["origin"] == "pk",
            )
        )
    return tuple(indexes)


def _narrows(definition: str) -> bool:
    match = WHERE.search(definition)
    predicate = re.sub(r'["`\[\]()]', "", match.group(1)) if match else ""
    return " ".join(predicate.lower().split()) != f"{COLUMN.lower()} is not null"


def _as_we_write_it(name: str) -> str:
    """Names are case-insensitive in SQLite: DELETEDAT is the same column."""
    return COLUMN if name.lower() == COLUMN.lower() else name


async def _has_rows(connection: aiosqlite.Connection, path: Path, table: str) -> int:
    return len(await query(connection, path, f"SELECT 1 FROM {quoted(table)} LIMIT 1"))


async def _has_statistics(connection: aiosqlite.Connection, path: Path, index: str, kinds: dict[str, str]) -> bool:
    if "sqlite_stat1" not in kinds:
        return False
    return bool(await query(connection, path, "SELECT 1 FROM sqlite_stat1 WHERE idx = $1", index))


def _why_read_only(path: Path, *, asked: bool) -> str:
    """A sentence about what prevents this process from writing; empty when it may write."""
    file = path.resolve()  # SQLite writes its journal beside the file, not beside a link to it
    if asked:
        return f"'{path}' was opened read-only (mode=ro)."
    if not os.access(file.parent, os.W_OK):
        return f"The folder '{file.parent}' is read-only for this user, and SQLite writes its journal beside the file."
    if file.exists() and not os.access(file, os.W_OK):
        return f"The file '{file}' is read-only for this user."
    return ""
