"""Writers that compare hashes, and a reader that walks through a list while others change it."""

import itertools
import random
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import msgspec
import pytest

from services.environments_store.errors import EnvironmentChangedError
from tests.support.store import Bench, open_bench, read
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

SHAPES = ["sqlite", "postgresql"]
WRITERS = 50
ROWS = 3_000


@pytest.fixture(params=SHAPES)
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    sqlite = request.param == "sqlite"
    url = f"sqlite:///{tmp_path / 'environments.sqlite'}" if sqlite else str(request.getfixturevalue("postgres_url"))
    async with open_bench(request.param, url) as bench:
        yield bench


@pytest.mark.parametrize("rounds", [5, pytest.param(100, marks=pytest.mark.long)])
async def test_m40_of_fifty_writers_with_the_same_hash_exactly_one_wins_each_round(bench: Bench, rounds: int) -> None:
    seen = (await bench.create("U", round=0))["hash"]
    for number in range(1, rounds + 1):
        winners: list[int] = []
        told: list[str] = []

        async def write(writer: int, number: int = number, seen: str = seen) -> None:
            document = msgspec.json.encode({"uuid": "U", "round": number, "writer": writer})
            try:
                await bench.store.update("U", document, seen)
            except EnvironmentChangedError as error:
                told.append(error.data["hash"])  # noqa: B023 # all writers of a round end with it
            else:
                winners.append(writer)  # noqa: B023

        async with anyio.create_task_group() as group:
            for writer in range(WRITERS):
                group.start_soon(write, writer)
        record = read(await bench.store.get("U"))
        assert winners == [record["environment"]["writer"]]
        assert told == [record["hash"]] * (WRITERS - 1)
        assert record["environment"]["round"] == number
        seen = record["hash"]


async def test_m41_a_walk_misses_none_that_was_live_throughout_and_gives_none_twice(bench: Bench) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 # pytest shows it for a failed test
    source = random.Random(seed)
    await _fill(bench, ROWS)
    names = [f"{number:05}" for number in range(ROWS)]
    changing = set(source.sample(names, ROWS // 4))
    steady = set(names) - changing
    walked: list[str] = []
    changes = 0

    async def change(some: list[str]) -> None:
        for number in itertools.count():
            name = source.choice(some)
            await bench.store.remove(name)
            await bench.store.restore(name)
            await bench.create(f"new-{some[0]}-{number}")
            nonlocal changes
            changes += 3

    async with anyio.create_task_group() as group:
        for number in range(4):
            group.start_soon(change, sorted(changing)[number::4])
        after: str | None = None
        while steady - set(walked) and (page := await bench.list(limit=97, after=after, fields=("id",))):
            walked += [record["id"] for record in page]
            after, seen = walked[-1], changes
            await eventually(lambda: changes > seen, "a change between two pages")  # noqa: B023 # ends with the page
        group.cancel_scope.cancel()

    assert len(walked) == len(set(walked))
    assert steady <= set(walked)


async def _fill(bench: Bench, rows: int) -> None:
    if bench.is_sqlite:
        text = """WITH RECURSIVE n(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n + 1 < $1)
        INSERT INTO environments (id, environment, environmentUuid, timestamp, createdAt, updatedAt)
        SELECT printf('%05d', n), '{"uuid":"' || printf('%05d', n) || '"}', printf('%05d', n), n,
        '2025-05-27 08:54:47.' || printf('%03d', n % 3) || ' +00:00', '2025-05-27 08:54:47.000 +00:00' FROM n"""
    else:
        text = """INSERT INTO environments (id, environment, "environmentUuid", "timestamp", "createdAt", "updatedAt")
        SELECT to_char(n, 'FM00000'), json_build_object('uuid', to_char(n, 'FM00000')), to_char(n, 'FM00000'), n,
        timestamptz '2025-05-27 08:54:47Z' + make_interval(secs => (n % 3) / 1000.0), now()
        FROM generate_series(0, $1 - 1) n"""
    await bench.run(text, rows)
