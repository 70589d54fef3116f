"""The table as last inspected: the statements that fit it, and the reaction when it has changed."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType

from services.environments_store.defaults import MigrationBudgets
from services.environments_store.errors import (
    DatabaseForbiddenError,
    DatabaseReadOnlyError,
    DatabaseUnavailableError,
    DatabaseUnreachableError,
    MissingColumnError,
    SoftDeleteUnavailableError,
)
from services.environments_store.queries import Queries, SoftDelete, choose
from services.environments_store.schema.status import UNREACHABLE, Capability, Finding, SchemaStatus

__all__ = ["TableShape"]

ADDING = "The column deletedAt is being added."


class TableShape:
    """`status` returns the last status; `report_mismatch` is called when a statement finds the schema changed, and
    `look_again` when one finds the database unreachable or reachable again."""

    def __init__(
        self,
        status: Callable[[], SchemaStatus],
        report_mismatch: Callable[[], None],
        look_again: Callable[[], None] = lambda: None,
    ) -> None:
        self._status = status
        self._report_mismatch = report_mismatch
        self._look_again = look_again
        self._next_look_at = 0.0
        self._chosen: Queries
        self._chosen_for: SchemaStatus | None = None
        self._watched = _Watched(self)

    @property
    def status(self) -> SchemaStatus:
        return self._status()

    def queries(self, *needed: Capability) -> Queries:
        """The statements for the table with or without the column. Raises DatabaseUnavailableError when reading, or
        what is `needed` besides, is unavailable."""
        status = self.status
        lack = status.lack("read", *needed)
        if lack is not None:
            self._heal()
            raise DatabaseUnavailableError(lack.text, public=lack.public, state=status.state, reason=lack.reason)
        if status is not self._chosen_for:
            self._chosen, self._chosen_for = choose(status), status
        return self._chosen

    def soft_delete(self, *needed: Capability) -> tuple[Queries, SoftDelete]:
        """The statements including those that need the column. Raises SoftDeleteUnavailableError when the column, or
        what is `needed`, is unavailable."""
        queries = self.queries(*(one for one in needed if one == "list"))
        lack = self.status.lack(*needed)
        if queries.soft_delete is None or lack is not None:
            self._heal()
            raise self.unavailable(lack)
        return queries, queries.soft_delete

    def unavailable(self, lack: Finding | None = None) -> SoftDeleteUnavailableError:
        """The error that says why nothing can be deleted or restored now."""
        status = self.status
        what = "Soft delete is not available now; nothing was deleted or restored."
        why, public = (lack.text, lack.public) if lack else (status.error, status.public)
        return SoftDeleteUnavailableError(
            f"{what} {why or public or ADDING}",
            public=f"{what} {public or ADDING}",
            state=status.state,
            reason=(lack.reason if lack else status.reason) or status.state,
        )

    def _heal(self) -> None:
        """Inspect again after a refused call, since it may work by now, but not after every one."""
        now = time.monotonic()
        if now >= self._next_look_at:
            self._next_look_at = now + MigrationBudgets().refused_look_s
            self._look_again()

    def watched(self) -> AbstractContextManager[None]:
        """A block whose statements may find the table changed: callers then get a retryable error."""
        return self._watched

    def note(self, error: BaseException | None) -> None:
        """Inspect the table again when the end of a block requires it. Raises the error for callers."""
        if error is None:
            self._note_reachable(True)
        elif isinstance(error, DatabaseUnreachableError):
            self._note_reachable(False)
        elif isinstance(error, DatabaseForbiddenError):
            self._heal()
        elif isinstance(error, DatabaseReadOnlyError):
            if self.status.writable:
                # The pool may have connections to a former primary that is still running.
                self._report_mismatch()
        elif isinstance(error, MissingColumnError):
            self._report_mismatch()
            if self.status.without_table:
                status = self.status
                why = status.public or "There is no table of environments yet: it is being created."
                raise DatabaseUnavailableError(status.error or why, public=why) from error
            again = "Its schema is being inspected again; nothing was stored: try again."
            raise SoftDeleteUnavailableError(
                f"The table has been changed ({error}). {again}",
                public=f"The table has been changed. {again}",
                reason="lost",
            ) from error

    def _note_reachable(self, reachable: bool) -> None:
        if reachable == (self.status.reason == UNREACHABLE):
            self._look_again()


class _Watched:
    """A class, as the generators of `contextmanager` cost each call ten times as much."""

    def __init__(self, shape: TableShape) -> None:
        self._shape = shape

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shape.note(error)
