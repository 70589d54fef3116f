"""The table as it was last seen: which statements fit it, and what happens when it turns out to be another one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from services.environments_store.errors import (
    DatabaseReadOnlyError,
    DatabaseUnavailableError,
    DatabaseUnreachableError,
    MissingColumnError,
    SoftDeleteUnavailableError,
)
from services.environments_store.queries import Queries, SoftDelete, choose
from services.environments_store.schema.status import UNREACHABLE, Reason, SchemaStatus

__all__ = ["TableShape"]


class TableShape:
    """`status` tells how the schema was last seen; `report_mismatch` is called when a statement met another, and
    `look_again` when one found the database gone or back."""

    def __init__(
        self,
        status: Callable[[], SchemaStatus],
        report_mismatch: Callable[[], None],
        look_again: Callable[[], None] = lambda: None,
    ) -> None:
        self._status = status
        self._report_mismatch = report_mismatch
        self._look_again = look_again

    @property
    def status(self) -> SchemaStatus:
        return self._status()

    def queries(self) -> Queries:
        """The statements for the table with or without the column. Raises DatabaseUnavailableError when the rows of
        the table cannot be read now."""
        status = self.status
        if not status.readable:
            what = "The rows of the table cannot be read now."
            raise DatabaseUnavailableError(status.error or what, public=f"{what} {_public(status)}")
        return choose(status)

    def soft_delete(self) -> tuple[Queries, SoftDelete]:
        """Those that need the column too. Raises SoftDeleteUnavailableError when it is not there."""
        queries = self.queries()
        if queries.soft_delete is None:
            raise self.unavailable()
        return queries, queries.soft_delete

    def unavailable(self) -> SoftDeleteUnavailableError:
        """Why nothing can be deleted or restored now."""
        status = self.status
        why = status.error or "The column 'deletedAt' is not there yet; adding it is tried again and again."
        what = "Soft delete is not available now; nothing was deleted or restored."
        return SoftDeleteUnavailableError(
            f"{what} {why}",
            public=f"{what} {_public(status)}",
            state=status.state,
            reason=status.reason or status.state,
        )

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Statements in this block may meet a table that somebody has changed: callers then get a retryable error."""
        try:
            yield
            self._note_reachable(True)
        except DatabaseUnreachableError:
            self._note_reachable(False)
            raise
        except DatabaseReadOnlyError:
            if self.status.writable:
                # A pool may be left with connections to what was the primary, and is there still.
                self._report_mismatch()
            raise
        except MissingColumnError as error:
            self._report_mismatch()
            if self.status.without_table:
                what = "There is no table of environments now."
                public = f"{what} {_public(self.status)}"
                raise DatabaseUnavailableError(self.status.error or what, public=public) from error
            again = "Its schema is being inspected again; nothing was stored: try again."
            raise SoftDeleteUnavailableError(
                f"The table has been changed ({error}). {again}",
                public=f"The table has been changed. {again}",
                reason="lost",
            ) from error

    def _note_reachable(self, reachable: bool) -> None:
        if reachable == (self.status.reason == UNREACHABLE):
            self._look_again()


_REASONS: dict[Reason, str] = {
    "forbidden": "The service lacks a right on the database.",
    "unsupported": "The table is of a kind that the service cannot change.",
    "read-only": "The database only reads.",
    "lost": "It was changed while the service was running.",
    "unavailable": "The database cannot be reached.",
    "row-security": "Row level security hides its rows from the service.",
}


def _public(status: SchemaStatus) -> str:
    """Why, without the role names and the SQL of `status.error`: those are in the log and in the action `schema`."""
    why = "The migration has not finished." if status.reason is None else _REASONS.get(status.reason, "It failed.")
    return f"{why} The action 'schema' says more."
