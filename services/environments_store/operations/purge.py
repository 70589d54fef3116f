"""Delete for ever what has been in the trash for long: in small batches, beside a service that goes on working."""

from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

import anyio

from services.environments_store.database.base import Database
from services.environments_store.defaults import OperationLimits
from services.environments_store.document import invalid
from services.environments_store.errors import DatabaseError
from services.environments_store.model import Change, iso_date, read_row
from services.environments_store.queries.purging import Purging, choose_purging
from services.environments_store.shape import TableShape

__all__ = ["Forecast", "Purge", "check_age"]


class Forecast(NamedTuple):
    """What a purge would delete now: how many, by month of deletion, and the first and last date among them."""

    candidates: int
    months: dict[str, int]
    oldest: str | None
    newest: str | None


def check_age(days: int, force: bool, limits: OperationLimits) -> None:
    """Raises ValidationError (422) for an age so low that a mistake could not be undone any more."""
    if days < limits.purge_days_min and not force:
        raise invalid(
            "olderThanDays",
            "numberMin",
            f"The 'olderThanDays' is {days}: that would purge what was deleted less than a day ago. Pass force: true"
            " if that is meant.",
        )


class Purge:
    """One purge. Its cut-off is computed once, by the database, so that it does not move while the purge runs.

    Two of them at once share the work. Ended at any moment, what is done is done, and the next one goes on.
    """

    def __init__(self, database: Database, shape: TableShape, cutoff: Any, limits: OperationLimits) -> None:
        self._database = database
        self._shape = shape
        self._cutoff = cutoff
        self._limits = limits

    @classmethod
    async def older_than(
        cls, days: int, database: Database, shape: TableShape, limits: OperationLimits | None = None
    ) -> "Purge":
        """Of everything deleted more than `days` ago. Raises SoftDeleteUnavailableError without the column."""
        with shape.watched():
            row = await database.fetch_one(cls._statements(shape).cutoff, days)
        if row is None:
            raise DatabaseError("The database did not tell its time.")
        return cls(database, shape, row["cutoff"], limits or OperationLimits())

    @property
    def cutoff(self) -> str | None:
        """What was deleted before this moment is purged."""
        return iso_date(self._cutoff)

    async def forecast(self) -> Forecast:
        """Look, and delete nothing."""
        statements = self._statements(self._shape)
        with self._shape.watched():
            facts = await self._database.fetch_one(statements.facts, self._cutoff)
            months = await self._database.fetch(statements.months, self._cutoff)
        if facts is None:
            raise DatabaseError("The database gave no counts.")
        by_month = {row["month"]: row["count"] for row in months}
        return Forecast(facts["count"], by_month, iso_date(facts["oldest"]), iso_date(facts["newest"]))

    async def remaining(self) -> int:
        """How many there are still to purge."""
        with self._shape.watched():
            facts = await self._database.fetch_one(self._statements(self._shape).facts, self._cutoff)
        return 0 if facts is None else int(facts["count"])

    async def batches(self, size: int | None = None) -> AsyncGenerator[list[Change]]:
        """Delete until nothing is left to delete; each batch is committed when its changes are given."""
        size = min(size or self._limits.purge_batch, self._limits.purge_batch_max)
        while changes := await self._delete(size):
            yield changes
            await anyio.sleep(self._limits.purge_pause_s)

    async def _delete(self, size: int) -> list[Change]:
        # Not to be stopped half-way: what is deleted has to be told.
        with anyio.CancelScope(shield=True), self._shape.watched():
            rows = await self._database.fetch(self._statements(self._shape).delete, self._cutoff, size)
        found = [read_row(row) for row in rows]
        # Without the hash: for it every document would have to be read once more before it goes.
        return [Change(type="purged", uuid=one.id, hash=None, timestamp=one.timestamp) for one in found]

    @staticmethod
    def _statements(shape: TableShape) -> Purging:
        shape.soft_delete()  # raises when the column is missing
        return choose_purging(shape.status)
