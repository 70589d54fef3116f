"""The output of commands for a terminal; JSON when piped or with `--json`."""

from collections.abc import Sequence

from broker.cli.output import is_person, print_rows, print_text, print_value
from services.environments_store.operations.checklist import Check, Checklist, is_checked
from services.environments_store.operations.doctor import Diagnosis
from services.environments_store.operations.planning import Plan
from services.environments_store.operations.purge import Forecast
from services.environments_store.schema.names import counted
from services.environments_store.schema.status import Finding, SchemaStatus, Step

__all__ = ["show_checklist", "show_checks", "show_diagnosis", "show_forecast", "show_plan", "show_status"]


def show_checklist(checklist: Checklist, json: bool) -> None:
    if json or not is_person():
        print_value(checklist, json=True)
        return
    print_text(f"{checklist.table} in {checklist.database}")
    _show_steps(checklist.steps)
    show_checks(checklist.checks, json)
    _show_findings([finding for finding in checklist.findings if finding.level != "info" or not is_checked(finding)])


def show_status(status: SchemaStatus, json: bool) -> None:
    if json or not is_person():
        print_value(status, json=True)
        return
    print_text(f"{status.dialect}: {status.state}{f' ({status.error})' if status.error else ''}")
    _show_steps(status.steps)


def show_plan(plan: Plan, json: bool) -> None:
    if json or not is_person():
        print_value(plan, json=True)
        return
    rows = "" if plan.rows_estimate < 0 else f", about {counted(plan.rows_estimate, 'row', 'rows')}"
    print_text(f"{plan.table} in {plan.database}{rows}")
    for number, step in enumerate(plan.steps, start=1):
        print_text(f"{number}. {step.name}: {step.state}")
        if step.statement:
            for line in (step.statement, f"lock: {step.lock}", f"time: {step.duration}"):
                print_text(f"   {line}")
    for blocker in plan.blockers:
        print_text(f"now: {blocker}")
    _show_findings(plan.findings)
    print_text("The migration will not:")
    for line in plan.will_not:
        print_text(f"- {line}")


def show_checks(checks: Sequence[Check], json: bool) -> None:
    rows = [{"check": check.name, "state": check.state, "detail": check.detail} for check in checks]
    print_rows(rows, ["check", "state", "detail"], json=json)


def show_diagnosis(diagnosis: Diagnosis, json: bool) -> None:
    if json or not is_person():
        print_value(diagnosis, json=True)
        return
    print_text(f"{diagnosis.table} in {diagnosis.database}")
    _show_findings(diagnosis.findings)
    if not diagnosis.findings:
        print_text("No problems were found.")


def show_forecast(cutoff: str | None, forecast: Forecast, json: bool) -> None:
    facts = {"oldest": forecast.oldest, "newest": forecast.newest}
    if json or not is_person():
        print_value(
            {"cutoff": cutoff, "wouldDelete": forecast.candidates, "months": forecast.months, **facts}, json=True
        )
        return
    print_text(f"Deleted before {cutoff}: {counted(forecast.candidates, 'environment', 'environments')}")
    if forecast.candidates:
        print_rows([{"month": month, "count": count} for month, count in forecast.months.items()], ["month", "count"])
        print_text(f"oldest deletion: {forecast.oldest}, newest: {forecast.newest}")


def _show_steps(steps: Sequence[Step]) -> None:
    rows = [{"step": step.name, "state": step.state, "detail": step.detail} for step in steps]
    print_rows(rows, ["step", "state", "detail"])


def _show_findings(findings: Sequence[Finding]) -> None:
    for finding in findings:
        print_text(f"{finding.level}: {finding.message}")
        if finding.remedy:
            print_text(f"    {finding.remedy}")
