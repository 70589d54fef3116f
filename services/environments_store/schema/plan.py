"""From what was found to what is missing: pure decisions, the same for the migrator, `migrate check` and its SQL."""

from collections.abc import Mapping

from services.environments_store.schema.faults import faults_of, obstacle_to_column
from services.environments_store.schema.inspection import Inspection
from services.environments_store.schema.names import COLUMN, quoted
from services.environments_store.schema.status import Capability, Finding, Reason, SchemaStatus, Step

__all__ = ["is_complete", "obstacle_to_column", "pending_steps", "status_of", "trouble"]

ADDING = "The column deletedAt is being added."
WAITING = "The column deletedAt is being added: it waits for another session that uses the table."


def trouble(reason: Reason, message: str, public: str | None = None) -> Finding:
    """Why an attempt to add the column has failed, where no inspection shows it."""
    return Finding(
        level="error",
        subject=reason,
        reason=reason,
        message=message,
        public=public or "The column deletedAt could not be added; the log of the service says why.",
        takes=("migrate",),
    )


def is_complete(found: Inspection) -> bool:
    return not pending_steps(found)


def pending_steps(found: Inspection) -> tuple[str, ...]:
    """The steps that are missing, in their order: `leftovers`, `table`, `column`, `index`, `statistics`."""
    if found.kind is None:
        return (*(("leftovers",) if found.leftovers else ()), "table", "column", "index")
    missing = {
        "leftovers": bool(found.leftovers),
        "column": not found.has_column,
        "index": found.index is None,
        "statistics": found.needs_statistics,
    }
    return tuple(name for name, is_missing in missing.items() if is_missing)


def status_of(
    found: Inspection,
    *,
    lost: bool = False,
    problem: Finding | None = None,
    details: Mapping[str, str] | None = None,
    running: str | None = None,
) -> SchemaStatus:
    """The state that follows from an inspection, and from what an attempt has met since (`problem`)."""
    findings = tuple(one for one in faults_of(found) if one.reason is not None)
    if lost:
        findings = (_lost(found), *findings)
    elif problem is not None and not found.soft_delete:
        findings = (*findings, problem)
    # While the column is on its way, what else is wrong is only listed.
    fault = next((one for one in findings if one.takes if found.soft_delete or "migrate" in one.takes), None)
    migrating = not (found.soft_delete or fault)
    return SchemaStatus(
        state="degraded" if fault else "migrating" if migrating else "ready",
        dialect=found.dialect,
        steps=_steps(found, details or {}, running),
        reason=fault.reason if fault else None,
        error=fault.text if fault else (details or {}).get("column") if migrating else None,
        public=fault.public if fault else (WAITING if "column" in (details or {}) else ADDING) if migrating else None,
        findings=findings,
        soft_delete=found.soft_delete,
        writable=found.writable,
        dated=found.dated,
        deleted_at_zone=found.deleted_at_zone,
        may_undo=found.may_undo,
    )


def _lost(found: Inspection) -> Finding:
    if found.kind is None:
        message = (
            f"The table {quoted(found.table)} was there and is gone: dropped, renamed, or out of the search_path. "
            "The service does not make another by itself while it runs: bring it back, or start the service again."
        )
    else:
        message = (
            f"The column {quoted(COLUMN)} was there and is gone: a rollback, or an old version of the application. "
            "Environments that were deleted count as live. The service does not add it back by itself while it runs: "
            "run the SQL of `environments-store migrate sql`, or start the service again."
        )
    takes: tuple[Capability, ...] = ("migrate", "read") if found.kind is None else ("migrate",)
    return Finding(level="error", subject="lost", reason="lost", message=message, public=message, takes=takes)


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
