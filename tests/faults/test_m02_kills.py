"""Processes of the migration are killed; the next start completes what they left."""

import itertools
import random
import signal

import anyio
import anyio.to_thread
import pytest

from services.environments_store.schema.messages import ADDED, ADDING, EXISTS
from services.environments_store.schema.migrator import migrate_once
from tests.support.migrations import (
    ADVISORY_LOCKS,
    BUDGETS,
    INDEX_STATE,
    MIGRATORS,
    VALID_INDEX,
    child,
    old_transaction,
)
from tests.support.postgres import PostgresDatabase
from tests.support.postgres_pooler import PostgresPooler
from tests.support.shapes import BYTES, Lines, postgres_sql, rows_of_postgres, until
from tests.support.starters import starters

pytestmark = pytest.mark.anyio


async def test_m02_a_process_killed_while_it_builds_the_index_costs_a_repair_at_the_next_start(
    postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_half"))
    async with old_transaction(postgres_database.url, isolation="repeatable_read") as transaction:
        with child(postgres_database.url) as process:
            await until(lambda: "false" in postgres_database.run_sql(INDEX_STATE))
            process.send_signal(signal.SIGKILL)
            await until(lambda: postgres_database.run_sql(f"SELECT count(*) {MIGRATORS}") == "0")
        assert "false" in postgres_database.run_sql(INDEX_STATE)
        await transaction.rollback()

    status = await migrate_once(postgres_database.url, logger=lines.logger, budgets=BUDGETS)
    assert {step.state for step in status.steps} == {"done"}
    assert postgres_database.run_sql(INDEX_STATE) == VALID_INDEX
    assert postgres_database.run_sql(ADVISORY_LOCKS) == "0"


async def test_m04_a_killed_starter_is_followed_by_one_that_finishes(
    postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    count = f"SELECT count(*) {MIGRATORS}"
    async with old_transaction(postgres_database.url) as transaction:
        with child(postgres_database.url) as victim:
            await until(lambda: postgres_database.run_sql(f"{count} AND wait_event_type = 'Lock'") == "1")
            with child(postgres_database.url) as survivor:
                await until(lambda: postgres_database.run_sql(count) == "2")
                victim.send_signal(signal.SIGKILL)
                await until(lambda: postgres_database.run_sql(count) == "1")
                await transaction.rollback()
                assert await anyio.to_thread.run_sync(survivor.wait) == 0
    assert postgres_database.run_sql(INDEX_STATE) == VALID_INDEX
    await migrate_once(postgres_database.url, logger=lines.logger, budgets=BUDGETS)
    assert lines.guide_lines() == [EXISTS]


async def test_m07_a_killed_process_leaves_no_alter_that_goes_on_blocking_readers(
    postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    async with old_transaction(postgres_database.url) as transaction:
        with child(postgres_database.url) as process:
            waiting = f"SELECT count(*) {MIGRATORS} AND wait_event_type = 'Lock'"
            await until(lambda: postgres_database.run_sql(waiting) == "1")
            process.send_signal(signal.SIGKILL)
            await until(lambda: postgres_database.run_sql(f"SELECT count(*) {MIGRATORS}") == "0")
        # The blocker still holds its lock, and a reader gets through: nothing waits for the table any more.
        assert rows_of_postgres(postgres_database.run_sql).endswith(" of 3")
        assert postgres_database.run_sql(ADVISORY_LOCKS) == "0"
        await transaction.rollback()

    await migrate_once(postgres_database.url, logger=lines.logger, budgets=BUDGETS)
    assert lines.guide_lines() == [ADDING, ADDED]


long = pytest.mark.long
SHAPES = ("p_c", "p_none", "p_inv")


@pytest.mark.parametrize(
    ("shape", "moment", "every"),
    [
        ("p_c", "after", 6),
        ("p_none", "during", 6),
        ("p_inv", "during", 6),
        *(pytest.param(*one, 1, marks=long) for one in itertools.product(SHAPES, ("after", "during"))),
    ],
)
async def test_m02_a_kill_at_any_statement_leaves_what_the_next_start_completes(
    shape: str, moment: str, every: int, postgres_database: PostgresDatabase, lines: Lines
) -> None:
    """Of a migration that adds the column, makes the tables, or repairs an INVALID index. By default every sixth
    statement from a random one on, in the long form every one."""
    await _kill_at_statements(postgres_database, postgres_database.url, shape, moment, every, lines)


@pytest.mark.parametrize(
    ("moment", "every"), [("after", 6), *(pytest.param(one, 1, marks=long) for one in ("after", "during"))]
)
async def test_m02_behind_a_pooler_a_kill_at_any_statement_is_completed_too(
    moment: str, every: int, postgres_database: PostgresDatabase, lines: Lines
) -> None:
    """There BEGIN, the lock, ALTER and COMMIT are messages of their own, so that a kill falls between them."""
    async with PostgresPooler(postgres_database.url).running() as pooler:
        await _kill_at_statements(postgres_database, pooler.url, "p_c", moment, every, lines)


async def _kill_at_statements(
    database: PostgresDatabase, url: str, shape: str, moment: str, every: int, lines: Lines
) -> None:
    laid = f"DROP TABLE IF EXISTS environments, metadata; {postgres_sql(shape)}"
    async with starters() as crowd:
        database.run_sql(laid)
        before = 0 if shape == "p_none" else rows_of_postgres(database.run_sql)
        whole = await crowd.run("whole", url)
        assert (whole.code, whole.pending) == (0, [])
        assert whole.statements > 10
        for number in range(random.randint(1, every), whole.statements + 1, every):
            database.run_sql(laid)
            end = await crowd.run(f"killed-{number}", url, kill_at=number, moment=moment)
            # A statement that only sometimes is needed may never come.
            assert end.code == -signal.SIGKILL or number > whole.statements - 5, end
            status = await migrate_once(database.url, logger=lines.logger, budgets=BUDGETS)
            assert status.state == "ready"
            assert {step.state for step in status.steps} == {"done"}
            # Each psql is a process of its own: all in one.
            seen = database.run_sql(f"{INDEX_STATE}; {ADVISORY_LOCKS}; {BYTES if before else 'SELECT 0'}")
            assert seen.splitlines() == [VALID_INDEX, "0", str(before)]
