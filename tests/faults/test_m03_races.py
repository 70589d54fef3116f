"""Many processes start on one table at once, and some of them are killed."""

import random

import anyio
import anyio.to_thread
import pytest

from services.environments_store.schema.messages import ADDED, ADDING, EXISTS
from services.environments_store.schema.migrator import migrate_once
from tests.support.migrations import ADVISORY_LOCKS, BUDGETS, INDEX_STATE, VALID_INDEX, alters, builds
from tests.support.postgres import PostgresDatabase
from tests.support.shapes import POSTGRES_SHAPES, Lines, postgres_sql, rows_of_postgres, until
from tests.support.starters import Starters, starters

pytestmark = pytest.mark.anyio

SHAPES = [shape for shape in POSTGRES_SHAPES if shape not in ("p_odd_view", "p_odd_partitioned")]
STARTERS = [*((4, shape) for shape in ("p_none", "p_half", "p_inv", "p_man", "p_odd_search_path")), (32, "p_c")]
STARTERS_LONG = [(count, shape) for count in (4, 32) for shape in SHAPES if (count, shape) not in STARTERS]
ALTERED = {"p_a", "p_ab", "p_c", "p_low", "p_odd_search_path"}
BUILT = ALTERED | {"p_half", "p_inv", "p_inv_unready", "p_low_and_right"}


@pytest.mark.parametrize(
    ("count", "shape"), [*STARTERS, *(pytest.param(*one, marks=pytest.mark.long) for one in STARTERS_LONG)]
)
async def test_m03_of_many_processes_one_alters_and_one_builds(
    count: int, shape: str, postgres_database: PostgresDatabase
) -> None:
    postgres_database.run_sql(postgres_sql(shape))
    before = None if shape == "p_none" else rows_of_postgres(postgres_database.run_sql)
    names = [f"node-{number}" for number in range(count)]

    async with starters() as crowd:
        for name in names:
            await crowd.start(name, postgres_database.url)
        ends = [await crowd.ended(name) for name in names]

    assert [(end.code, end.state, end.pending) for end in ends] == [(0, "ready", [])] * count
    assert alters(postgres_database) == (shape in ALTERED)
    assert builds(postgres_database) == (shape in BUILT)
    assert postgres_database.run_sql(INDEX_STATE) == VALID_INDEX
    assert postgres_database.run_sql(ADVISORY_LOCKS) == "0"
    said = [line for end in ends for line in end.guide_lines]
    assert (said.count(ADDING), said.count(ADDED)) == ((1, 1) if shape in ALTERED else (0, 0))
    assert said.count(EXISTS) == count - said.count(ADDED)
    assert before is None or rows_of_postgres(postgres_database.run_sql) == before


@pytest.mark.parametrize("rounds", [3, pytest.param(200, marks=pytest.mark.long)])
async def test_m04_of_eight_processes_five_are_killed_at_random_and_the_rest_complete(
    rounds: int, postgres_database: PostgresDatabase, lines: Lines
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 # pytest shows it for a failed test
    source = random.Random(seed)
    async with starters() as crowd:
        for number in range(rounds):
            postgres_database.run_sql("DROP TABLE IF EXISTS environments, metadata")
            postgres_database.run_sql(postgres_sql("p_c"))
            before = rows_of_postgres(postgres_database.run_sql)
            await _round(crowd, f"round-{number}", postgres_database.url, source)

            lines.messages.clear()
            status = await migrate_once(postgres_database.url, logger=lines.logger, budgets=BUDGETS)
            assert {step.state for step in status.steps} == {"done"}
            assert lines.guide_lines() == [EXISTS]
            assert postgres_database.run_sql(INDEX_STATE) == VALID_INDEX
            await until(lambda: postgres_database.run_sql(ADVISORY_LOCKS) == "0")
            assert rows_of_postgres(postgres_database.run_sql) == before


async def _round(crowd: Starters, name: str, url: str, source: random.Random) -> None:
    """Eight starts, five kills within the time that a migration takes; the three that are left must come through."""
    names = [f"{name}-node-{number}" for number in range(8)]
    victims = source.sample(names, 5)
    for one in names:
        await crowd.start(one, url)
    for one in victims:
        await anyio.sleep(source.uniform(0, 0.05))  # a random moment is what is tested
        crowd.kill(one)
    for one in names:
        end = await crowd.ended(one)
        assert one in victims or (end.code, end.state, end.pending) == (0, "ready", [])
