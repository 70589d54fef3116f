"""Permanently delete old environments from the trash, in small batches while the service keeps working."""

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
    """An environment that the database refuses to delete, and the constraint, trigger or policy that keeps it."""

    uuid: str
    by: str


class Forecast(NamedTuple):
    """What a purge would delete now: the number, by month of deletion, and the oldest and newest deletion."""

    candidates: int
    months: dict[str, int]
    oldest: str | None
    newest: str | None


def check_age(days: int, force: bool, limits: OperationLimits) -> None:
    """Raises ValidationError (422) for an age that leaves no time to undo a mistake, unless `force`."""
    if days < limits.purge_days_min and not force:
        raise invalid(
            "olderThanDays",
            "numberMin",
            f"The 'olderThanDays' is {days}: this would purge what was deleted less than a day ago. Pass force: true"
            " if you mean it.",
        )


class _UndoneError(DatabaseRefusedError):
    """The table restored a deleted row before the transaction ended."""


class Purge:
    """One purge. The database computes its cut-off once, so that it does not move while the purge runs.

    Concurrent purges share the work, and an interrupted one is continued by the next. Environments that the database
    refuses to delete are skipped: `kept` counts them, and `examples` has the first of them.
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
        """A purge of everything deleted more than `days` ago, which ends early enough to answer before `deadline`.

        Raises SoftDeleteUnavailableError without the column.
        """
        with shape.watched():
            row = await database.fetch_one(cls._statements(shape).cutoff, days)
        if row is None:
            raise DatabaseError("The database did not return its time.")
        return cls(database, shape, row["cutoff"], limits or OperationLimits(), deadline)

    @property
    def cutoff(self) -> str | None:
        """The moment before which an environment must have been deleted to be purged."""
        return iso_date(self._cutoff)

    async def forecast(self) -> Forecast:
        """Count what would be deleted, and delete nothing."""
        statements = self._statements(self._shape)
        with self._shape.watched():
            facts = await self._database.fetch_one(statements.facts, self._cutoff)
            months = await self._database.fetch(statements.months, self._cutoff)
        if facts is None:
            raise DatabaseError("The database returned no counts.")
        by_month = {row["month"]: row["count"] for row in months}
        return Forecast(facts["count"], by_month, iso_date(facts["oldest"]), iso_date(facts["newest"]))

    async def remaining(self) -> int:
        """The number of environments still to purge."""
        with self._shape.watched():
            facts = await self._database.fetch_one(self._statements(self._shape).facts, self._cutoff)
        return 0 if facts is None else int(facts["count"])

    async def batches(self, size: int | None = None) -> AsyncGenerator[list[Change]]:
        """Delete until nothing is left or the time is up, and yield the changes of each batch once it is committed.
        Every candidate is tried once, so that one that is kept never holds up the others."""
        size = min(size or self._limits.purge_batch, self._limits.purge_batch_max)
        statements = self._statements(self._shape)
        moment, tried = statements.first, list[str]()  # where the next batch begins, and what was tried there
        while not self._is_over():
            with self._shape.watched():
                rows = await self._database.fetch(
                    statements.candidates, self._cutoff, moment, statements.pack_ids(tried), size
                )
            if not rows:
                return
            changes: list[Change] = []
            # Shielded: every committed deletion has to be reported.
            with anyio.CancelScope(shield=True, deadline=self._deadline):
                await self._delete([row["id"] for row in rows], changes)
            if rows[-1]["moment"] != moment:
                moment, tried = rows[-1]["moment"], []
            tried += [row["id"] for row in rows if row["moment"] == moment]
            if changes:
                yield changes
            await anyio.sleep(self._limits.purge_pause_s)

    async def _delete(self, ids: Sequence[str], changes: list[Change]) -> None:
        """Delete as many of these as possible, by bisection when one is refused. Each is added to `changes` once its
        deletion is committed, whatever happens to the others."""
        if self._is_over():
            return
        try:
            left = await self._left(await self._statement(ids, changes))
            if left:
                # They were locked or changed just now, or are kept without an error: a second attempt shows which.
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
        """Delete these in one transaction, and return the ids that were not deleted."""
        with self._shape.watched():
            rows = await across_changes(lambda: self._transaction(ids))
        found = [read_row(row) for row in rows]
        # Without the hash, which would cost reading every document once more.
        changes += [Change(type="purged", uuid=one.id, hash=None, timestamp=one.timestamp) for one in found]
        gone = {one.id for one in found}
        return [id for id in ids if id not in gone]

    async def _transaction(self, ids: Sequence[str]) -> Sequence[Row]:
        """Delete and return the rows. Raises DatabaseRefusedError, and deletes none, when the table restores one."""
        statements = self._statements(self._shape)
        async with self._database.transaction() as connection:
            rows = await connection.fetch(statements.delete, self._cutoff, statements.pack_ids(ids))
            if rows and self._shape.status.may_undo:
                if statements.settle is not None:
                    await connection.execute(statements.settle)
                if await connection.fetch(statements.there, statements.pack_ids([row["id"] for row in rows])):
                    raise _UndoneError("The database restored a deleted row.")
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
            self._guards = ", ".join(guards) or "the database, without giving a reason"
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
        shape.soft_delete("list", "delete", "soft-delete")  # raises when one of them is unavailable
        return choose_purging(shape.status)
