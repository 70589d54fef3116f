"""The index and the statistics on PostgreSQL, built while the service serves."""

import math

import anyio

from services.environments_store.database.failures import StatementFailure
from services.environments_store.database.postgres_session import PostgresSession
from services.environments_store.defaults import MigrationBudgets
from services.environments_store.schema import messages
from services.environments_store.schema.index import IndexAction, next_action
from services.environments_store.schema.inspect_postgres import inspect
from services.environments_store.schema.inspection import Inspection
from services.environments_store.schema.names import INDEX
from services.environments_store.schema.outcomes import outcome_of
from services.environments_store.schema.plan import pending_steps
from services.environments_store.schema.postgres_steps import analyse, build_index, remove_index
from services.environments_store.schema.reporter import StatusReporter
from services.environments_store.schema.sql import create_index

__all__ = ["IndexBuilder"]


class IndexBuilder:
    """Runs the state machine of `index.py` under the migration lock, within a time budget."""

    def __init__(self, table: str, budgets: MigrationBudgets, reporter: StatusReporter) -> None:
        self._table = table
        self._budgets = budgets
        self._reporter = reporter
        self._next_build_at = -math.inf
        self._next_try_at = -math.inf
        self._analysed = False
        self._built = False

    def announce(self, found: Inspection) -> None:
        """Log once what needs a person; without the index the service works, only slower."""
        for index in found.indexes:
            if index.on_column and index.unique:
                self._reporter.warn(
                    f"unique {index.name}",
                    f'The index "{index.name}" is unique: two environments deleted in the same millisecond collide. '
                    "It is not used: drop it.",
                )
        action = next_action(found, self._budgets)
        if action.kind == "leave":
            self._reporter.step(None)
            self._reporter.warn("index", f"The index on deletedAt is missing: {action.detail}")
            self._reporter.detail("index", action.detail or "")
        else:
            self._reporter.forget("index")

    def postpone(self, found: Inspection, why: str) -> None:
        """Log that the lock could not be used, and do not retry for a while, for the callers' sake."""
        self._next_try_at = anyio.current_time() + self._budgets.index_retry_s
        self._reporter.step(None)
        self._reporter.warn("postponed", f"The index on deletedAt has to wait: {why}")
        for name in pending_steps(found):
            self._reporter.detail(name, why)

    def can_work(self, found: Inspection) -> bool:
        """Whether there is work to do now, which needs the lock."""
        if anyio.current_time() < self._next_try_at:
            return False
        action = next_action(found, self._budgets)
        if action.kind in ("create", "create-blocking"):
            return anyio.current_time() >= self._next_build_at
        if action.kind in ("none", "leave"):
            return self._wants_statistics(found)
        return True

    async def work(self, session: PostgresSession) -> float:
        """Do what is missing and return the seconds until the next inspection. The caller holds the lock."""
        self._reporter.forget("postponed")
        deadline = anyio.current_time() + self._budgets.index_wait_s
        suspect: str | None = None
        while True:
            found = await self._look(session)
            if not found.soft_delete or not found.writable:
                return self._budgets.reinspect_s
            action = next_action(found, self._budgets)
            if action.kind in ("none", "leave"):
                return await self._finish(session, found)
            wait_s = await self._act(session, found, action, suspect)
            suspect = action.name if action.kind == "drop" else None
            if wait_s is None or anyio.current_time() + wait_s >= deadline:
                self._reporter.step(None)
                return self._pause_s()
            await anyio.sleep(wait_s)

    async def _act(
        self, session: PostgresSession, found: Inspection, action: IndexAction, suspect: str | None
    ) -> float | None:
        """Do one action and return the pause before the next inspection, None to stop for now."""
        try:
            match action.kind:
                case "wait":
                    self._reporter.step("index", action.detail)
                    return self._budgets.index_wait_step_s
                case "drop":
                    if suspect != action.name:
                        return self._budgets.index_invalid_recheck_s
                    self._reporter.warn("drop", f'Dropping the INVALID index "{action.name}" of an interrupted build')
                    await remove_index(session, found, action.name, self._budgets)
                    self._reporter.forget("drop")
                    return 0
                case _:
                    return await self._build(session, found, action)
        except StatementFailure as failure:
            if outcome_of(failure) == "lost":
                raise
            self._reporter.step("index", failure.message)
            return self._budgets.index_invalid_recheck_s

    async def _build(self, session: PostgresSession, found: Inspection, action: IndexAction) -> float | None:
        now = anyio.current_time()
        if now < self._next_build_at:
            return None
        self._next_build_at = now + self._budgets.index_retry_s
        if action.name != INDEX:
            self._reporter.note('The name "%s" is already taken: the index is named "%s"', INDEX, action.name)
        self._reporter.note(messages.INDEX_ADDING)
        self._reporter.step("index")
        try:
            concurrently = action.kind == "create"
            statement = create_index(
                "postgresql", found.schema, found.table, name=action.name, concurrently=concurrently
            )
            await build_index(session, statement, self._budgets, concurrently=concurrently)
        except StatementFailure as failure:
            if outcome_of(failure) == "lost":
                raise
            if outcome_of(failure) != "peer":
                self._reporter.warn("build", messages.INDEX_FAILED % failure.message)
                self._reporter.forget("build")
            self._reporter.detail("index", failure.message)
            return self._budgets.poll_min_s
        # Only a failed build delays the next one.
        self._next_build_at = -math.inf
        # A new index belongs to a new column, which has no statistics.
        self._built, self._analysed = True, False
        self._reporter.note(messages.INDEX_ADDED)
        self._reporter.note('The index "%s" was built in %.1f s', action.name, anyio.current_time() - now)
        return 0

    async def _finish(self, session: PostgresSession, found: Inspection) -> float:
        if self._wants_statistics(found):
            self._reporter.step("statistics")
            try:
                await analyse(session, found, self._budgets)
            except StatementFailure as failure:
                if outcome_of(failure) == "lost":
                    raise
                self._reporter.warn("statistics", f"ANALYZE of deletedAt failed: {failure.message}")
            self._built, self._analysed = False, True
            found = await self._look(session)
        self._reporter.step(None)
        return self._budgets.reinspect_s

    def _wants_statistics(self, found: Inspection) -> bool:
        # Once in a process: a column with statistics disabled would be analysed at every inspection.
        wanted = found.needs_statistics or self._built
        return wanted and not self._analysed

    async def _look(self, session: PostgresSession) -> Inspection:
        found = await inspect(session, self._table)
        self._reporter.found(found)
        return found

    def _pause_s(self) -> float:
        return max(self._budgets.poll_max_s, min(self._next_build_at - anyio.current_time(), self._budgets.reinspect_s))
