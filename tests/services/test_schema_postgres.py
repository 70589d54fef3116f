"""The migration on a real PostgreSQL: every shape of production, its races, blockers and rights."""

from collections.abc import Iterator

import anyio
import asyncpg
import pytest

from services.environments_store.defaults import MigrationBudgets
from services.environments_store.errors import DatabaseUnavailableError
from services.environments_store.schema.messages import ADDED, ADDING, EXISTS, FAILED
from services.environments_store.schema.migrator import Migrator, migrate_once
from services.environments_store.schema.status import SchemaStatus
from tests.support.postgres import PostgresDatabase
from tests.support.shapes import POSTGRES_SHAPES, Lines, count_inspections, postgres_sql, rows_of_postgres, until

pytestmark = pytest.mark.anyio

BUDGETS = MigrationBudgets(
    start_s=20,
    reinspect_s=0.2,
    sleep_max_s=0.5,
    sleep_patient_s=0.3,
    index_retry_s=0.5,
    index_invalid_recheck_s=0.1,
    index_wait_step_s=0.05,
    reconnect_min_s=0.05,
)
SHORT_START = MigrationBudgets(
    start_s=0.5, reinspect_s=0.2, sleep_max_s=0.5, sleep_patient_s=0.3, index_retry_s=0.5, index_invalid_recheck_s=0.1
)
NO_COLUMN = ["p_a", "p_ab", "p_c", "p_low", "p_odd_search_path"]
WITH_COLUMN = ["p_dnew", "p_dmig", "p_man", "p_half", "p_inv", "p_inv_unready", "p_low_and_right"]
UNSUPPORTED = ["p_odd_view", "p_odd_partitioned"]

INDEX_STATE = """SELECT string_agg(c.relname || ' ' || i.indisvalid || ' ' || i.indisready, ', ' ORDER BY c.relname)
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = 'environments'::regclass
AND NOT i.indisprimary"""
VALID_INDEX = "environments_deleted_at_idx true true"
COLUMN_TYPE = """SELECT format_type(atttypid, atttypmod) FROM pg_attribute
WHERE attrelid = 'environments'::regclass AND attname = 'deletedAt' AND NOT attisdropped"""
ADVISORY_LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"


@pytest.fixture
def lines(request: pytest.FixtureRequest) -> Iterator[Lines]:
    handler = Lines(request.node.name)
    yield handler
    handler.logger.removeHandler(handler)


def migrator(url: str, lines: Lines, budgets: MigrationBudgets = BUDGETS, node_id: str = "node-1") -> Migrator:
    return Migrator(url, None, node_id=node_id, logger=lines.logger, budgets=budgets)


def alters(database: PostgresDatabase) -> int:
    return sum("ADD COLUMN IF NOT EXISTS" in line for line in database.log().splitlines())


def builds(database: PostgresDatabase) -> int:
    return sum(
        "CREATE INDEX CONCURRENTLY" in line and "statement:" in line and "environments-store migrate" in line
        for line in database.log().splitlines()
    )


def test_every_shape_has_its_expectation() -> None:
    assert sorted([*NO_COLUMN, *WITH_COLUMN, *UNSUPPORTED, "p_none"]) == POSTGRES_SHAPES


@pytest.mark.parametrize("shape", NO_COLUMN + WITH_COLUMN)
async def test_adopts_every_shape_with_its_rows_unchanged(
    shape: str, postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql(shape))
    before = rows_of_postgres(postgres_database.run_sql)

    status = await migrate_once(postgres_database.url, logger=lines.logger, budgets=BUDGETS)

    assert status.state == "ready"
    assert status.soft_delete
    assert {step.state for step in status.steps} == {"done"}
    assert status.deleted_at_zone == (shape != "p_man")
    assert rows_of_postgres(postgres_database.run_sql) == before
    assert postgres_database.run_sql(INDEX_STATE) == VALID_INDEX
    assert postgres_database.run_sql(ADVISORY_LOCKS) == "0"
    assert lines.guide_lines() == ([ADDING, ADDED] if shape in NO_COLUMN else [EXISTS])


@pytest.mark.parametrize("shape", NO_COLUMN + WITH_COLUMN)
async def test_a_second_start_changes_nothing_and_waits_for_nobody(
    shape: str, postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql(shape))
    await migrate_once(postgres_database.url, logger=lines.logger, budgets=BUDGETS)
    inspections = count_inspections(postgres_database)
    log_start = len(postgres_database.server.log())
    schema = postgres_database.server.dump_schema(postgres_database.name)
    lines.messages.clear()

    # With the strongest lock held on the table, whoever needs any lock on it could not finish.
    holder = await asyncpg.connect(postgres_database.url)
    try:
        await holder.execute("BEGIN; LOCK TABLE environments IN ACCESS EXCLUSIVE MODE")
        status = await migrate_once(postgres_database.url, logger=lines.logger, budgets=BUDGETS)
    finally:
        await holder.close()

    assert status.state == "ready"
    assert lines.messages == [EXISTS]
    assert inspections() == 1
    assert "advisory" not in postgres_database.server.log()[log_start:]
    assert _without_noise(postgres_database.server.dump_schema(postgres_database.name)) == _without_noise(schema)


async def test_makes_the_tables_of_an_empty_database(postgres_database: PostgresDatabase, lines: Lines) -> None:
    status = await migrate_once(postgres_database.url, logger=lines.logger, budgets=BUDGETS)
    made = postgres_database.server.dump_schema(postgres_database.name)
    assert status.state == "ready"
    assert lines.guide_lines() == [EXISTS]

    postgres_database.run_sql("DROP TABLE environments, metadata")
    postgres_database.run_sql(postgres_sql("p_dnew"))
    assert _without_noise(made) == _without_noise(postgres_database.server.dump_schema(postgres_database.name))


def _without_noise(dump: str) -> list[str]:
    return [line for line in dump.splitlines() if line and not line.startswith(("--", "\\"))]


@pytest.mark.parametrize("shape", UNSUPPORTED)
async def test_leaves_what_is_no_ordinary_table_alone(
    shape: str, postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql(shape))
    statements = postgres_database.log()

    status = await migrate_once(postgres_database.url, logger=lines.logger, budgets=BUDGETS)

    assert (status.state, status.reason, status.soft_delete) == ("degraded", "unsupported", False)
    assert lines.guide_lines() == [FAILED]
    assert postgres_database.log() == statements


async def test_leaves_a_table_of_somebody_else_alone(postgres_database: PostgresDatabase, lines: Lines) -> None:
    postgres_database.run_sql("CREATE TABLE environments (id int PRIMARY KEY, title text)")

    status = await migrate_once(postgres_database.url, logger=lines.logger, budgets=BUDGETS)

    assert status.reason == "unsupported"
    assert '"environmentUuid"' in (status.error or "")
    assert "deletedAt" not in postgres_database.server.dump_schema(postgres_database.name)


@pytest.mark.parametrize("shape", ["p_c", "p_none"])
async def test_of_eight_starters_one_alters_and_one_builds(
    shape: str, postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql(shape))
    starters = [migrator(postgres_database.url, lines, node_id=f"node-{number}") for number in range(8)]

    async def start(one: Migrator) -> None:
        await one.prepare()
        await one.complete()

    async with anyio.create_task_group() as group:
        for one in starters:
            group.start_soon(start, one)

    assert {one.status.state for one in starters} == {"ready"}
    assert alters(postgres_database) == (1 if shape == "p_c" else 0)
    assert builds(postgres_database) == (1 if shape == "p_c" else 0)
    assert postgres_database.run_sql(INDEX_STATE) == VALID_INDEX
    assert postgres_database.run_sql(ADVISORY_LOCKS) == "0"
    guide = lines.guide_lines()
    assert (guide.count(ADDING), guide.count(ADDED)) == ((1, 1) if shape == "p_c" else (0, 0))
    assert guide.count(EXISTS) == 8 - guide.count(ADDED)


async def test_a_long_reader_delays_the_column_but_neither_the_start_nor_other_readers(
    postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    blocker = await asyncpg.connect(postgres_database.url, server_settings={"application_name": "slow-report"})
    reader = await asyncpg.connect(postgres_database.url)
    one = migrator(postgres_database.url, lines, SHORT_START)
    try:
        transaction = blocker.transaction()
        await transaction.start()
        await blocker.fetchval("SELECT count(*) FROM environments")

        status = await one.prepare()
        assert (status.state, status.reason, status.soft_delete) == ("migrating", None, False)
        assert "slow-report" in (status.error or "")
        assert lines.guide_lines() == [ADDING, FAILED]

        async with anyio.create_task_group() as group:
            group.start_soon(one.run)
            # Each read gets through although an ALTER waits for its lock again and again.
            attempts = sum("lock timeout" in line for line in postgres_database.log().splitlines())
            with anyio.fail_after(60):
                while sum("lock timeout" in line for line in postgres_database.log().splitlines()) < attempts + 3:
                    await reader.fetchval("SELECT count(*) FROM environments")
            await transaction.rollback()
            await until(lambda: one.status.state == "ready")
            group.cancel_scope.cancel()
    finally:
        await blocker.close()
        await reader.close()

    assert lines.guide_lines() == [ADDING, FAILED, ADDED]
    assert postgres_database.run_sql(COLUMN_TYPE) == "timestamp with time zone"


async def test_an_invalid_index_that_somebody_builds_is_left_to_him(
    postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_half"))
    old = await asyncpg.connect(postgres_database.url)
    builder = await asyncpg.connect(postgres_database.url)
    build = 'CREATE INDEX CONCURRENTLY environments_deleted_at_idx ON environments ("deletedAt")'
    one = migrator(postgres_database.url, lines)
    try:
        transaction = old.transaction(isolation="repeatable_read")
        await transaction.start()
        await old.fetchval("SELECT 1 FROM environments LIMIT 1")
        async with anyio.create_task_group() as group:
            group.start_soon(builder.execute, build)
            await until(lambda: "false" in postgres_database.run_sql(INDEX_STATE))
            await one.prepare()
            group.start_soon(one.complete)
            await until(lambda: any(step.detail and "building" in step.detail for step in one.status.steps))
            await transaction.rollback()
    finally:
        await old.close()
        await builder.close()

    assert postgres_database.run_sql(INDEX_STATE) == VALID_INDEX
    assert builds(postgres_database) == 0
    assert {step.state for step in one.status.steps} == {"done"}


async def test_the_name_of_the_index_on_another_table_is_not_touched(
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
async def test_any_index_that_answers_for_the_trash_is_enough(
    definition: str, is_enough: bool, postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_half"))
    postgres_database.run_sql(definition)

    status = await migrate_once(postgres_database.url, logger=lines.logger, budgets=BUDGETS)

    assert {step.state for step in status.steps} == {"done"}
    assert builds(postgres_database) == (0 if is_enough else 1)


async def test_a_role_that_does_not_own_the_table_waits_for_the_guides_manual_sql(
    postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    url = postgres_database.create_role()
    postgres_database.run_sql(f'GRANT ALL ON ALL TABLES IN SCHEMA public TO "{postgres_database.role_name(url)}"')
    before = rows_of_postgres(postgres_database.run_sql)
    one = migrator(url, lines)

    status = await one.prepare()

    assert (status.state, status.reason) == ("degraded", "forbidden")
    assert "OWNER TO" in (status.error or "")
    assert lines.guide_lines() == [FAILED]
    async with anyio.create_task_group() as group:
        group.start_soon(one.run)
        postgres_database.run_sql('ALTER TABLE environments ADD COLUMN "deletedAt" TIMESTAMP NULL DEFAULT NULL')
        await until(lambda: one.status.state == "ready")
        postgres_database.run_sql(
            'CREATE INDEX CONCURRENTLY IF NOT EXISTS environments_deleted_at_idx ON environments ("deletedAt")'
        )
        await until(lambda: {step.state for step in one.status.steps} == {"done"})
        group.cancel_scope.cancel()

    assert not one.status.deleted_at_zone
    assert lines.guide_lines() == [FAILED, EXISTS]
    assert alters(postgres_database) == 0
    assert rows_of_postgres(postgres_database.run_sql) == before


async def test_an_owner_without_create_on_the_schema_gets_the_column_and_later_the_index(
    postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    url = postgres_database.create_role()
    role = postgres_database.role_name(url)
    postgres_database.run_sql(f'ALTER TABLE environments OWNER TO "{role}"')
    one = migrator(url, lines)

    status = await one.prepare()
    assert status.state == "ready"
    assert lines.guide_lines() == [ADDING, ADDED]
    async with anyio.create_task_group() as group:
        group.start_soon(one.run)
        await until(lambda: any("GRANT CREATE ON SCHEMA" in message for message in lines.messages))
        postgres_database.run_sql(f'GRANT CREATE ON SCHEMA public TO "{role}"')
        await until(lambda: {step.state for step in one.status.steps} == {"done"})
        group.cancel_scope.cancel()

    assert sum("GRANT CREATE ON SCHEMA" in message for message in lines.messages) == 1
    assert postgres_database.run_sql(INDEX_STATE) == VALID_INDEX


async def test_a_role_whose_defaults_end_every_statement_still_gets_the_index(
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


async def test_a_database_that_only_reads_is_served_and_heals(
    postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    url = postgres_database.create_role()
    role = postgres_database.role_name(url)
    postgres_database.run_sql(f'ALTER TABLE environments OWNER TO "{role}"; GRANT CREATE ON SCHEMA public TO "{role}"')
    postgres_database.run_sql(f'ALTER ROLE "{role}" SET default_transaction_read_only = on')
    one = migrator(url, lines)

    status = await one.prepare()
    assert (status.state, status.reason, status.writable) == ("degraded", "read-only", False)
    assert lines.guide_lines() == [FAILED]
    async with anyio.create_task_group() as group:
        group.start_soon(one.run)
        postgres_database.run_sql(f'ALTER ROLE "{role}" RESET default_transaction_read_only')
        await until(lambda: one.status.state == "ready" and one.status.writable)
        group.cancel_scope.cancel()
    assert lines.guide_lines() == [FAILED, ADDING, ADDED]


async def test_a_column_that_vanishes_is_lost_and_comes_back_by_a_person_only(
    postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_dmig"))
    one = migrator(postgres_database.url, lines, MigrationBudgets(reinspect_s=0.05, poll_min_s=0.01))
    seen: list[SchemaStatus] = []
    one.on_change = seen.append
    await one.prepare()
    async with anyio.create_task_group() as group:
        group.start_soon(one.run)
        postgres_database.run_sql('ALTER TABLE environments DROP COLUMN "deletedAt"')
        one.report_missing_column()
        await until(lambda: one.status.reason == "lost")
        inspections = count_inspections(postgres_database)
        await until(lambda: inspections() >= 3)
        one.report_missing_column()
        one.report_missing_column()
        postgres_database.run_sql('ALTER TABLE environments ADD COLUMN "deletedAt" TIMESTAMPTZ')
        one.report_missing_column()
        await until(lambda: one.status.state == "ready")
        group.cancel_scope.cancel()

    assert alters(postgres_database) == 0
    assert sum("is gone" in message for message in lines.messages) == 1
    assert [status.reason for status in seen if status.reason] == ["lost"]
    assert lines.guide_lines() == [EXISTS, EXISTS]


async def test_a_table_of_1600_columns_needs_a_person(postgres_database: PostgresDatabase, lines: Lines) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    more = ", ".join(f"ADD COLUMN c{number} bool" for number in range(1594))
    postgres_database.run_sql(f"ALTER TABLE environments {more}")

    status = await migrate_once(postgres_database.url, logger=lines.logger, budgets=BUDGETS)

    assert (status.state, status.reason) == ("degraded", "unsupported")
    assert "1600 columns" in (status.error or "")
    assert lines.guide_lines() == [ADDING, FAILED]


async def test_statistics_make_the_planner_see_that_few_rows_are_deleted(
    postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    postgres_database.run_sql(
        """INSERT INTO environments (id, environment, "createdAt", "updatedAt")
        SELECT 'bulk-' || n, '{}', now(), now() FROM generate_series(1, 5000) n; ANALYZE environments"""
    )
    await migrate_once(postgres_database.url, logger=lines.logger, budgets=BUDGETS)

    plan = postgres_database.run_sql('EXPLAIN SELECT id FROM environments WHERE "deletedAt" IS NOT NULL')
    rows = int(plan.split("rows=")[1].split()[0])
    assert rows < 50


async def test_no_connection_is_an_error_of_the_service() -> None:
    lines = Lines("no-connection")
    one = migrator("postgresql://nobody:secret@127.0.0.1:1/none", lines)
    with pytest.raises(DatabaseUnavailableError) as caught:
        await one.prepare()
    assert "secret" not in str(caught.value)
