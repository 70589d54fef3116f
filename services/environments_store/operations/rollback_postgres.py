"""The rollback on PostgreSQL: one transaction, which blocks writers, and readers for 250 ms at most.

It takes a lock that blocks only writes, copies the trash, counts it and, if wanted, deletes it. Then it drops the
column and its indexes, in short attempts to get the exclusive lock.
"""

import logging
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio

from services.environments_store.database.base import Row
from services.environments_store.database.failures import StatementFailure, service_errors
from services.environments_store.database.postgres_session import PostgresSession
from services.environments_store.defaults import MigrationBudgets, OperationLimits
from services.environments_store.errors import OperationError
from services.environments_store.operations.serving_lock import APPLICATION, serving_key
from services.environments_store.schema.blockers import describe, who_blocks
from services.environments_store.schema.guards import KEPT
from services.environments_store.schema.inspect_postgres import inspect
from services.environments_store.schema.inspection import Inspection
from services.environments_store.schema.lock_backoff import LockBackoff
from services.environments_store.schema.names import COLUMN, counted, qualified, quoted
from services.environments_store.schema.outcomes import outcome_of
from services.environments_store.schema.postgres_steps import lock_key, open_session

__all__ = ["drop_column", "nodes_of"]

TRY_LOCK = "SELECT pg_try_advisory_lock(hashtextextended($1, 0))"
UNLOCK = "SELECT pg_advisory_unlock(hashtextextended($1, 0))"
TRY_TRANSACTION_LOCK = "SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0))"
# The connections of a node: the one with the serving lock, and those of its pool. Every role may see their names.
NODES = """
SELECT application_name AS application, host(client_addr) AS address,
       bool_or(EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.locktype = 'advisory' AND l.granted)) AS holds
FROM pg_stat_activity a WHERE datname = current_database() AND pid <> pg_backend_pid()
  AND (application_name = 'environments-store' OR starts_with(application_name, $1)) GROUP BY 1, 2 ORDER BY 1, 2
"""
_COPY_TIMEOUT_S = 3_600.0  # copying a trash of any size; readers do not wait for it


async def nodes_of(url: str) -> tuple[str, ...]:
    """The nodes that serve this table now."""
    with service_errors(write=False):
        session = await open_session(url, "rollback", MigrationBudgets())
        try:
            return await _nodes(session, await inspect(session))
        finally:
            await session.close()


async def _nodes(session: PostgresSession, found: Inspection) -> tuple[str, ...]:
    rows = await session.fetch(NODES, APPLICATION)
    named = [row for row in rows if row["application"].startswith(APPLICATION)]
    serving = tuple(map(_serves, named or rows))
    if serving or session.pooled:
        return serving
    # A node whose application name this role may not see still holds the lock.
    alone = await session.fetch_value(TRY_LOCK, serving_key(found))
    if alone:
        await session.fetch_value(UNLOCK, serving_key(found))
    return () if alone else ("A node serves the table",)


def _serves(row: Row) -> str:
    name = row["application"].removeprefix(APPLICATION).strip() or "a node"
    # Behind a pooler no lock is held, and the pooler's connection keeps the name for a while after its node has ended.
    doubt = "" if row["holds"] else ", or served until recently if this is the connection of a pooler"
    return f"'{name}' serves from {row['address'] or 'here'}{doubt}"


async def drop_column(
    url: str,
    found: Inspection,
    copy: str,
    remove: bool,
    *,
    force: bool,
    logger: logging.Logger,
    limits: OperationLimits | None = None,
) -> int:
    """Drop the column and return the number of rows in the copy. Raises OperationError; then nothing was changed."""
    limits = limits or OperationLimits()
    budgets = MigrationBudgets(statement_timeout_s=_COPY_TIMEOUT_S)
    try:
        session = await open_session(url, "rollback", budgets)
        try:
            async with _exclusively(session, found, force):
                return await _in_transaction(session, found, copy, remove, limits, logger)
        finally:
            await session.close()
    except StatementFailure as failure:
        hint = f" {failure.hint}" if failure.hint else ""
        raise OperationError(f"The rollback failed, and nothing was changed: {failure}.{hint}") from failure


@asynccontextmanager
async def _exclusively(session: PostgresSession, found: Inspection, force: bool) -> AsyncGenerator[None]:
    """Keep nodes from serving and migrating until the session ends, which releases the locks."""
    if session.pooled:
        # A session's lock would stay behind in the pooler: only the transaction takes locks.
        if not force:
            raise OperationError(
                "A transaction pooler is in front of the database, so serving nodes cannot be detected. Nothing was"
                " changed. Give the direct address of the database, or stop every node and pass --force."
            )
    else:
        for key, what in ((lock_key(found), "migrating"), (serving_key(found), "serving")):
            if not await session.fetch_value(TRY_LOCK, key) and not force:
                raise OperationError(f"A node is {what} the table now: nothing was changed. Stop it and try again.")
    yield


async def _in_transaction(
    session: PostgresSession,
    found: Inspection,
    copy: str,
    remove: bool,
    limits: OperationLimits,
    logger: logging.Logger,
) -> int:
    table, target = qualified(found.schema, found.table), qualified(found.schema, copy)
    trash = f"FROM {table} WHERE {quoted(COLUMN)} IS NOT NULL"
    deadline = anyio.current_time() + limits.rollback_wait_s
    await session.run("BEGIN")
    await session.run(
        "SET LOCAL idle_in_transaction_session_timeout = 0;"
        f" SET LOCAL statement_timeout = {int(_COPY_TIMEOUT_S * 1000)}"
    )
    if session.pooled:
        for key in (lock_key(found), serving_key(found)):
            await session.fetch_value(TRY_TRANSACTION_LOCK, key)
    await _patiently(session, found, f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE", deadline, logger)
    count = int(await session.fetch_value(f"SELECT count(*) {trash}"))
    await session.run(f"CREATE TABLE {target} AS SELECT * {trash}")
    copied = int(await session.fetch_value(f"SELECT count(*) FROM {target}"))
    if copied != count:
        raise OperationError(
            f"The copy has {counted(copied, 'row', 'rows')}, but the trash {count}: nothing was changed. Try again."
        )
    if remove:
        await session.run(f"DELETE {trash}")
        if kept := int(await session.fetch_value(f"SELECT count(*) {trash}")):
            raise OperationError(KEPT.format(kept))
    deadline = anyio.current_time() + limits.rollback_wait_s
    await _patiently(session, found, f"ALTER TABLE {table} DROP COLUMN {quoted(COLUMN)}", deadline, logger)
    await session.run("COMMIT")
    return copied


async def _patiently(
    session: PostgresSession, found: Inspection, statement: str, deadline: float, logger: logging.Logger
) -> None:
    """Run a statement that needs a lock, in short attempts until the deadline, so that no session queues for long."""
    backoff = LockBackoff(MigrationBudgets(), anyio.current_time, random.Random())
    logged = False
    while True:
        await session.run("SAVEPOINT attempt")
        await session.run(f"SET LOCAL lock_timeout = {backoff.next_lock_timeout_ms()}")
        try:
            await session.run(statement)
        except StatementFailure as failure:
            if outcome_of(failure) != "blocked":
                raise
            await session.run("ROLLBACK TO SAVEPOINT attempt")
            who = describe(await who_blocks(session, found.oid))
            pause_s = backoff.pause_s()
            if anyio.current_time() + pause_s >= deadline:
                raise OperationError(f"The table could not be locked, and nothing was changed. {who}") from failure
            if not logged:
                logged = True
                logger.warning("The rollback is waiting for a lock: %s", who)
            await anyio.sleep(pause_s)
        else:
            await session.run("SET LOCAL lock_timeout = 0")
            return
