"""Whether a migration can start now: the lines of `migrate check`."""

from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from services.environments_store.defaults import OperationLimits
from services.environments_store.schema.check import Report, Seen, report_of
from services.environments_store.schema.inspection import Inspection
from services.environments_store.schema.names import quoted
from services.environments_store.schema.status import Finding

__all__ = ["Check", "Checklist", "all_hold", "is_checked", "run_checklist"]

_SUBJECTS = {
    "rights": ("forbidden", "rights", "read-only", "column-grants"),
    "table": ("elsewhere", "unsupported", "no-key", "twin", "inheritance", "unlogged"),
    "blockers": ("blocker", "dump"),
    "oldest transaction": ("old-transaction",),
    "disk": ("disk",),
    "pooler": ("pooler",),
    "row security": ("row-security",),
    "replication": ("replication", "replica-identity"),
    "old generations": ("old-generation", "leftover", "jsonb"),
    "other programs": ("other-program",),
}
_OF_SQLITE = ("rights", "table", "blockers", "disk", "old generations")


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one check. `warning`: it holds, with a reservation; `unknown`: it cannot be seen from here."""

    name: str
    state: Literal["ok", "warning", "failed", "unknown"]
    detail: str


def all_hold(checks: Sequence[Check]) -> bool:
    return all(check.state != "failed" for check in checks)


class Checklist(Report, frozen=True, kw_only=True):
    """`checks` has a line for each check, passed or not; `findings` has the problems."""

    checks: tuple[Check, ...]


async def run_checklist(seen: Seen, limits: OperationLimits | None = None) -> Checklist:
    """Check the server or file around an inspected table; change nothing. Raises as `look` does."""
    location, found, blockers = seen
    report = report_of(seen)
    around: Sequence[Finding]
    if location.path is not None:
        from services.environments_store.operations.facts_sqlite import file_findings

        around = await file_findings(location.path, found)
    else:
        from services.environments_store.operations.facts_postgres import server_findings

        around = await server_findings(location.url, found, blockers, limits or OperationLimits())
    findings = (*report.findings, *around, *_about_lists(found, limits or OperationLimits()))
    names = _OF_SQLITE if found.dialect == "sqlite" else tuple(_SUBJECTS)
    return Checklist(
        dialect=report.dialect,
        database=report.database,
        table=report.table,
        rows_estimate=report.rows_estimate,
        steps=report.steps,
        findings=findings,
        checks=tuple(
            _check(name, found, [one for one in findings if one.subject in _SUBJECTS[name]]) for name in names
        ),
    )


def _about_lists(found: Inspection, limits: OperationLimits) -> Iterator[Finding]:
    index = found.list_index
    large = found.dialect == "postgresql" and found.rows >= limits.large_table_rows
    if large and (index is None or not index.valid):
        yield Finding(
            level="info",
            subject="list-index",
            message=f"Each page of live environments sorts about {found.rows:,} rows.",
            remedy="`environments-store migrate list-index` builds an index for it (not part of the guide).",
        )


def is_checked(finding: Finding) -> bool:
    """Whether one of the checks covers it."""
    return any(finding.subject in subjects for subjects in _SUBJECTS.values())


def _check(name: str, found: Inspection, findings: Sequence[Finding]) -> Check:
    """The line of one name. Warnings and errors are shown below the lines, with their remedies."""
    levels: set[str] = {finding.level for finding in findings}
    if name == "rights" and found.kind == "r" and found.index is None and not found.can_index:
        levels.add("warning")  # the finding about the index names the missing right
    if "error" in levels or "warning" in levels:
        return Check(name=name, state="failed" if "error" in levels else "warning", detail="see below")
    unseen = name == "disk" and found.index is None and not (found.dialect == "sqlite" and findings)
    detail = " ".join(finding.message for finding in findings) or _passed(name, found)
    return Check(name=name, state="unknown" if unseen else "ok", detail=detail)


def _passed(name: str, found: Inspection) -> str:
    role = quoted(found.role)
    if name == "table":
        return "it has the columns and the key that the service needs" if found.kind else "it will be created"
    if found.dialect == "sqlite":
        if name == "old generations":
            return "no copy was left behind; stop every node of the original application before the first start"
        disk = "it has room for a backup" if found.kind else "there is no file yet"
        return {"rights": "the file can be written", "blockers": "no other process is writing", "disk": disk}[name]
    if name == "rights":
        owns = "owns the table" if found.can_alter else "does not own the table, which needs no change,"
        return f"role {role} {owns} and may write to it" if found.kind else f"role {role} may create the table"
    return {
        "blockers": "no other session holds a lock on the table",
        "oldest transaction": "no transaction has been open for long",
        "disk": "no index has to be built" if found.index else "PostgreSQL does not report the free disk space",
        "pooler": "a direct connection",
        "row security": f"no policy hides rows from role {role}",
        "replication": "no standby and no subscriber is connected",
        "old generations": "no session of an older version reads the table",
        "other programs": "no other program is connected",
    }[name]
