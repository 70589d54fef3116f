"""Everything that can be found wrong with a database, each with what to do about it."""

import logging
from collections.abc import Callable

import msgspec

from services.environments_store.defaults import OperationLimits
from services.environments_store.operations.checklist import go_through
from services.environments_store.operations.opening import open_table
from services.environments_store.operations.rows import look_at_documents, look_at_guards, look_at_rows
from services.environments_store.schema.check import Report, look
from services.environments_store.schema.plan import obstacle_to_column, status_of
from services.environments_store.schema.status import Finding

__all__ = ["Diagnosis", "examine"]


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """`database` is the URL without its password; `documents` whether every document was read."""

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
    """Look at the schema, at who is connected, at every row, and at every document; change nothing."""
    limits = limits or OperationLimits()
    seen = await look(url)
    report = await go_through(seen, limits)
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
    """The steps that are not done. Who may not do them is told what is in the way, and not to do them."""
    in_the_way = {one.subject for one in report.findings if one.subject == "index" and one.level == "warning"}
    remedy = "`environments-store migrate run` does it, and so does the start of the service."
    return [
        Finding(
            level="error" if step.name in ("table", "column") else "warning",
            subject=step.name,
            message=f"The step '{step.name}' of the migration is missing{f': {step.detail}' if step.detail else ''}.",
            remedy="What is in the way is told below." if obstacle or step.name in in_the_way else remedy,
        )
        for step in report.steps
        if step.state != "done"
    ]
