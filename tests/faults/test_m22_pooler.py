"""A transaction pooler stands before the database: session locks mean nothing there, and what is SET leaks."""

from functools import partial

import anyio
import anyio.to_thread
import msgspec
import pytest

from services.environments_store.errors import OperationError
from services.environments_store.operations.list_index import build_list_index
from services.environments_store.operations.rollback import refuse_unsafe, roll_back, survey
from services.environments_store.schema.messages import ADDED, ADDING, FAILED
from services.environments_store.schema.migrator import migrate_once
from tests.support.migrations import ADVISORY_LOCKS, BUDGETS, INDEX_STATE, SHORT_START, VALID_INDEX, old_transaction
from tests.support.operations import LOGGER
from tests.support.pgbouncer import POOLERS, pooled_url
from tests.support.postgres import PostgresDatabase
from tests.support.processes import DEADLINE_S
from tests.support.served import serving
from tests.support.shapes import postgres_sql, until
from tests.support.starters import starters

pytestmark = pytest.mark.anyio

through_each = pytest.mark.parametrize("pooler", POOLERS)
LOOK = "SELECT pg_backend_pid() AS pid"
"""How each connection begins, one of them for each look at the schema."""
LIVE = "c0ffee00-0000-4000-8000-000000000001"


@through_each
@pytest.mark.parametrize("shape", ["p_c", "p_none", "p_inv"])
async def test_m22_through_a_pooler_starters_never_both_migrate_and_nothing_leaks_into_a_session(
    pooler: str, shape: str, postgres_database: PostgresDatabase
) -> None:
    postgres_database.run_sql(postgres_sql(shape))
    postgres_database.run_sql(f"ALTER DATABASE \"{postgres_database.name}\" SET log_statement = 'all'")
    names = [f"node-{number}" for number in range(6)]
    async with pooled_url(pooler, postgres_database.server, postgres_database.url) as url, starters() as crowd:
        for name in names:
            await crowd.start(name, url)
        ends = [await crowd.ended(name) for name in names]

    assert [(end.code, end.state, end.pending) for end in ends] == [(0, "ready", [])] * 6
    assert postgres_database.run_sql(INDEX_STATE) == VALID_INDEX
    log = [line for line in postgres_database.log().splitlines() if "environments-store migrate" in line]
    assert sum("CREATE INDEX CONCURRENTLY" in line for line in log) == (shape != "p_none")
    assert sum("ADD COLUMN" in line for line in log) == (shape == "p_c")
    assert not any("pg_try_advisory_lock(" in line for line in log)
    assert postgres_database.run_sql(ADVISORY_LOCKS) == "0"
    statements = [line.partition("statement: ")[2] for line in log if "statement: " in line]
    sets = [text for text in statements if text.startswith("SET ") and not text.startswith("SET LOCAL")]
    # The pooler itself sets what each client asked for at its start.
    tracked = ("application_name", "TimeZone", "client_encoding")
    assert [text for text in sets if not any(name in text for name in tracked)] == []
    assert sum(end.guide_lines.count(ADDED) for end in ends) == (shape == "p_c")


@through_each
async def test_m22_the_whole_service_works_through_a_pooler(pooler: str, postgres_database: PostgresDatabase) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    async with (
        pooled_url(pooler, postgres_database.server, postgres_database.url) as url,
        serving(url) as one,
        serving(url, node_id="other") as other,
    ):
        await one.until_state("ready", steps=True)
        await other.until_state("ready", steps=True)
        assert await one.ask("remove", uuid=LIVE) == {"success": True}
        async with anyio.create_task_group() as group:
            for number in range(40):
                service = (one, other)[number % 2]
                group.start_soon(partial(service.ask, "create", environment={"uuid": f"U{number}"}))
        assert len(await other.ask("list", fields=["id"])) == 42
        assert [record["id"] for record in await other.ask("listDeleted")] == [LIVE]
        record = await one.ask("get", uuid="U1")
        assert (await other.ask("update", uuid="U1", environment={"uuid": "U1", "n": 2}, ifHash=record["hash"]))["id"]
        assert await one.ask("restore", uuid=LIVE) == {"success": True}


@through_each
async def test_m22_lists_of_several_processes_do_not_meet_in_a_name_that_the_server_keeps(
    pooler: str, postgres_database: PostgresDatabase
) -> None:
    postgres_database.run_sql(postgres_sql("p_dmig"))
    names = [f"node-{number}" for number in range(4)]
    async with pooled_url(pooler, postgres_database.server, postgres_database.url) as url, starters() as crowd:
        # One after another, each a new process: what one leaves in a connection of the pooler the next one meets.
        ends = [await crowd.run(name, url, calls=[("list", {}), ("listDeleted", {})]) for name in names]
    assert [[len(answer) for answer in end.answers] for end in ends] == [[3, 1]] * 4


@through_each
async def test_m22_the_index_is_built_for_a_role_whose_transactions_keep_their_snapshot(
    pooler: str, postgres_database: PostgresDatabase
) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    repeatable = f"ALTER DATABASE \"{postgres_database.name}\" SET default_transaction_isolation = 'repeatable read'"
    postgres_database.run_sql(repeatable)
    async with pooled_url(pooler, postgres_database.server, postgres_database.url) as url:
        with anyio.fail_after(DEADLINE_S):
            status = await migrate_once(url, logger=LOGGER)
    assert [step.state for step in status.steps] == ["done"] * len(status.steps)
    assert postgres_database.run_sql(INDEX_STATE) == VALID_INDEX


@through_each
async def test_m22_a_pooler_with_one_connection_is_told_of_and_its_callers_are_not_held_up_again_and_again(
    pooler: str, postgres_database: PostgresDatabase
) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    postgres_database.run_sql(f"ALTER DATABASE \"{postgres_database.name}\" SET log_statement = 'all'")
    budgets = msgspec.structs.replace(BUDGETS, pooler_answer_s=0.3, index_retry_s=3_600)
    async with (
        pooled_url(pooler, postgres_database.server, postgres_database.url, connections=1) as url,
        serving(url, budgets=budgets) as service,
    ):
        line = await service.until_logged("The index on deletedAt has to wait")
        assert "default_pool_size" in line
        assert "direct address" in line
        looks = postgres_database.log().count(LOOK)
        await until(lambda: postgres_database.log().count(LOOK) >= looks + 5)
        # It goes on looking, without taking the only connection for the lock.
        assert postgres_database.log().count("BEGIN ISOLATION LEVEL READ COMMITTED") == 1
        assert not any("cannot be reached" in line for line in service.lines)
        schema = await service.ask("schema")
        assert schema["state"] == "ready"
        assert [step["name"] for step in schema["steps"] if step["state"] != "done"] == ["index"]
        assert await service.ask("remove", uuid=LIVE) == {"success": True}
        await migrate_once(postgres_database.url, logger=LOGGER)
        await service.until_state("ready", steps=True)
    assert postgres_database.run_sql(INDEX_STATE) == VALID_INDEX
    assert postgres_database.run_sql(ADVISORY_LOCKS) == "0"


@through_each
async def test_m22_the_commands_that_build_an_index_say_that_a_pooler_has_one_connection(
    pooler: str, postgres_database: PostgresDatabase
) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    budgets = msgspec.structs.replace(BUDGETS, pooler_answer_s=0.3)
    async with pooled_url(pooler, postgres_database.server, postgres_database.url, connections=1) as url:
        status = await migrate_once(url, logger=LOGGER, budgets=budgets)
        assert [step.name for step in status.steps if "default_pool_size" in (step.detail or "")] == ["index"]
        with pytest.raises(OperationError, match=r"The index was not built: .*default_pool_size"):
            await build_list_index(url, LOGGER, budgets)
        assert postgres_database.run_sql(ADVISORY_LOCKS) == "0"


@through_each
async def test_m22_an_old_transaction_holds_the_column_up_behind_a_pooler_too(
    pooler: str, postgres_database: PostgresDatabase
) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    async with (
        pooled_url(pooler, postgres_database.server, postgres_database.url) as url,
        old_transaction(postgres_database.url) as transaction,
        serving(url, budgets=SHORT_START) as service,
    ):
        assert (await service.ask("schema"))["state"] == "migrating"
        assert (await service.ask("create", environment={"uuid": "U"}))["id"] == "U"
        assert "slow-report" in await service.until_logged("AccessShareLock")
        await transaction.rollback()
        await service.until_state("ready", steps=True)
        assert service.guide_lines() == [ADDING, FAILED, ADDED]


@through_each
async def test_m22_a_rollback_through_a_pooler_is_refused_in_words_and_leaves_no_lock_when_forced(
    pooler: str, postgres_database: PostgresDatabase
) -> None:
    postgres_database.run_sql(postgres_sql("p_dmig"))
    postgres_database.run_sql(f"ALTER DATABASE \"{postgres_database.name}\" SET log_statement = 'all'")
    has_column = "SELECT count(*) FROM pg_attribute WHERE attrelid = 'environments'::regclass AND attname = 'deletedAt'"
    async with pooled_url(pooler, postgres_database.server, postgres_database.url) as url:
        refuse_unsafe(await survey(url, LOGGER), "keep", False)
        with pytest.raises(OperationError, match="Give the direct address"):
            await roll_back(url, "keep", force=False, logger=LOGGER)
        assert postgres_database.run_sql(has_column) == "1"
        outcome = await roll_back(url, "keep", force=True, logger=LOGGER)
        assert outcome.rows == 1
        assert postgres_database.run_sql(has_column) == "0"
        assert postgres_database.run_sql(ADVISORY_LOCKS) == "0"
        await migrate_once(url, logger=LOGGER)
        assert postgres_database.run_sql(has_column) == "1"
    assert "pg_try_advisory_lock(" not in postgres_database.log()


@through_each
async def test_m22_a_node_behind_a_pooler_is_seen_from_the_direct_address_without_a_lock_of_its_own(
    pooler: str, postgres_database: PostgresDatabase
) -> None:
    postgres_database.run_sql(postgres_sql("p_dmig"))
    async with (
        pooled_url(pooler, postgres_database.server, postgres_database.url) as url,
        serving(url, node_id="behind") as service,
    ):
        await service.until_state("ready", steps=True)
        # That of the migration goes after its last step is told.
        await until(lambda: postgres_database.run_sql(ADVISORY_LOCKS) == "0")
        with anyio.fail_after(DEADLINE_S):
            while not (seen := await survey(postgres_database.url, LOGGER)).serving:
                # The pooler's connections bear the name of who used them last, which may still be the migration.
                assert len(await service.ask("list", fields=["id"])) == 3
        with pytest.raises(
            OperationError, match=r"until recently if this is the connection of a pooler\. Stop every node"
        ):
            refuse_unsafe(seen, "keep", False)
