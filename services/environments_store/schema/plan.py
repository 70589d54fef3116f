"""The missing steps and the status that follow from an inspection: the same for the migrator and the commands."""

from collections.abc import Mapping

from services.environments_store.schema.faults import faults_of, obstacle_to_column
from services.environments_store.schema.inspection import Inspection
from services.environments_store.schema.names import COLUMN, quoted
from services.environments_store.schema.status import Capability, Finding, Reason, SchemaStatus, Step

__all__ = ["obstacle_to_column", "pending_steps", "status_of", "trouble"]

ADDING = "The column deletedAt is being added."
WAITING = "The column deletedAt is being added, which has to wait for another session that uses the table."


def trouble(reason: Reason, message: str, public: str | None = None) -> Finding:
    """A failed attempt to add the column, for a reason that no inspection shows."""
    return Finding(
        level="error",
        subject=reason,
        reason=reason,
        message=message,
        public=public or "The column deletedAt could not be added; see the log of the service.",
        takes=("migrate",),
    )


def pending_steps(found: Inspection) -> tuple[str, ...]:
    """The missing steps, in order: `leftovers` (backup tables), `table`, `column`, `index`, `statistics`."""
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
    """The state that follows from an inspection, and from a failed attempt since (`problem`)."""
    findings = tuple(one for one in faults_of(found) if one.reason is not None)
    if lost:
        findings = (_lost(found), *findings)
    elif problem is not None and not found.soft_delete:
        findings = (*findings, problem)
    # While the column is being added, other problems are only listed.
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
            f"The table {quoted(found.table)} has disappeared: it was dropped, renamed, or left the search_path. "
            "The service does not create another while it runs: bring it back, or restart the service."
        )
    else:
        message = (
            f"The column {quoted(COLUMN)} has disappeared: by a rollback, or an old version of the application. "
            "Deleted environments count as live. The service does not add the column again while it runs: run the SQL "
            "of `environments-store migrate sql`, or restart the service."
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
