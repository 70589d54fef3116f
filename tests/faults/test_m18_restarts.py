"""The server is down, starts, restarts, and loses a connection in the middle of something."""

import anyio
import anyio.to_thread
import asyncpg
import pytest

from services.environments_store.errors import DatabaseUnavailableError
from services.environments_store.schema.messages import ADDED, ADDING
from services.environments_store.schema.migrator import Migrator, migrate_once
from tests.support.migrations import BUDGETS, INDEX_STATE, MIGRATORS, VALID_INDEX, migrator
from tests.support.postgres import PostgresDatabase, PostgresServer
from tests.support.postgres_proxy import PostgresProxy
from tests.support.shapes import Lines, postgres_sql, until

pytestmark = pytest.mark.anyio


async def test_m18_no_connection_is_an_error_of_the_service() -> None:
    lines = Lines("no-connection")
    one = migrator("postgresql://nobody:secret@127.0.0.1:1/none", lines)
    with pytest.raises(DatabaseUnavailableError) as caught:
        await one.prepare()
    assert "secret" not in str(caught.value)


async def test_m18_a_server_that_restarts_is_met_again_and_the_work_goes_on(lines: Lines) -> None:
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


async def test_m18_a_backend_killed_while_it_builds_the_index_is_made_good_without_a_restart(
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


async def test_m20_a_commit_whose_answer_was_lost_is_looked_up(
    postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    async with PostgresProxy(postgres_database.url).running() as proxy:
        proxy.cut_answer = b"ADD COLUMN"
        status = await migrate_once(proxy.url, logger=lines.logger, budgets=BUDGETS)
    assert proxy.cut == 1
    assert status.state == "ready"
    assert lines.guide_lines()[0] == ADDING
    assert len(lines.guide_lines()) == 2
    assert sum("ADD COLUMN IF NOT EXISTS" in line for line in postgres_database.log().splitlines()) == 1
