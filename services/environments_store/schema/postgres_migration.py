"""The migration of a PostgreSQL database: inspect, lock, act, inspect. The next start completes what a killed process
left unfinished."""

import math
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial

import anyio
import msgspec

from services.environments_store.database.base import Dialect
from services.environments_store.database.failures import StatementFailure
from services.environments_store.database.postgres_session import PostgresSession
from services.environments_store.defaults import MigrationBudgets
from services.environments_store.schema.blockers import describe, who_blocks
from services.environments_store.schema.inspect_postgres import inspect
from services.environments_store.schema.inspection import Inspection
from services.environments_store.schema.lock_backoff import LockBackoff
from services.environments_store.schema.outcomes import outcome_of, public_words
from services.environments_store.schema.plan import obstacle_to_column, pending_steps, trouble
from services.environments_store.schema.postgres_index import IndexBuilder
from services.environments_store.schema.postgres_steps import (
    MigrationLock,
    SessionLock,
    add_the_column,
    create_the_tables,
    explain,
    lock_key,
    migration_lock,
    open_session,
)
from services.environments_store.schema.reporter import StatusReporter
from services.environments_store.schema.trial import try_statements

__all__ = ["PostgresMigration"]


class PostgresMigration:
    """A start waits for `bring_column`; `finish` does the rest. Both raise StatementFailure."""

    dialect: Dialect = "postgresql"

    def __init__(
        self,
        url: str,
        table: str,
        node_id: str,
        budgets: MigrationBudgets,
        reporter: StatusReporter,
        source: random.Random,
        *,
        create_table: bool = False,
    ) -> None:
        self._create_table = create_table
        self._url = url
        self._table = table
        self._node_id = node_id
        self._budgets = budgets
        self._reporter = reporter
        self._random = source
        self._backoff = LockBackoff(budgets, anyio.current_time, source)
        self._index = IndexBuilder(table, budgets, reporter)
        self._blockers_logged_at = -math.inf

    async def bring_column(self, deadline: float) -> float:
        """Try to add the column until it exists, cannot be added, or the deadline has passed.

        Returns the seconds until the next inspection.
        """
        async with self._session() as session:
            found = await self._look(session)
            if self._is_settled(found):
                return self._budgets.reinspect_s
            if session.pooled:
                # The transaction of each attempt holds the lock.
                return await self._attempts(session, found, deadline)
            async with self._locked(SessionLock(session, lock_key(found)), session, deadline, self._is_settled) as held:
                if not held:
                    return self._budgets.poll_max_s
                found = await self._look(session)
                return (
                    self._budgets.reinspect_s
                    if self._is_settled(found)
                    else await self._attempts(session, found, deadline)
                )

    async def finish(self) -> float:
        """Build a missing index and statistics; returns the seconds until the next inspection."""
        async with self._session() as session:
            found = await self._look(session)
            if not found.soft_delete or not pending_steps(found) or not found.writable:
                return self._budgets.reinspect_s
            self._index.announce(found)
            if not self._index.can_work(found):
                return self._budgets.reinspect_s
            lock = migration_lock(session, self._url, self._node_id, self._budgets, found)
            deadline = anyio.current_time() + self._budgets.index_wait_s
            try:
                async with self._locked(lock, session, deadline, lambda found: not pending_steps(found)) as held:
                    return await self._index.work(session) if held else self._budgets.poll_max_s
            except StatementFailure as failure:
                if outcome_of(failure) != "crowded":
                    raise
                self._index.postpone(found, failure.message)
                return self._budgets.reinspect_s

    @asynccontextmanager
    async def _session(self) -> AsyncGenerator[PostgresSession]:
        session = await open_session(self._url, self._node_id, self._budgets)
        try:
            yield session
        finally:
            await session.close()

    async def _look(self, session: PostgresSession) -> Inspection:
        found = await inspect(session, self._table)
        if self._create_table and found.kind is None:
            found = msgspec.structs.replace(found, seen_in=())
        if self._is_settled(found):
            found = await try_statements(found, partial(explain, session, self._budgets), self._reporter.last)
        self._reporter.found(found)
        if found.soft_delete:
            self._backoff.reset()
        return found

    def _is_settled(self, found: Inspection) -> bool:
        """Whether the column needs nothing, or nothing can be done. A lost column is added only by a person."""
        return found.soft_delete or self._reporter.lost or obstacle_to_column(found) is not None

    @asynccontextmanager
    async def _locked(
        self,
        lock: MigrationLock,
        session: PostgresSession,
        deadline: float,
        is_settled: Callable[[Inspection], bool],
    ) -> AsyncGenerator[bool]:
        """Poll for the lock, and inspect in between whether its holder has finished the work."""
        try:
            held = await lock.try_acquire()
            slower = 1.0
            while not held:
                self._reporter.blocked("another node is migrating the table")
                if anyio.current_time() >= deadline:
                    break
                pause_s = self._random.uniform(self._budgets.poll_min_s, self._budgets.poll_max_s) * slower
                await anyio.sleep(min(pause_s, self._budgets.sleep_patient_s))
                slower *= 1.1
                if is_settled(await self._look(session)):
                    break
                held = await lock.try_acquire()
            yield held
        finally:
            await _release_quietly(lock)

    async def _attempts(self, session: PostgresSession, found: Inspection, deadline: float) -> float:
        while not self._is_settled(found):
            pause_s = await self._attempt(session, found)
            found = await self._look(session)
            if self._is_settled(found):
                break
            remaining_s = deadline - anyio.current_time()
            if remaining_s <= 0 or pause_s >= self._budgets.sleep_max_s:
                return pause_s
            await anyio.sleep(min(pause_s, remaining_s))
        return self._budgets.reinspect_s

    async def _attempt(self, session: PostgresSession, found: Inspection) -> float:
        """Try once to create the table or add the column; returns the pause after a failure."""
        lock_timeout_ms = self._backoff.next_lock_timeout_ms()
        try:
            if found.kind is None:
                self._reporter.note("Creating the tables in schema %s", found.schema)
                held = await create_the_tables(session, found, self._budgets)
            else:
                self._reporter.adding()
                held = await add_the_column(session, found, self._budgets, lock_timeout_ms)
                if held:
                    self._reporter.added()
            if not held:
                self._reporter.blocked("another node is migrating the table")
            return self._backoff.pause_s()
        except StatementFailure as failure:
            return await self._after(failure, session, found)

    async def _after(self, failure: StatementFailure, session: PostgresSession, found: Inspection) -> float:
        match outcome_of(failure):
            case "lost":
                raise failure
            case "peer" | "collided":
                return self._budgets.poll_min_s
            case "blocked":
                await self._log_blockers(session, found)
                return self._backoff.pause_s()
            case "forbidden":
                self._reporter.trouble(trouble("forbidden", _needs_person(failure)))
            case "unsupported":
                self._reporter.trouble(trouble("unsupported", _needs_person(failure), public_words(failure)))
            case "read-only":
                text = f"The database is read-only: {failure.message}"
                self._reporter.trouble(trouble("read-only", text, "The database is read-only."))
            case _:
                text = f"The column could not be added: {failure.message}"
                self._reporter.trouble(trouble("failed", text, public_words(failure)))
        return self._budgets.sleep_max_s

    async def _log_blockers(self, session: PostgresSession, found: Inspection) -> None:
        text = describe(await who_blocks(session, found.oid))
        self._reporter.blocked(text)
        now = anyio.current_time()
        if now - self._blockers_logged_at >= self._budgets.blockers_every_s:
            self._blockers_logged_at = now
            self._reporter.note("Adding the deletedAt column has to wait: %s", text)


async def _release_quietly(lock: MigrationLock) -> None:
    """Release the lock; a lost connection has released it already."""
    with anyio.CancelScope(shield=True), anyio.move_on_after(1):
        try:
            await lock.release()
        except StatementFailure:
            return


def _needs_person(failure: StatementFailure) -> str:
    return f"The column could not be added: {failure.message}. `environments-store migrate sql` prints the SQL."
