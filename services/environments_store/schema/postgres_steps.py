"""The statements of the migration on PostgreSQL.

Every function is atomic and raises StatementFailure.
"""

from typing import Protocol

from services.environments_store.database.failures import CROWDED, StatementFailure
from services.environments_store.database.postgres_session import PostgresSession
from services.environments_store.defaults import MigrationBudgets
from services.environments_store.schema.inspect_postgres import inspect
from services.environments_store.schema.inspection import Inspection
from services.environments_store.schema.names import COLUMN, migration_name, qualified, quoted
from services.environments_store.schema.sql import add_column, create_tables, drop_index

__all__ = [
    "MigrationLock",
    "add_the_column",
    "analyse",
    "build_index",
    "create_the_tables",
    "explain",
    "lock_key",
    "migration_lock",
    "open_session",
    "remove_index",
]

TRY_LOCK = "SELECT pg_try_advisory_lock(hashtextextended($1, 0))"
UNLOCK = "SELECT pg_advisory_unlock(hashtextextended($1, 0))"
TRY_TRANSACTION_LOCK = "SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0))"
FIRST_CHECKING_VERSION = 140000
FIRST_TRANSACTION_TIMEOUT_VERSION = 170000


async def open_session(url: str, node_id: str, budgets: MigrationBudgets) -> PostgresSession:
    """A connection of the migration's own. It overrides the role's timeouts, except behind a pooler, where a SET would
    stay with the next user of the server process."""
    session = await PostgresSession.connect(
        url,
        application_name=migration_name(node_id),
        connect_timeout_s=budgets.connect_timeout_s,
        answer_timeout_s=budgets.statement_timeout_s * 2,
    )
    if session.pooled:
        return session
    settings = [
        f"SET statement_timeout = {_milliseconds(budgets.statement_timeout_s)}",
        "SET idle_in_transaction_session_timeout = '30s'",
    ]
    if session.version >= FIRST_TRANSACTION_TIMEOUT_VERSION:
        # This timeout would close the connection, and so release the lock of the migration.
        settings.append("SET transaction_timeout = 0")
    try:
        await session.run("; ".join(settings))
        if session.version >= FIRST_CHECKING_VERSION:
            await _watch_client(session)
    except BaseException:
        await session.close()
        raise
    return session


async def _watch_client(session: PostgresSession) -> None:
    """Have the server end the statement of a killed client, whose ALTER would otherwise keep blocking every reader."""
    try:
        await session.run("SET client_connection_check_interval = '1s'")
    except StatementFailure as failure:
        if failure.lost:
            raise


def lock_key(found: Inspection) -> str:
    """The key of a table; PostgreSQL's advisory locks are per database."""
    return f"environments-store/migrate/{found.schema}.{found.table}"


class MigrationLock(Protocol):
    """Held by one node at a time, and polled: a statement waiting for it would block the index build indefinitely."""

    async def try_acquire(self) -> bool:
        """Raises StatementFailure, also when the pooler has too few connections to work under the lock."""

    async def release(self) -> None: ...


class SessionLock:
    """Held by the connection itself."""

    def __init__(self, session: PostgresSession, key: str) -> None:
        self._session = session
        self._key = key
        self._held = False

    async def try_acquire(self) -> bool:
        self._held = self._held or bool(await self._session.fetch_value(TRY_LOCK, self._key))
        return self._held

    async def release(self) -> None:
        if self._held and not self._session.closed:
            self._held = False
            await self._session.fetch_value(UNLOCK, self._key)


class PooledLock:
    """Held by an open transaction of a second connection beside the `worker`, since behind a pooler only a transaction
    keeps its server process."""

    def __init__(self, worker: PostgresSession, url: str, node_id: str, budgets: MigrationBudgets, key: str) -> None:
        self._worker = worker
        self._url = url
        self._node_id = node_id
        self._budgets = budgets
        self._key = key
        self._session: PostgresSession | None = None

    async def try_acquire(self) -> bool:
        if self._session is not None:
            return True
        session = await open_session(self._url, self._node_id, self._budgets)
        try:
            # REPEATABLE READ, a role's possible default, would keep its snapshot, which the build would wait for.
            await session.run("BEGIN ISOLATION LEVEL READ COMMITTED")
            await session.run("SET LOCAL idle_in_transaction_session_timeout = 0")
            held = bool(await session.fetch_value(TRY_TRANSACTION_LOCK, self._key))
            # A query keeps its snapshot until the next statement, and the build would wait for it.
            await session.run("SELECT 1")
        except BaseException:
            await session.close()
            raise
        if not held:
            await session.close()
            return False
        self._session = session
        if not await self._worker.answers(self._budgets.pooler_answer_s):
            await self.release()
            raise _crowded(self._budgets)
        return True

    async def release(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            try:
                await session.run("ROLLBACK")
            finally:
                await session.close()


def _crowded(budgets: MigrationBudgets) -> StatementFailure:
    return StatementFailure(
        f"The pooler gave no second connection within {budgets.pooler_answer_s:g} s beside the one that holds the lock"
        " of the migration: its pool has only one connection, or all of them are busy. Give it two or more"
        " (default_pool_size in PgBouncer), or run `environments-store migrate run` with the direct address of the"
        " database",
        sqlstate=CROWDED,
    )


def migration_lock(
    session: PostgresSession, url: str, node_id: str, budgets: MigrationBudgets, found: Inspection
) -> MigrationLock:
    """The lock of this table, of the kind that works on this connection."""
    key = lock_key(found)
    return PooledLock(session, url, node_id, budgets, key) if session.pooled else SessionLock(session, key)


async def create_the_tables(session: PostgresSession, found: Inspection, budgets: MigrationBudgets) -> bool:
    """Create both tables and the index in one transaction; False when another node behind the pooler does it."""
    return await _in_transaction(session, found, budgets, 1000, create_tables("postgresql", found.schema))


async def add_the_column(
    session: PostgresSession, found: Inspection, budgets: MigrationBudgets, lock_timeout_ms: int
) -> bool:
    """Try once to add the column; False when another node behind the pooler does it."""
    return await _in_transaction(
        session, found, budgets, lock_timeout_ms, (add_column("postgresql", found.schema, found.table),)
    )


async def _in_transaction(
    session: PostgresSession,
    found: Inspection,
    budgets: MigrationBudgets,
    lock_timeout_ms: int,
    statements: tuple[str, ...],
) -> bool:
    begin = (
        f"BEGIN; SET LOCAL lock_timeout = {lock_timeout_ms}; "
        f"SET LOCAL statement_timeout = {_milliseconds(budgets.statement_timeout_s)}"
    )
    try:
        if not session.pooled:
            # One round trip: a stalled client cannot keep the table locked between ALTER and COMMIT.
            await session.run("; ".join((begin, *statements, "COMMIT")))
            return True
        await session.run(begin)
        held = await session.fetch_value(TRY_TRANSACTION_LOCK, lock_key(found))
        if not held or (await inspect(session, found.table)).soft_delete:
            await session.run("ROLLBACK")
            return False
        await session.run("; ".join((*statements, "COMMIT")))
    except StatementFailure as failure:
        if not failure.lost:
            await session.run("ROLLBACK")
        raise
    return True


async def explain(session: PostgresSession, budgets: MigrationBudgets, statements: tuple[str, ...]) -> None:
    """Plan the statements without running them, with the shortest lock timeout. In one round trip, so that a stalled
    client keeps no lock."""
    planned = "; ".join(f"EXPLAIN {statement}" for statement in statements)
    try:
        await session.run(f"BEGIN; SET LOCAL lock_timeout = {budgets.lock_timeouts_ms[0]}; {planned}; ROLLBACK")
    except StatementFailure as failure:
        if not failure.lost:
            await session.run("ROLLBACK")
        raise


async def build_index(
    session: PostgresSession, statement: str, budgets: MigrationBudgets, *, concurrently: bool = True
) -> None:
    """Build the index outside a transaction and without timeouts: `lock_timeout` also applies while the build waits for
    old transactions, and a cancelled build leaves an INVALID index."""
    lock_timeout_ms = 0 if concurrently else budgets.lock_timeouts_ms[-1]
    await _run_with(session, statement, budgets, lock_timeout_ms=lock_timeout_ms, statement_timeout_ms=0)


async def remove_index(session: PostgresSession, found: Inspection, name: str, budgets: MigrationBudgets) -> None:
    """Drop an INVALID index; wait briefly for the sessions that use it."""
    lock_timeout_ms = _milliseconds(budgets.index_drop_lock_timeout_s)
    statement = drop_index(found.schema, name)
    await _run_with(session, statement, budgets, lock_timeout_ms=lock_timeout_ms, statement_timeout_ms=0)


async def analyse(session: PostgresSession, found: Inspection, budgets: MigrationBudgets) -> None:
    """Collect statistics of the new column."""
    statement = f"ANALYZE {qualified(found.schema, found.table)} ({quoted(COLUMN)})"
    timeout_ms = _milliseconds(budgets.statistics_timeout_s)
    await _run_with(session, statement, budgets, lock_timeout_ms=timeout_ms, statement_timeout_ms=timeout_ms)


async def _run_with(
    session: PostgresSession,
    statement: str,
    budgets: MigrationBudgets,
    *,
    lock_timeout_ms: int,
    statement_timeout_ms: int,
) -> None:
    """Run one long statement with its own timeouts; behind a pooler the role's defaults apply."""
    if session.pooled:
        await session.run(statement, unbounded=True)
        return
    await session.run(f"SET lock_timeout = {lock_timeout_ms}")
    await session.run(f"SET statement_timeout = {statement_timeout_ms}")
    try:
        await session.run(statement, unbounded=True)
    finally:
        if not session.closed:
            await session.run(f"SET statement_timeout = {_milliseconds(budgets.statement_timeout_s)}")


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
