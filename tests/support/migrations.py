"""What the tests of the migration share: budgets without long pauses, and what they look at on the server."""

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import anyio
import asyncpg

from services.environments_store.defaults import MigrationBudgets
from services.environments_store.schema.migrator import Migrator, migrate_once
from tests.support.postgres import PostgresDatabase
from tests.support.shapes import Lines
from tests.support.warm import warm_command

__all__ = [
    "ADVISORY_LOCKS",
    "BUDGETS",
    "INDEX_STATE",
    "MIGRATORS",
    "SHORT_START",
    "VALID_INDEX",
    "Transaction",
    "alters",
    "builds",
    "child",
    "main",
    "migrator",
    "old_transaction",
]

BUDGETS = MigrationBudgets(
    start_s=30,
    reinspect_s=0.2,
    sleep_max_s=0.5,
    sleep_patient_s=0.3,
    index_retry_s=0.5,
    index_invalid_recheck_s=0.1,
    index_wait_step_s=0.05,
    reconnect_min_s=0.05,
    reconnect_max_s=0.2,
    sqlite_busy_ms=20,
)
SHORT_START = MigrationBudgets(
    start_s=0.5,
    reinspect_s=0.2,
    sleep_max_s=0.5,
    sleep_patient_s=0.3,
    index_retry_s=0.5,
    index_invalid_recheck_s=0.1,
    sqlite_busy_ms=20,
)

INDEX_STATE = """SELECT string_agg(c.relname || ' ' || i.indisvalid || ' ' || i.indisready, ', ' ORDER BY c.relname)
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = 'environments'::regclass
AND NOT i.indisprimary"""
VALID_INDEX = "environments_deleted_at_idx true true"
ADVISORY_LOCKS = (
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
MIGRATORS = (
    "FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'environments-store mig%'"
)

Transaction = asyncpg.transaction.Transaction


def migrator(url: str, lines: Lines, budgets: MigrationBudgets = BUDGETS, node_id: str = "node-1") -> Migrator:
    return Migrator(url, None, node_id=node_id, logger=lines.logger, budgets=budgets)


def alters(database: PostgresDatabase) -> int:
    """How many times somebody of ours has sent the statement that adds the column."""
    return sum("ADD COLUMN IF NOT EXISTS" in line for line in database.log().splitlines())


def builds(database: PostgresDatabase) -> int:
    """How many times somebody of ours has sent the statement that builds the index."""
    return sum(
        "CREATE INDEX CONCURRENTLY" in line and "statement:" in line and "environments-store migrate" in line
        for line in database.log().splitlines()
    )


@contextmanager
def child(url: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process of its own that migrates, with the patience to wait for two minutes in the server."""
    process = subprocess.Popen(warm_command("tests.support.migrations", url))
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """That process."""
    budgets = MigrationBudgets(lock_timeouts_ms=(120_000,), statement_timeout_s=120)
    anyio.run(partial(migrate_once, sys.argv[1], logger=logging.getLogger("child"), node_id="child", budgets=budgets))


@asynccontextmanager
async def old_transaction(
    url: str, *, isolation: str = "read_committed", application: str = "slow-report"
) -> AsyncIterator[Transaction]:
    """A transaction of somebody else that has read the table, open until it is rolled back or the block ends."""
    connection = await asyncpg.connect(url, server_settings={"application_name": application})
    try:
        transaction = connection.transaction(isolation=isolation)  # type: ignore[arg-type] # one of its literals
        await transaction.start()
        await connection.fetchval("SELECT count(*) FROM environments")
        yield transaction
    finally:
        await asyncio.shield(connection.close())
