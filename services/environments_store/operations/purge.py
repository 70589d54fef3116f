"""Delete for ever what has been in the trash for long: in small batches, beside a service that goes on working."""

import math
from collections.abc import AsyncGenerator, Sequence
from typing import Any, NamedTuple

import anyio

from services.environments_store.database.base import Database, Row
from services.environments_store.defaults import OperationLimits
from services.environments_store.document import invalid
from services.environments_store.errors import DatabaseError, DatabaseRefusedError
from services.environments_store.model import Change, iso_date, read_row
from services.environments_store.outcome import across_changes
from services.environments_store.queries.purging import Purging, choose_purging
from services.environments_store.schema.guards import read_guards
from services.environments_store.shape import TableShape

__all__ = ["Forecast", "Kept", "Purge", "check_age"]


class Kept(NamedTuple):
    """An environment that the database does not let go, and what keeps it: a constraint, a trigger, a policy."""

    uuid: str
    by: str


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


class _UndoneError(DatabaseRefusedError):
    """What was deleted is there again before the statement is over."""


class Purge:
    """One purge. Its cut-off is computed once, by the database, so that it does not move while the purge runs.

    Two of them at once share the work. Ended at any moment, what is done is done, and the next one goes on. What the
    database keeps is passed over: `kept` counts it, and `examples` are the first of it.
    """

    def __init__(
        self, database: Database, shape: TableShape, cutoff: Any, limits: OperationLimits, deadline: float | None
    ) -> None:
        self._database = database
        self._shape = shape
        self._cutoff = cutoff
        self._limits = limits
        self._deadline = math.inf if deadline is None else deadline
        self._stop_at = math.inf
        if deadline is not None:
            now = anyio.current_time()
            self._stop_at = now + (deadline - now) * (1 - limits.purge_margin)
        self._guards: str | None = None
        self.kept = 0
        self.examples: list[Kept] = []

    @classmethod
    async def older_than(
        cls,
        days: int,
        database: Database,
        shape: TableShape,
        limits: OperationLimits | None = None,
        deadline: float | None = None,
    ) -> "Purge":
        """Of everything deleted more than `days` ago, ended in time for an answer before the `deadline`. Raises
        SoftDeleteUnavailableError without the column."""
        with shape.watched():
            row = await database.fetch_one(cls._statements(shape).cutoff, days)
        if row is None:
            raise DatabaseError("The database did not tell its time.")
        return cls(database, shape, row["cutoff"], limits or OperationLimits(), deadline)

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
        """Delete until nothing is left to delete, or the time is up; each batch is committed when its changes are
        given. Every candidate is tried once: what is kept holds up none of the others."""
        size = min(size or self._limits.purge_batch, self._limits.purge_batch_max)
        statements = self._statements(self._shape)
        moment, tried = statements.first, list[str]()  # of those at this moment, which is where the next batch begins
        while not self._is_over():
            with self._shape.watched():
                rows = await self._database.fetch(
                    statements.candidates, self._cutoff, moment, statements.pack_ids(tried), size
                )
            if not rows:
                return
            changes: list[Change] = []
            # Not to be stopped half-way: what is deleted has to be told.
            with anyio.CancelScope(shield=True, deadline=self._deadline):
                await self._delete([row["id"] for row in rows], changes)
            if rows[-1]["moment"] != moment:
                moment, tried = rows[-1]["moment"], []
            tried += [row["id"] for row in rows if row["moment"] == moment]
            if changes:
                yield changes
            await anyio.sleep(self._limits.purge_pause_s)

    async def _delete(self, ids: Sequence[str], changes: list[Change]) -> None:
        """Delete all of these that can be: where one is refused, by halves until it is alone. Each is added to
        `changes` when its deletion is committed, whatever happens to the others."""
        if self._is_over():
            return
        try:
            left = await self._left(await self._statement(ids, changes))
            if left:
                # Locked or changed a moment ago; or kept without an error, which shows when it is tried again.
                for id in await self._left(await self._statement(left, changes)):
                    self._keep(id, await self._name_guards())
            return
        except DatabaseRefusedError as error:
            if len(ids) == 1:
                self._keep(ids[0], await self._name_keeper(error))
                return
        middle = len(ids) // 2
        await self._delete(ids[:middle], changes)
        await self._delete(ids[middle:], changes)

    async def _statement(self, ids: Sequence[str], changes: list[Change]) -> list[str]:
        """Delete these in one transaction, and return those that were not."""
        with self._shape.watched():
            rows = await across_changes(lambda: self._transaction(ids))
        found = [read_row(row) for row in rows]
        # Without the hash: for it every document would have to be read once more before it goes.
        changes += [Change(type="purged", uuid=one.id, hash=None, timestamp=one.timestamp) for one in found]
        gone = {one.id for one in found}
        return [id for id in ids if id not in gone]

    async def _transaction(self, ids: Sequence[str]) -> Sequence[Row]:
        """The rows that were deleted. Raises DatabaseRefusedError, and deletes none, when one of them is back before
        the end."""
        statements = self._statements(self._shape)
        async with self._database.transaction() as connection:
            rows = await connection.fetch(statements.delete, self._cutoff, statements.pack_ids(ids))
            if rows and self._shape.status.may_undo:
                if statements.settle is not None:
                    await connection.execute(statements.settle)
                if await connection.fetch(statements.there, statements.pack_ids([row["id"] for row in rows])):
                    raise _UndoneError("The database put back what was deleted.")
        return rows

    async def _left(self, ids: Sequence[str]) -> list[str]:
        if not ids:
            return []
        statements = self._statements(self._shape)
        with self._shape.watched():
            rows = await self._database.fetch(statements.left, self._cutoff, statements.pack_ids(ids))
        return [row["id"] for row in rows]

    async def _name_guards(self, *, afterwards: bool = False) -> str:
        if self._guards is None:
            guards = await read_guards(self._database, "DELETE", afterwards=afterwards)
            self._guards = ", ".join(guards) or "the database, without a reason"
        return self._guards

    async def _name_keeper(self, error: DatabaseRefusedError) -> str:
        if isinstance(error, _UndoneError):
            return await self._name_guards(afterwards=True)
        constraint = (error.data or {}).get("constraint")
        return f"constraint {constraint}" if constraint else error.public or str(error)

    def _keep(self, uuid: str, by: str) -> None:
        self.kept += 1
        if len(self.examples) < self._limits.kept_examples:
            self.examples.append(Kept(uuid, by))

    def _is_over(self) -> bool:
        return anyio.current_time() >= self._stop_at

    @staticmethod
    def _statements(shape: TableShape) -> Purging:
        shape.soft_delete("list", "delete", "soft-delete")  # raises when it cannot
        return choose_purging(shape.status)
