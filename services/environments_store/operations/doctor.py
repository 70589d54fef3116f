"""Every problem that can be found in a database, each with its remedy."""

import logging
from collections.abc import Callable

import msgspec

from services.environments_store.defaults import OperationLimits
from services.environments_store.operations.checklist import run_checklist
from services.environments_store.operations.opening import open_table
from services.environments_store.operations.rows import look_at_documents, look_at_guards, look_at_rows
from services.environments_store.schema.check import Report, look
from services.environments_store.schema.plan import obstacle_to_column, status_of
from services.environments_store.schema.status import Finding

__all__ = ["Diagnosis", "examine"]


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """`database` is the URL without its password; `documents` says whether every document was read."""

    database: str
    table: str
    documents: bool
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        return all(finding.level == "info" for finding in self.findings)


async def examine(
    url: str,
    logger: logging.Logger,
    *,
    documents: bool = True,
    on_progress: Callable[[int], None] | None = None,
    limits: OperationLimits | None = None,
) -> Diagnosis:
    """Check the schema, the connected sessions, every row and, with `documents`, every document; change nothing."""
    limits = limits or OperationLimits()
    seen = await look(url)
    report = await run_checklist(seen, limits)
    findings = [*_missing(report, obstacle_to_column(seen.found)), *report.findings]
    if seen.found.kind is not None and status_of(seen.found).lack("read") is None:
        async with open_table(url, logger, writes=False) as opened:
            findings += await look_at_rows(opened.database, opened.shape, limits)
            if opened.found.soft_delete:
                findings += await look_at_guards(opened.database, limits)
            if documents:
                findings += await look_at_documents(opened.database, opened.shape, limits, on_progress)
    return Diagnosis(database=report.database, table=report.table, documents=documents, findings=tuple(findings))


def _missing(report: Report, obstacle: Finding | None) -> list[Finding]:
    """The missing steps. Where one is blocked, the remedy points to the finding that says by what."""
    in_the_way = {one.subject for one in report.findings if one.subject == "index" and one.level == "warning"}
    remedy = "Run `environments-store migrate run`, or start the service, which does the same."
    return [
        Finding(
            level="error" if step.name in ("table", "column") else "warning",
            subject=step.name,
            message=f"The migration step '{step.name}' is missing{f': {step.detail}' if step.detail else ''}.",
            remedy="See below what prevents it." if obstacle or step.name in in_the_way else remedy,
        )
        for step in report.steps
        if step.state != "done"
    ]
