"""The migration on PostgreSQL when processes are killed, servers restart and poolers stand between."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import asyncpg
import pytest

from services.environments_store.database.connect import open_database
from services.environments_store.defaults import DatabaseSettings, MigrationBudgets
from services.environments_store.errors import DatabaseUnavailableError
from services.environments_store.schema.messages import ADDED, ADDING, EXISTS
from services.environments_store.schema.migrator import Migrator, migrate_once
from tests.support.postgres import PostgresDatabase, PostgresServer
from tests.support.postgres_proxy import PostgresProxy
from tests.support.shapes import Lines, count_inspections, postgres_sql, rows_of_postgres, until

pytestmark = pytest.mark.anyio

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
)
INDEX_STATE = """SELECT string_agg(c.relname || ' ' || i.indisvalid, ', ') FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = 'environments'::regclass AND NOT i.indisprimary"""
VALID_INDEX = "environments_deleted_at_idx true"
MIGRATORS = (
    "FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'environments-store mig%'"
)
ADVISORY_LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"

CHILD = """
import sys, logging
import anyio
from services.environments_store.defaults import MigrationBudgets
from services.environments_store.schema.migrator import migrate_once
budgets = MigrationBudgets(lock_timeouts_ms=(120_000,), statement_timeout_s=120)
anyio.run(lambda: migrate_once(sys.argv[1], logger=logging.getLogger("child"), node_id="child", budgets=budgets))
"""


@pytest.fixture
def lines(request: pytest.FixtureRequest) -> Iterator[Lines]:
    handler = Lines(request.node.name)
    yield handler
    handler.logger.removeHandler(handler)


@contextmanager
def child(url: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process of its own that migrates, with the patience to wait for two minutes in the server."""
    process = subprocess.Popen([sys.executable, "-c", CHILD, url], env=dict(os.environ))
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def test_a_killed_process_leaves_no_alter_that_goes_on_blocking_readers(
    postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    blocker = await asyncpg.connect(postgres_database.url)
    try:
        transaction = blocker.transaction()
        await transaction.start()
        await blocker.fetchval("SELECT count(*) FROM environments")
        with child(postgres_database.url) as process:
            waiting = f"SELECT count(*) {MIGRATORS} AND wait_event_type = 'Lock'"
            await until(lambda: postgres_database.run_sql(waiting) == "1")
            process.send_signal(signal.SIGKILL)
            await until(lambda: postgres_database.run_sql(f"SELECT count(*) {MIGRATORS}") == "0")
        # The blocker still holds its lock, and a reader gets through: nothing waits for the table any more.
        assert rows_of_postgres(postgres_database.run_sql).endswith(" of 3")
        assert postgres_database.run_sql(ADVISORY_LOCKS) == "0"
        await transaction.rollback()
    finally:
        await blocker.close()

    await migrate_once(postgres_database.url, logger=lines.logger, budgets=BUDGETS)
    assert lines.guide_lines() == [ADDING, ADDED]


async def test_a_process_killed_while_it_builds_the_index_costs_a_repair_at_the_next_start(
    postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_half"))
    old = await asyncpg.connect(postgres_database.url)
    try:
        transaction = old.transaction(isolation="repeatable_read")
        await transaction.start()
        await old.fetchval("SELECT count(*) FROM environments")
        with child(postgres_database.url) as process:
            await until(lambda: "false" in postgres_database.run_sql(INDEX_STATE))
            process.send_signal(signal.SIGKILL)
            await until(lambda: postgres_database.run_sql(f"SELECT count(*) {MIGRATORS}") == "0")
        assert postgres_database.run_sql(INDEX_STATE) == "environments_deleted_at_idx false"
        await transaction.rollback()
    finally:
        await old.close()

    status = await migrate_once(postgres_database.url, logger=lines.logger, budgets=BUDGETS)
    assert {step.state for step in status.steps} == {"done"}
    assert postgres_database.run_sql(INDEX_STATE) == VALID_INDEX
    assert postgres_database.run_sql(ADVISORY_LOCKS) == "0"


async def test_a_backend_killed_while_it_builds_the_index_is_made_good_without_a_restart(
    postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_half"))
    old = await asyncpg.connect(postgres_database.url)
    one = Migrator(postgres_database.url, None, node_id="node-1", logger=lines.logger, budgets=BUDGETS)
    try:
        transaction = old.transaction(isolation="repeatable_read")
        await transaction.start()
        await old.fetchval("SELECT count(*) FROM environments")
        await one.prepare()
        async with anyio.create_task_group() as group:
            group.start_soon(one.run)
            await until(lambda: "false" in postgres_database.run_sql(INDEX_STATE))
            postgres_database.run_sql(f"SELECT pg_terminate_backend(pid) {MIGRATORS}")
            await until(lambda: one.status.reason == "unavailable")
            assert one.status.soft_delete
            await transaction.rollback()
            await until(lambda: {step.state for step in one.status.steps} == {"done"})
            group.cancel_scope.cancel()
    finally:
        await old.close()
    assert postgres_database.run_sql(INDEX_STATE) == VALID_INDEX


async def test_a_failed_build_is_cleaned_up_at_once_and_tried_again_later(
    postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_half"))
    old = await asyncpg.connect(postgres_database.url)
    one = Migrator(postgres_database.url, None, node_id="node-1", logger=lines.logger, budgets=BUDGETS)
    try:
        transaction = old.transaction(isolation="repeatable_read")
        await transaction.start()
        await old.fetchval("SELECT count(*) FROM environments")
        await one.prepare()
        async with anyio.create_task_group() as group:
            group.start_soon(one.run)
            await until(lambda: "false" in postgres_database.run_sql(INDEX_STATE))
            postgres_database.run_sql(f"SELECT pg_cancel_backend(pid) {MIGRATORS}")
            await until(lambda: any("Failed to create deletedAt index" in message for message in lines.messages))
            await transaction.rollback()
            await until(lambda: {step.state for step in one.status.steps} == {"done"})
            group.cancel_scope.cancel()
    finally:
        await old.close()
    assert any("Dropping the INVALID index" in message for message in lines.messages)
    assert postgres_database.run_sql(INDEX_STATE) == VALID_INDEX


async def test_a_commit_whose_answer_was_lost_is_looked_up(postgres_database: PostgresDatabase, lines: Lines) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    async with PostgresProxy(postgres_database.url).running() as proxy:
        proxy.cut_answer = b"ADD COLUMN"
        status = await migrate_once(proxy.url, logger=lines.logger, budgets=BUDGETS)
    assert proxy.cut == 1
    assert status.state == "ready"
    assert lines.guide_lines()[0] == ADDING
    assert len(lines.guide_lines()) == 2
    assert sum("ADD COLUMN IF NOT EXISTS" in line for line in postgres_database.log().splitlines()) == 1


async def test_through_a_pooler_two_starters_never_both_migrate_and_nothing_leaks_into_a_session(
    postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    postgres_database.run_sql(f"ALTER DATABASE \"{postgres_database.name}\" SET log_statement = 'all'")
    async with PostgresProxy(postgres_database.url, pooler=True).running() as proxy:
        starters = [
            Migrator(proxy.url, None, node_id=f"node-{number}", logger=lines.logger, budgets=BUDGETS)
            for number in range(4)
        ]

        async def start(one: Migrator) -> None:
            await one.prepare()
            await one.complete()

        async with anyio.create_task_group() as group:
            for one in starters:
                group.start_soon(start, one)

    assert {one.status.state for one in starters} == {"ready"}
    assert postgres_database.run_sql(INDEX_STATE) == VALID_INDEX
    log = [line for line in postgres_database.log().splitlines() if "environments-store migrate" in line]
    assert sum("CREATE INDEX CONCURRENTLY" in line for line in log) == 1
    assert not any("pg_try_advisory_lock(" in line for line in log)
    statements = [line.partition("statement: ")[2] for line in log if "statement: " in line]
    assert not any(statement.startswith("SET ") and not statement.startswith("SET LOCAL") for statement in statements)
    assert lines.guide_lines().count(ADDED) == 1


async def test_a_server_that_restarts_is_met_again_and_the_work_goes_on(lines: Lines) -> None:
    with PostgresServer() as server:
        server.run_sql(postgres_sql("p_c"))
        one = Migrator(server.admin_url, None, node_id="node-1", logger=lines.logger, budgets=BUDGETS)
        await anyio.to_thread.run_sync(server.stop)
        with pytest.raises(DatabaseUnavailableError):
            await one.prepare()
        await anyio.to_thread.run_sync(server.start)
        await one.prepare()
        async with anyio.create_task_group() as group:
            group.start_soon(one.run)
            await until(lambda: {step.state for step in one.status.steps} == {"done"})
            for stop in (server.stop, server.kill):
                await anyio.to_thread.run_sync(stop)
                await until(lambda: one.status.reason == "unavailable")
                assert one.status.soft_delete
                await anyio.to_thread.run_sync(server.start)
                await until(lambda: one.status.state == "ready")
            group.cancel_scope.cancel()
    assert lines.guide_lines() == [ADDING, ADDED]


async def test_a_pool_learns_of_a_column_whose_type_a_person_changes(
    postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_man"))
    database = open_database(postgres_database.url, DatabaseSettings(pool_size=1))
    await database.open()
    one = Migrator(postgres_database.url, database, node_id="node-1", logger=lines.logger, budgets=BUDGETS)
    await one.prepare()
    trash = 'SELECT "deletedAt" FROM environments WHERE "deletedAt" IS NOT NULL'
    assert [row["deletedAt"].tzinfo for row in await database.fetch(trash)] == [None]
    async with anyio.create_task_group() as group:
        group.start_soon(one.run)
        postgres_database.run_sql(
            "SET TimeZone = 'UTC'; ALTER TABLE environments ALTER COLUMN \"deletedAt\" TYPE TIMESTAMPTZ"
        )
        await until(lambda: one.status.deleted_at_zone)
        inspections = count_inspections(postgres_database)
        await until(lambda: inspections() >= 1)
        group.cancel_scope.cancel()
    # In a transaction a plan from before would be refused.
    async with database.transaction() as transaction:
        assert [str(row["deletedAt"].tzinfo) for row in await transaction.fetch(trash)] == ["UTC"]
    await database.close()


async def test_eight_processes_start_on_one_table_at_once(postgres_database: PostgresDatabase) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    before = rows_of_postgres(postgres_database.run_sql)
    code = CHILD.replace("lock_timeouts_ms=(120_000,), statement_timeout_s=120", "start_s=60")

    def start_all() -> list[int]:
        processes = [subprocess.Popen([sys.executable, "-c", code, postgres_database.url]) for _ in range(8)]
        return [process.wait(timeout=120) for process in processes]

    assert await anyio.to_thread.run_sync(start_all) == [0] * 8

    log = postgres_database.log()
    assert sum("ADD COLUMN IF NOT EXISTS" in line for line in log.splitlines()) == 1
    assert sum("CREATE INDEX CONCURRENTLY" in line for line in log.splitlines()) == 1
    assert postgres_database.run_sql(INDEX_STATE) == VALID_INDEX
    assert postgres_database.run_sql(ADVISORY_LOCKS) == "0"
    assert rows_of_postgres(postgres_database.run_sql) == before


async def test_a_killed_starter_is_followed_by_one_that_finishes(
    postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    blocker = await asyncpg.connect(postgres_database.url)
    count = f"SELECT count(*) {MIGRATORS}"
    try:
        transaction = blocker.transaction()
        await transaction.start()
        await blocker.fetchval("SELECT count(*) FROM environments")
        with child(postgres_database.url) as victim:
            await until(lambda: postgres_database.run_sql(f"{count} AND wait_event_type = 'Lock'") == "1")
            with child(postgres_database.url) as survivor:
                await until(lambda: postgres_database.run_sql(count) == "2")
                victim.send_signal(signal.SIGKILL)
                await until(lambda: postgres_database.run_sql(count) == "1")
                await transaction.rollback()
                assert await anyio.to_thread.run_sync(survivor.wait) == 0
    finally:
        await blocker.close()
    assert postgres_database.run_sql(INDEX_STATE) == VALID_INDEX
    await migrate_once(postgres_database.url, logger=lines.logger, budgets=BUDGETS)
    assert lines.guide_lines() == [EXISTS]
