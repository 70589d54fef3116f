"""Every shape of PostgreSQL that production has, adopted: by the migration, and by the whole service."""

import asyncpg
import pytest

from services.environments_store.operations.planning import plan
from services.environments_store.schema.messages import ADDED, ADDING, EXISTS
from services.environments_store.schema.migrator import migrate_once
from tests.support.migrations import ADVISORY_LOCKS, BUDGETS, INDEX_STATE, VALID_INDEX
from tests.support.postgres import PostgresDatabase
from tests.support.shapes import POSTGRES_SHAPES, Lines, count_inspections, postgres_sql, rows_of_postgres

pytestmark = pytest.mark.anyio


NO_COLUMN = ["p_a", "p_ab", "p_c", "p_low", "p_odd_search_path"]
WITH_COLUMN = ["p_dnew", "p_dmig", "p_man", "p_half", "p_inv", "p_inv_unready", "p_low_and_right"]
UNSUPPORTED = ["p_odd_view", "p_odd_partitioned"]
PENDING = {
    **dict.fromkeys(NO_COLUMN, "column index"),
    # Statistics, where an index has told the planner of the rows, and nobody has analysed the column.
    **{"p_dnew": "", "p_dmig": "statistics", "p_man": "statistics"},
    **{"p_half": "index", "p_low_and_right": "index", "p_inv": "index statistics", "p_inv_unready": "index statistics"},
    **{"p_none": "table column index", "p_odd_view": "column index", "p_odd_partitioned": "column index"},
}


def test_every_shape_has_its_expectation() -> None:
    assert sorted([*NO_COLUMN, *WITH_COLUMN, *UNSUPPORTED, "p_none"]) == POSTGRES_SHAPES


@pytest.mark.parametrize("shape", POSTGRES_SHAPES)
async def test_m01_the_plan_of_every_shape_names_what_is_missing_and_no_more(
    shape: str, postgres_database: PostgresDatabase
) -> None:
    postgres_database.run_sql(postgres_sql(shape))
    statements = postgres_database.log()
    planned = await plan(postgres_database.url)
    assert " ".join(step.name for step in planned.steps if step.state != "done") == PENDING[shape]
    # What needs a person is not promised.
    states = {step.state for step in planned.steps if step.state != "done"}
    assert states <= {"blocked" if shape in UNSUPPORTED else "pending"}
    assert postgres_database.log() == statements


@pytest.mark.parametrize("shape", NO_COLUMN + WITH_COLUMN)
async def test_m01_every_shape_is_migrated_with_its_rows_unchanged_and_a_second_start_waits_for_nobody(
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
    assert [line for line in lines.messages if "without quotes" not in line] == [EXISTS]
    assert inspections() == 1
    assert "advisory" not in postgres_database.server.log()[log_start:]
    assert _without_noise(postgres_database.server.dump_schema(postgres_database.name)) == _without_noise(schema)


async def test_m01_an_empty_database_gets_the_tables_of_the_newest_original(
    postgres_database: PostgresDatabase, lines: Lines
) -> None:
    status = await migrate_once(postgres_database.url, logger=lines.logger, budgets=BUDGETS)
    made = postgres_database.server.dump_schema(postgres_database.name)
    assert status.state == "ready"
    assert lines.guide_lines() == [EXISTS]

    postgres_database.run_sql("DROP TABLE environments, metadata")
    postgres_database.run_sql(postgres_sql("p_dnew"))
    assert _without_noise(made) == _without_noise(postgres_database.server.dump_schema(postgres_database.name))


def _without_noise(dump: str) -> list[str]:
    return [line for line in dump.splitlines() if line and not line.startswith(("--", "\\"))]


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
