"""The index, as a state machine over inspections: what to do next is decided from what is there, never from memory."""

from typing import Literal

import msgspec

from services.environments_store.defaults import MigrationBudgets
from services.environments_store.schema.inspection import Inspection
from services.environments_store.schema.names import INDEX, quoted

__all__ = ["IndexAction", "free_name", "next_action", "size_kilobytes"]

# Measured: 6,944 kB for a million rows.
_BYTES_A_ROW = 7
_SMALLEST_KILOBYTES = 8

# 14.0 to 14.3 can build an index concurrently that silently misses rows; repaired in 14.4.
FIRST_BROKEN_VERSION, FIRST_REPAIRED_VERSION = 140000, 140004


class IndexAction(msgspec.Struct, frozen=True):
    """`name` is the index to drop or create; `detail` says why it is left, or what is waited for."""

    kind: Literal["none", "wait", "drop", "create", "create-blocking", "leave"]
    name: str = INDEX
    detail: str | None = None


def next_action(found: Inspection, budgets: MigrationBudgets) -> IndexAction:
    """What the index needs now. `drop` is to be decided twice, some time apart, before it is done."""
    if found.index is not None:
        return IndexAction("none", found.index.name)
    if found.kind != "r":
        return IndexAction(
            "leave", detail="it is not an ordinary table: create the index by hand on the tables that hold its rows"
        )
    invalid = next((index for index in found.indexes if _is_ours(index.name) and not index.valid), None)
    if invalid is not None and invalid.on_column:
        if found.maintained:
            return IndexAction("wait", invalid.name, "another session uses the table, perhaps to build this index")
        if not found.can_alter:
            return IndexAction("leave", invalid.name, "an INVALID index is in the way, and only its owner can drop it")
        return IndexAction("drop", invalid.name)
    if not (found.can_index and found.can_alter):
        return IndexAction("leave", detail=_missing_right(found))
    name = free_name(found)
    if FIRST_BROKEN_VERSION <= found.version < FIRST_REPAIRED_VERSION:
        if found.rows < budgets.small_table_rows:
            return IndexAction("create-blocking", name)
        return IndexAction("leave", detail="PostgreSQL 14.0 to 14.3 can build a corrupt index concurrently: update it")
    return IndexAction("create", name)


def size_kilobytes(found: Inspection) -> int:
    """What the index on PostgreSQL will take, by the number of rows."""
    return max(found.rows * _BYTES_A_ROW // 1024, _SMALLEST_KILOBYTES)


def _is_ours(name: str) -> bool:
    return (name.startswith(INDEX) and name[len(INDEX) :].isdigit()) or name == INDEX


def free_name(found: Inspection) -> str:
    """The guide's name, or the next one: what bears it on another table is not ours to touch."""
    taken = found.taken_names | {index.name for index in found.indexes}
    number = 0
    while (name := f"{INDEX}{number or ''}") in taken:
        number += 1
    return name


def _missing_right(found: Inspection) -> str:
    role, schema = quoted(found.role), quoted(found.schema)
    if not found.can_alter:
        return f"role {role} does not own the table: run `environments-store migrate sql` as its owner"
    return f"role {role} may not create an index in schema {schema}: GRANT CREATE ON SCHEMA {schema} TO {role};"
