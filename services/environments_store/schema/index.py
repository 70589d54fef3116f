"""The index as a state machine over inspections: the next action follows from the catalog alone."""

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
    """`name` is the index to drop or create; `detail` says why it is left alone, or what it waits for."""

    kind: Literal["none", "wait", "drop", "create", "create-blocking", "leave"]
    name: str = INDEX
    detail: str | None = None


def next_action(found: Inspection, budgets: MigrationBudgets) -> IndexAction:
    """What the index needs now. The caller drops an index only when two inspections, some time apart, say `drop`."""
    if found.index is not None:
        return IndexAction("none", found.index.name)
    if found.kind != "r":
        return IndexAction(
            "leave", detail="this is not an ordinary table: create the index by hand on the tables that hold its rows"
        )
    invalid = next((index for index in found.indexes if _is_ours(index.name) and not index.valid), None)
    if invalid is not None and invalid.on_column:
        if found.maintained:
            return IndexAction("wait", invalid.name, "another session maintains the table, perhaps building this index")
        if not found.can_alter:
            return IndexAction("leave", invalid.name, "there is an INVALID index, which only its owner can drop")
        return IndexAction("drop", invalid.name)
    if not (found.can_index and found.can_alter):
        return IndexAction("leave", detail=_missing_right(found))
    name = free_name(found)
    if FIRST_BROKEN_VERSION <= found.version < FIRST_REPAIRED_VERSION:
        if found.rows < budgets.small_table_rows:
            return IndexAction("create-blocking", name)
        detail = "PostgreSQL 14.0 to 14.3 can build a corrupt index concurrently: update the server"
        return IndexAction("leave", detail=detail)
    return IndexAction("create", name)


def size_kilobytes(found: Inspection) -> int:
    """The estimated size of the index on PostgreSQL."""
    return max(found.rows * _BYTES_A_ROW // 1024, _SMALLEST_KILOBYTES)


def _is_ours(name: str) -> bool:
    return (name.startswith(INDEX) and name[len(INDEX) :].isdigit()) or name == INDEX


def free_name(found: Inspection) -> str:
    """The guide's name, or the next one when it is taken in the schema."""
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
