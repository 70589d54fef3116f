"""The index: invalid, being built, under another name, unwanted, and out of disk."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread
import asyncpg
import pytest

from services.environments_store.schema.messages import EXISTS
from services.environments_store.schema.migrator import Migrator, migrate_once
from tests.support.migrations import BUDGETS, INDEX_STATE, MIGRATORS, VALID_INDEX, builds, migrator, old_transaction
from tests.support.postgres import PostgresDatabase, PostgresServer
from tests.support.served import Serving, serving
from tests.support.shapes import Lines, postgres_sql, until
from tests.support.small_disk import limit_files, may_mount, small_disk

pytestmark = pytest.mark.anyio

BUILD = 'CREATE INDEX CONCURRENTLY environments_deleted_at_idx ON environments ("deletedAt")'


async def test_m08_a_cancelled_build_is_cleaned_up_at_once_and_tried_again_later(
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
            await until(lambda: any("❌ Failed to create deletedAt index" in message for message in lines.warnings))
            await transaction.rollback()
            await until(lambda: {step.state for step in one.status.steps} == {"done"})
            group.cancel_scope.cancel()
    finally:
        await old.close()
    assert any("Dropping the INVALID index" in message for message in lines.messages)
    assert postgres_database.run_sql(INDEX_STATE) == VALID_INDEX


@pytest.mark.parametrize("ready", ["false", "true"])
async def test_m08_the_invalid_index_of_a_build_that_somebody_cancelled_is_repaired(
    ready: str, postgres_database: PostgresDatabase, lines: Lines
) -> None:
    """Cancelled while it waits for a writer, it is not even written to; while it waits for a reader, it is."""
    postgres_database.run_sql(postgres_sql("p_half"))
    builder = await asyncpg.connect(postgres_database.url)
    old = await asyncpg.connect(postgres_database.url)
    if ready == "false":
        await old.execute("BEGIN; UPDATE environments SET \"updatedAt\" = now() WHERE id LIKE '%1'")
    else:
        await old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM environments")

    async def build() -> None:
        with pytest.raises(asyncpg.QueryCanceledError):
            await builder.execute(BUILD)

    async with anyio.create_task_group() as group:
        group.start_soon(build)
        waiting = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONC%' AND wait_event_type = 'Lock'"
        waiting += " AND datname = current_database()"
        await until(lambda: postgres_database.run_sql(INDEX_STATE) == f"environments_deleted_at_idx false {ready}")
        await until(lambda: postgres_database.run_sql(waiting) != "")
        postgres_database.run_sql(f"SELECT pg_cancel_backend(pid) FROM ({waiting})")
    await old.close()
    await builder.close()
    assert postgres_database.run_sql(INDEX_STATE) == f"environments_deleted_at_idx false {ready}"

    status = await migrate_once(postgres_database.url, logger=lines.logger, budgets=BUDGETS)

    assert {step.state for step in status.steps} == {"done"}
    assert postgres_database.run_sql(INDEX_STATE) == VALID_INDEX
    assert lines.guide_lines() == [EXISTS]


async def test_m09_an_invalid_index_that_somebody_builds_is_left_to_him(
    postgres_database: PostgresDatabase, lines: Lines
) -> None:
    """The builder is another role, whose build the progress views would not show to ours."""
    postgres_database.run_sql(postgres_sql("p_half"))
    owner, ours = postgres_database.create_role("owner"), postgres_database.create_role("ours")
    postgres_database.run_sql(
        f"""ALTER TABLE environments OWNER TO "{postgres_database.role_name(owner)}";
        GRANT CREATE ON SCHEMA public TO "{postgres_database.role_name(owner)}";
        GRANT "{postgres_database.role_name(owner)}" TO "{postgres_database.role_name(ours)}\""""
    )
    builder = await asyncpg.connect(owner)
    one = migrator(ours, lines)
    try:
        async with (
            old_transaction(postgres_database.url, isolation="repeatable_read") as old,
            anyio.create_task_group() as group,
        ):
            group.start_soon(builder.execute, BUILD)
            await until(lambda: "false" in postgres_database.run_sql(INDEX_STATE))
            await one.prepare()
            group.start_soon(one.complete)
            await until(lambda: any(step.detail and "building this index" in step.detail for step in one.status.steps))
            await old.rollback()
    finally:
        await builder.close()

    # His build ended without an error, and nobody of ours has sent one.
    assert postgres_database.run_sql(INDEX_STATE) == VALID_INDEX
    assert builds(postgres_database) == 0
    assert not any("DROP INDEX" in line for line in postgres_database.log().splitlines())
    assert {step.state for step in one.status.steps} == {"done"}


async def test_m10_the_name_of_the_index_on_another_table_is_not_touched(
    postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    postgres_database.run_sql("CREATE INDEX environments_deleted_at_idx ON metadata (value)")

    status = await migrate_once(postgres_database.url, logger=lines.logger, budgets=BUDGETS)

    assert {step.state for step in status.steps} == {"done"}
    assert postgres_database.run_sql(INDEX_STATE) == "environments_deleted_at_idx1 true true"


@pytest.mark.parametrize(
    ("definition", "is_enough"),
    [
        ('CREATE INDEX trash ON environments ("deletedAt")', True),
        ('CREATE INDEX trash ON environments ("deletedAt", id) WHERE "deletedAt" IS NOT NULL', True),
        ("CREATE INDEX trash ON environments (\"deletedAt\") WHERE id > 'd'", False),
        ('CREATE UNIQUE INDEX trash ON environments ("deletedAt")', False),
        ('CREATE INDEX trash ON environments USING brin ("deletedAt")', False),
        ('CREATE INDEX trash ON environments (id, "deletedAt")', False),
    ],
)
async def test_m10_any_index_that_answers_for_the_trash_is_enough(
    definition: str, is_enough: bool, postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_half"))
    postgres_database.run_sql(definition)

    status = await migrate_once(postgres_database.url, logger=lines.logger, budgets=BUDGETS)

    assert {step.state for step in status.steps} == {"done"}
    assert builds(postgres_database) == (0 if is_enough else 1)


async def test_m12_a_role_whose_defaults_end_every_statement_still_gets_the_index(
    postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    url = postgres_database.create_role()
    role = postgres_database.role_name(url)
    postgres_database.run_sql(
        f"""ALTER TABLE environments OWNER TO "{role}"; GRANT CREATE ON SCHEMA public TO "{role}";
        ALTER ROLE "{role}" SET statement_timeout = '200ms'; ALTER ROLE "{role}" SET lock_timeout = '100ms';
        ALTER ROLE "{role}" SET transaction_timeout = '200ms'"""
    )
    old = await asyncpg.connect(postgres_database.url)
    one = migrator(url, lines)
    try:
        await one.prepare()
        transaction = old.transaction(isolation="repeatable_read")
        await transaction.start()
        await old.fetchval("SELECT 1 FROM environments LIMIT 1")
        async with anyio.create_task_group() as group:
            group.start_soon(one.complete)
            await until(lambda: "false" in postgres_database.run_sql(INDEX_STATE))
            # Longer than each of the role's limits.
            waited = """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                AND query LIKE 'CREATE INDEX%' AND clock_timestamp() - query_start > interval '500 ms'"""
            await until(lambda: postgres_database.run_sql(waited) == "1")
            await transaction.rollback()
    finally:
        await old.close()

    assert postgres_database.run_sql(INDEX_STATE) == VALID_INDEX
    assert builds(postgres_database) == 1


@pytest.mark.parametrize("disk", ["limited", *(["mounted"] if may_mount() else [])])
async def test_m21_a_full_disk_costs_the_index_until_there_is_room_again(disk: str) -> None:
    """A small disk of its own; and, as not everybody may mount one, the kernel's limit for the files of a process."""
    with PostgresServer(wal_segment_mb=1) as server:
        if disk == "limited":
            _lay_many_rows(server)
            async with _limiting_the_build(server), serving(server.admin_url) as service:
                await _assert_serves_without_room(service)
                await service.until_state("ready", steps=True)
            assert server.run_sql(INDEX_STATE) == VALID_INDEX
            return
        with small_disk(server) as small:
            _lay_many_rows(server)
            small.fill()
            async with serving(server.admin_url) as service:
                await _assert_serves_without_room(service)
                small.free()
                await service.until_state("ready", steps=True)
            assert server.run_sql(INDEX_STATE) == VALID_INDEX


def _lay_many_rows(server: PostgresServer) -> None:
    server.run_sql(postgres_sql("p_half"))
    server.run_sql(
        """INSERT INTO environments (id, environment, "createdAt", "updatedAt", "deletedAt")
        SELECT 'bulk-' || n, '{}', now(), now(), to_timestamp(n) FROM generate_series(1, 60000) n"""
    )


@asynccontextmanager
async def _limiting_the_build(server: PostgresServer) -> AsyncIterator[None]:
    """The first process that builds the index, held up by a writer for a moment, may not let its files grow."""
    building = f"SELECT pid {MIGRATORS} AND query LIKE 'CREATE INDEX%' AND wait_event_type = 'Lock'"
    writer = await asyncpg.connect(server.admin_url)
    await writer.execute("BEGIN; UPDATE metadata SET value = value; LOCK TABLE environments IN ROW EXCLUSIVE MODE")

    async def limit() -> None:
        await until(lambda: server.run_sql(building) != "")
        limit_files(server, int(server.run_sql(building)))
        await writer.execute("ROLLBACK")

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(limit)
            yield
    finally:
        await writer.close()


async def _assert_serves_without_room(service: Serving) -> None:
    assert "extend file" in await service.until_logged("Failed to create deletedAt index")
    assert (await service.ask("schema"))["state"] == "ready"
    uuid = (await service.ask("create", environment={"name": "on a full disk"}))["id"]
    assert await service.ask("remove", uuid=uuid) == {"success": True}
    # What the failed build has left would keep its space, and every write would pay for it.
    await service.until_logged("Dropping the INVALID index")
