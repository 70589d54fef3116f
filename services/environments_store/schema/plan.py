"""From what was found to what is missing: pure decisions, the same for the migrator, `migrate check` and its SQL."""

from collections.abc import Mapping

import msgspec

from services.environments_store.schema.inspection import Inspection
from services.environments_store.schema.names import COLUMN, qualified, quoted
from services.environments_store.schema.sql import TIMEOUTS, add_column
from services.environments_store.schema.status import Reason, SchemaStatus, Step

__all__ = [
    "Obstacle",
    "grants_text",
    "hidden_text",
    "is_complete",
    "obstacle_to_column",
    "pending_steps",
    "read_only_text",
    "status_of",
]

KINDS = {"v": "a view", "m": "a materialised view", "p": "a partitioned table", "f": "a foreign table"}


class Obstacle(msgspec.Struct, frozen=True):
    """Why the service cannot add the column itself. `message` says what a person can do, with the SQL."""

    reason: Reason
    message: str


def obstacle_to_column(found: Inspection) -> Obstacle | None:
    """What stands between this role and the column; None when it may be tried, or is there already."""
    if found.soft_delete:
        return None
    if found.kind is not None:
        unsupported = _unsupported(found)
        if unsupported:
            return Obstacle("unsupported", unsupported)
    if not found.writable:
        when = "when both can be written" if found.dialect == "sqlite" else "where writes are taken"
        return Obstacle("read-only", f"{read_only_text(found)} The column can be added {when}.")
    if found.kind is None and not found.can_create and found.hidden_in is not None:
        schema, role = quoted(found.hidden_in), quoted(found.role)
        return Obstacle(
            "forbidden",
            f"Role {role} may not use schema {schema}, in which there is a table {quoted(found.table)}. As the owner "
            f"of the schema run: GRANT USAGE ON SCHEMA {schema} TO {role};",
        )
    if found.no_schema:
        role = quoted(found.role)
        return Obstacle(
            "forbidden",
            f"The search_path of role {role} names no schema that is there and that it may use, so it sees no table. "
            f"Run: ALTER ROLE {role} SET search_path = {quoted(found.schema)}; with the schema of the table.",
        )
    if found.kind is None and not found.can_create:
        return Obstacle(
            "forbidden",
            f"There is no table {quoted(found.table)}, and role {quoted(found.role)} may not create it. As the "
            f"owner of the schema run: GRANT CREATE ON SCHEMA {quoted(found.schema)} TO {quoted(found.role)};",
        )
    if not found.can_alter:
        name = qualified(found.schema, found.table)
        return Obstacle(
            "forbidden",
            f"Role {quoted(found.role)} does not own {name}. As its owner run: "
            f"{TIMEOUTS} {add_column('postgresql', found.schema, found.table)}; or: ALTER TABLE {name} OWNER TO "
            f"{quoted(found.role)}; `environments-store migrate sql` prints all of it.",
        )
    return None


def _unsupported(found: Inspection) -> str | None:
    name = qualified(found.schema, found.table)
    if found.kind != "r":
        return f"{name} is {KINDS.get(found.kind or '', 'no table')}, which the service does not change."
    if found.missing_columns:
        columns = ", ".join(map(quoted, found.missing_columns))
        return f"{name} has no {columns}: it is not the table of the environments, and is left alone."
    column = found.deleted_at
    if column is not None and column.not_null:
        by_hand = f"ALTER TABLE {name} ALTER COLUMN {quoted(COLUMN)} DROP NOT NULL;"
        how = "Make it nullable by hand." if found.dialect == "sqlite" else f"As its owner run: {by_hand}"
        return f"The column {quoted(COLUMN)} of {name} is NOT NULL, so that no environment could be live. {how}"
    if column is not None:
        return f"The column {quoted(COLUMN)} of {name} has the type {column.type}; it has to be a timestamp."
    return None


def is_complete(found: Inspection) -> bool:
    return not pending_steps(found)


def pending_steps(found: Inspection) -> tuple[str, ...]:
    """The steps that are missing, in their order: `leftovers`, `table`, `column`, `index`, `statistics`."""
    if found.kind is None:
        return (*(("leftovers",) if found.leftovers else ()), "table", "column", "index")
    missing = {
        "leftovers": bool(found.leftovers),
        "column": not found.soft_delete,
        "index": found.index is None,
        "statistics": found.needs_statistics,
    }
    return tuple(name for name, is_missing in missing.items() if is_missing)


def status_of(
    found: Inspection,
    *,
    lost: bool = False,
    problem: Obstacle | None = None,
    details: Mapping[str, str] | None = None,
    running: str | None = None,
) -> SchemaStatus:
    """The state that follows from an inspection, and from what an attempt has met since (`problem`)."""
    steps = _steps(found, details or {}, running)
    if found.rows_hidden:
        return SchemaStatus(
            state="degraded",
            dialect=found.dialect,
            steps=steps,
            reason="row-security",
            error=hidden_text(found),
            soft_delete=found.soft_delete,
            readable=False,
            writable=found.writable,
            dated=found.dated,
            deleted_at_zone=found.deleted_at_zone,
        )
    obstacle = obstacle_to_column(found) or problem
    if found.soft_delete:
        reason, error = _limits(found)
        return SchemaStatus(
            state="degraded" if reason else "ready",
            dialect=found.dialect,
            steps=steps,
            reason=reason,
            error=error,
            soft_delete=True,
            writable=found.writable,
            dated=found.dated,
            deleted_at_zone=found.deleted_at_zone,
        )
    reason = obstacle.reason if obstacle else None
    error = obstacle.message if obstacle else (details or {}).get("column")
    if lost:
        reason, error = "lost", _lost_text(found)
    return SchemaStatus(
        state="degraded" if reason else "migrating",
        dialect=found.dialect,
        steps=steps,
        reason=reason,
        error=error,
        soft_delete=False,
        writable=found.writable,
        dated=found.dated,
    )


def _lost_text(found: Inspection) -> str:
    if found.kind is None:
        return (
            f"The table {quoted(found.table)} was there and is gone: dropped, renamed, or out of the search_path. "
            "The service does not make another by itself while it runs: bring it back, or start the service again."
        )
    return (
        f"The column {quoted(COLUMN)} was there and is gone: a rollback, or an old version of the application. "
        "Environments that were deleted count as live. The service does not add it back by itself while it runs: "
        "run the SQL of `environments-store migrate sql`, or start the service again."
    )


def hidden_text(found: Inspection) -> str:
    role = quoted(found.role)
    return (
        f"Row level security hides all rows of {qualified(found.schema, found.table)} from role {role}: an empty list "
        f"would be no empty table. Add a policy for it, or: ALTER ROLE {role} BYPASSRLS;"
    )


def _limits(found: Inspection) -> tuple[Reason | None, str | None]:
    """What keeps a service from its work on a table that has the column."""
    if not found.writable:
        return "read-only", read_only_text(found)
    if found.needed_grants:
        return "forbidden", grants_text(found)
    return None, None


def grants_text(found: Inspection) -> str:
    """Which rights on the rows are missing, with the SQL that gives them."""
    name, role, rights = qualified(found.schema, found.table), quoted(found.role), ", ".join(found.missing_grants)
    return f"Role {role} has no {rights} on {name}. As its owner run: GRANT {rights} ON {name} TO {role};"


def read_only_text(found: Inspection) -> str:
    """What cannot be written, and why."""
    if found.read_only_reason:
        return found.read_only_reason
    if found.standby:
        return "The database is a standby: name the primary in the URL."
    return (
        "The database only reads: default_transaction_read_only is on for the server, the database or role"
        f" {quoted(found.role)}, as it is on some standbys and on some servers whose disk is full. Set it off there, or"
        " name the primary in the URL."
    )


def _steps(found: Inspection, details: Mapping[str, str], running: str | None) -> tuple[Step, ...]:
    pending = set(pending_steps(found))
    names = ["table", "column", "index", *(["statistics"] if found.needs_statistics else [])]
    if found.leftovers:
        names.insert(0, "leftovers")
    return tuple(
        Step(
            name=name,
            state="done" if name not in pending else "running" if name == running else "pending",
            detail=details.get(name) if name in pending else None,
        )
        for name in names
    )
