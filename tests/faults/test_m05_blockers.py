"""Somebody's long transaction stands in the way of the column or of the index, and the service serves."""

import subprocess
import time

import anyio
import anyio.to_thread
import asyncpg
import pytest

from services.environments_store.defaults import MigrationBudgets
from services.environments_store.schema.messages import ADDED, ADDING, FAILED
from tests.support.migrations import INDEX_STATE, SHORT_START, VALID_INDEX, builds, old_transaction
from tests.support.postgres import PostgresDatabase
from tests.support.processes import DEADLINE_S
from tests.support.served import Serving, serving
from tests.support.shapes import postgres_sql, until

pytestmark = pytest.mark.anyio

COLUMN_TYPE = """SELECT format_type(atttypid, atttypmod) FROM pg_attribute
WHERE attrelid = 'environments'::regclass AND attname = 'deletedAt' AND NOT attisdropped"""
LIVE = "c0ffee00-0000-4000-8000-000000000001"
HOLD_S = 60


async def test_m05_a_long_reader_delays_the_column_but_neither_the_start_nor_other_readers(
    postgres_database: PostgresDatabase,
) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    reader = await asyncpg.connect(postgres_database.url)
    async with (
        old_transaction(postgres_database.url) as transaction,
        serving(postgres_database.url, budgets=SHORT_START) as service,
    ):
        status = await service.ask("schema")
        assert status["state"] == "migrating"
        assert status["error"].endswith("which has to wait for another session that uses the table.")
        assert service.guide_lines() == [ADDING, FAILED]
        assert sum("slow-report" in line for line in service.lines) > 0
        await _assert_degraded(service)

        # Each read gets through although an ALTER waits for its lock again and again.
        waits = _lock_waits(postgres_database)
        with anyio.fail_after(DEADLINE_S):
            while _lock_waits(postgres_database) < waits + 3:
                await reader.fetchval("SELECT count(*) FROM environments")
        await transaction.rollback()
        await service.until_state("ready", steps=True)
        assert await service.ask("remove", uuid=LIVE) == {"success": True}
        assert service.guide_lines() == [ADDING, FAILED, ADDED]
    await reader.close()
    assert postgres_database.run_sql(COLUMN_TYPE) == "timestamp with time zone"


@pytest.mark.long
async def test_m05_a_reader_of_60_seconds_costs_other_readers_little_and_6_seconds_after_it_the_column_is_there(
    postgres_database: PostgresDatabase,
) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    reads: list[float] = []
    reader = await asyncpg.connect(postgres_database.url)
    async with (
        old_transaction(postgres_database.url) as transaction,
        serving(postgres_database.url, budgets=MigrationBudgets(start_s=3)) as service,
    ):
        end = time.monotonic() + HOLD_S
        while time.monotonic() < end:
            begin = time.monotonic()
            await reader.fetchval("SELECT count(*) FROM environments")
            reads.append(time.monotonic() - begin)
        await _assert_degraded(service)
        await transaction.rollback()
        begin = time.monotonic()
        await service.until_state("ready", steps=False)
        assert time.monotonic() - begin < 6
    await reader.close()
    assert sorted(reads)[len(reads) * 99 // 100] < 0.3


async def test_m06_a_pg_dump_delays_the_column_is_named_and_ends_well(postgres_database: PostgresDatabase) -> None:
    """The dump's consumer is slow: it reads nothing until the service has met the dump."""
    postgres_database.run_sql(postgres_sql("p_c"))
    postgres_database.run_sql(
        """INSERT INTO environments (id, environment, "createdAt", "updatedAt")
        SELECT 'bulk-' || n, to_json(repeat(md5(n::text), 100)), now(), now() FROM generate_series(1, 5000) n"""
    )
    dump = postgres_database.server.program("pg_dump")
    # Its output is a pipe that nobody reads yet.
    with subprocess.Popen([dump, "-d", postgres_database.url], stdout=subprocess.PIPE) as process:  # noqa: ASYNC220
        assert process.stdout is not None
        holds = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity USING (pid) WHERE application_name = 'pg_dump'"
        holds += " AND l.relation = 'environments'::regclass"
        await until(lambda: postgres_database.run_sql(holds) == "1")
        async with serving(postgres_database.url, budgets=SHORT_START) as service:
            assert (await service.ask("schema"))["state"] == "migrating"
            assert "(pg_dump) holds AccessShareLock" in await service.until_logged("pg_dump")
            await _assert_degraded(service)
            dumped = await anyio.to_thread.run_sync(process.stdout.read)
            await service.until_state("ready", steps=True)
        assert process.wait() == 0
    assert dumped.count(b"\nbulk-") == 5000
    assert b'"deletedAt"' not in dumped


@pytest.mark.parametrize("hold_s", [0, pytest.param(HOLD_S, marks=pytest.mark.long)])
async def test_m11_an_old_transaction_delays_the_index_alone_and_one_build_is_enough(
    hold_s: float, postgres_database: PostgresDatabase
) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    postgres_database.run_sql("CREATE TABLE other (id int)")
    connection = await asyncpg.connect(postgres_database.url)
    try:
        transaction = connection.transaction(isolation="repeatable_read")
        await transaction.start()
        # A snapshot is enough to hold the build up, whatever it was taken for.
        await connection.fetchval("SELECT count(*) FROM other")
        async with serving(postgres_database.url) as service:
            await until(lambda: "false" in postgres_database.run_sql(INDEX_STATE))
            assert (await service.ask("schema"))["state"] == "ready"
            assert await service.ask("remove", uuid=LIVE) == {"success": True}
            assert [record["id"] for record in await service.ask("listDeleted")] == [LIVE]
            await anyio.sleep(hold_s)
            assert "false" in postgres_database.run_sql(INDEX_STATE)
            await transaction.rollback()
            await service.until_state("ready", steps=True)
    finally:
        await connection.close()
    assert postgres_database.run_sql(INDEX_STATE) == VALID_INDEX
    assert builds(postgres_database) == 1


async def _assert_degraded(service: Serving) -> None:
    """Reads and other writes work; soft delete says that it does not, and deletes nothing."""
    made = await service.ask("create", environment={"name": "made meanwhile"})
    assert made.pop("type") == "ADD_CLOUD_ENVIRONMENT"
    assert await service.ask("get", uuid=made["id"]) == made
    for action in ("remove", "restore", "permanentDelete"):
        error = await service.failure(action, uuid=LIVE)
        assert (error.code, error.type, error.retryable) == (503, "SOFT_DELETE_UNAVAILABLE", True)
    assert {LIVE, made["id"]} <= {record["id"] for record in await service.ask("list", fields=["id"])}


def _lock_waits(database: PostgresDatabase) -> int:
    return sum("lock timeout" in line for line in database.log().splitlines())
