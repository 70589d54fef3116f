"""The status of the migration, and its log lines, each logged once."""

import logging
from collections.abc import Callable

import msgspec

from services.environments_store.database.base import Dialect
from services.environments_store.schema import messages
from services.environments_store.schema.findings import findings_of
from services.environments_store.schema.inspection import Inspection
from services.environments_store.schema.plan import status_of
from services.environments_store.schema.status import UNREACHABLE, Finding, SchemaStatus

__all__ = ["StatusReporter"]


class StatusReporter:
    """Turns inspections and failures into a status and log lines."""

    def __init__(self, dialect: Dialect, logger: logging.Logger) -> None:
        self.status = SchemaStatus(state="migrating", dialect=dialect)
        self.on_change: Callable[[SchemaStatus], None] | None = None
        self.lost = False
        self._logger = logger
        self._found: Inspection | None = None
        self._had_column = False
        self._announced = False
        self._added = False
        self._problem: Finding | None = None
        self._logged_failure: str | None = None
        self._details: dict[str, str] = {}
        self._running: str | None = None
        self._warned: set[str] = set()
        self._logged_findings: set[str] = set()

    @property
    def had_column(self) -> bool:
        """Whether the column has existed since the start: the service never adds it twice while it runs."""
        return self._had_column or self.lost

    @property
    def last(self) -> Inspection | None:
        """The last inspection, None before the first."""
        return self._found

    def found(self, found: Inspection) -> None:
        """Report a new inspection. Without tried statements, it keeps the refusals of the last one that tried them."""
        if found.refusals is None and self._found is not None:
            found = msgspec.structs.replace(found, refusals=self._found.refusals)
        self._found = found
        if UNREACHABLE in self._warned:
            self.forget(UNREACHABLE)
            self._logger.info(messages.REACHABLE)
        self.forget("crowded")
        self._warn_of_findings(found)
        if found.soft_delete:
            self._note_column(found)
        elif self._had_column and found.deleted_at is None:
            self.lost, self._had_column = True, False
            self._update()
            self._logger.error("%s", self.status.error)
        self._update()

    def adding(self) -> None:
        """Log the first attempt to add the column; later ones are not announced."""
        if not self._announced:
            self._announced = True
            self._logger.info(messages.ADDING)
        self._running = "column"

    def added(self) -> None:
        """The column was committed; the next inspection reports it."""
        self._added = True

    def trouble(self, problem: Finding) -> None:
        """Report a failed attempt whose reason no inspection shows."""
        self._problem = problem
        self._update()

    def blocked(self, detail: str) -> None:
        """Report that another session blocks the attempt."""
        self._problem = None
        self._details["column"] = detail
        self._update()

    def missed(self, reason: str, text: str) -> None:
        """Log that the service starts without the column, once for each reason."""
        if self._logged_failure != reason:
            self._logged_failure = reason
            self._logger.error(messages.FAILED)
            self._logger.error("%s", text)

    def step(self, name: str | None, detail: str | None = None) -> None:
        """Report the running step, or None, and what it waits for."""
        self._running = name
        if name is not None and detail is not None:
            self._details[name] = detail
        self._update()

    def warn(self, key: str, text: str) -> None:
        """Log a warning once, until `forget`."""
        if key not in self._warned:
            self._warned.add(key)
            self._logger.warning("%s", text)

    def forget(self, key: str) -> None:
        self._warned.discard(key)

    def note(self, text: str, *arguments: object) -> None:
        self._logger.info(text, *arguments)

    def detail(self, name: str, text: str) -> None:
        """Set the detail that the `schema` action shows for a missing step."""
        self._details[name] = text
        self._update()

    def unavailable(self, text: str) -> None:
        """Report that the database cannot be reached. What queries may name stays as last known."""
        self.warn(UNREACHABLE, messages.UNREACHABLE.format(text))
        away = {"error": text, "public": messages.AWAY}
        self._publish(msgspec.structs.replace(self.status, state="degraded", reason=UNREACHABLE, **away))

    def crowded(self, text: str) -> None:
        """Report that calls use all connections. They are answered, so the state stays."""
        self.warn("crowded", f"The schema could not be inspected and counts as unchanged: {text}")

    def _warn_of_findings(self, found: Inspection) -> None:
        """Log once what affects callers, and columns with similar names; `missed` logs what prevents the column."""
        current = {
            one.text
            for one in findings_of(found)
            if (one.reason is not None or one.subject == "twin") and (found.has_column or "migrate" not in one.takes)
        }
        for text in self._logged_findings - current:
            self.forget(text)
        for text in current:
            self.warn(text, text)
        self._logged_findings = current

    def _note_column(self, found: Inspection) -> None:
        if not self._had_column:
            self._logger.info(messages.ADDED if self._added else messages.EXISTS)
        if self.lost:
            self._logger.warning("The deletedAt column is back: soft delete works again")
        self._had_column, self.lost, self._added, self._announced = True, False, False, False
        self._problem, self._logged_failure = None, None
        self._details.pop("column", None)

    def _update(self) -> None:
        if self._found is None:
            return
        if self._found.soft_delete and self._running == "column":
            self._running = None
        status = status_of(
            self._found, lost=self.lost, problem=self._problem, details=self._details, running=self._running
        )
        self._publish(status)

    def _publish(self, status: SchemaStatus) -> None:
        changed, self.status = status != self.status, status
        if changed and self.on_change is not None:
            self.on_change(status)
