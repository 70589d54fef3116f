"""Scenario 39: a purge that is killed, two at once, and one of many rows while others work."""

import statistics
import time
from collections.abc import Awaitable
from pathlib import Path

import anyio
import pytest

from tests.support.operations import fill, purge
from tests.support.processes import start_python
from tests.support.store import Bench, open_bench

pytestmark = pytest.mark.anyio

DIALECTS = ["sqlite", "postgresql"]


def url_of(shape: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if shape == "sqlite":
        return f"sqlite:///{tmp_path / 'environments.sqlite'}"
    return str(request.getfixturevalue("postgres_url"))


async def left(bench: Bench) -> dict[str, int]:
    rows = await bench.database.fetch("SELECT substr(id, 1, 4) AS kind, count(*) AS n FROM environments GROUP BY 1")
    return {row["kind"]: row["n"] for row in rows}


@pytest.mark.parametrize("shape", DIALECTS)
async def test_m39_a_killed_purge_has_done_whole_batches_and_the_next_goes_on(
    shape: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = url_of(shape, request, tmp_path)
    async with open_bench(shape, url) as bench:
        await fill(bench, 6_000, deleted_days=91, prefix="old-")
        await fill(bench, 100, deleted_days=1, prefix="new-")
        await fill(bench, 100, prefix="live")
        command = ("-m", "services.environments_store", "purge", "--yes", "--batch-size", "50")
        async with start_python(*command, environment={"DATABASE_URL": url}) as process:
            with anyio.fail_after(60):
                while (await left(bench)).get("old-", 0) == 6_000:  # noqa: ASYNC110 - another process deletes
                    await anyio.sleep(0.01)
            await process.kill()
        after = await left(bench)
        assert 0 < after["old-"] < 6_000
        assert after["old-"] % 50 == 0
        async with start_python(*command, environment={"DATABASE_URL": url}) as process:
            assert await process.wait() == 0
            assert process.stdout == [f'{{"deleted":{after["old-"]},"remaining":0}}']
        assert await left(bench) == {"new-": 100, "live": 100}


@pytest.mark.parametrize("bench", DIALECTS, indirect=True)
async def test_m39_two_purges_share_the_work(bench: Bench) -> None:
    await fill(bench, 3_000, deleted_days=91)
    deleted: list[list[str]] = [[], []]

    async def one(number: int) -> None:
        work = await purge(bench, 90)
        async for changes in work.batches(100):
            deleted[number].extend(change.uuid for change in changes)

    async with anyio.create_task_group() as tasks:
        for number in range(2):
            tasks.start_soon(one, number)
    assert len(deleted[0]) + len(deleted[1]) == 3_000
    assert len({*deleted[0], *deleted[1]}) == 3_000
    assert min(map(len, deleted)) > 0


@pytest.mark.parametrize("bench", DIALECTS, indirect=True)
async def test_m39_others_work_while_many_rows_go(bench: Bench) -> None:
    await under_load(bench, 5_000)


@pytest.mark.long
@pytest.mark.parametrize("bench", DIALECTS, indirect=True)
async def test_m39_others_hardly_notice_that_100_000_rows_go(bench: Bench) -> None:
    times, purge_s = await under_load(bench, 100_000)
    assert statistics.quantiles(times, n=100)[98] < purge_s / 20


async def under_load(bench: Bench, rows: int) -> tuple[list[float], float]:
    """How long each call of others took while this number of rows was purged, and how long the purge, in seconds."""
    await fill(bench, rows, deleted_days=91, prefix="old-")
    column = "deletedAt" if bench.is_sqlite else '"deletedAt"'
    await bench.run(f"CREATE INDEX ix ON environments ({column}) WHERE {column} IS NOT NULL")
    times: list[float] = []
    done = anyio.Event()

    async def timed(call: Awaitable[object]) -> None:
        started = time.perf_counter()
        await call
        times.append(time.perf_counter() - started)

    async def work(name: str) -> None:
        number = 0
        while not done.is_set():
            number += 1
            uuid = f"mine-{name}-{number}"
            await timed(bench.create(uuid))
            await timed(bench.store.remove(uuid))
            await timed(bench.list(limit=10))
            await timed(bench.store.restore(uuid))
        counts[name] = number

    counts: dict[str, int] = {}
    async with anyio.create_task_group() as tasks:
        for name in ("a", "b"):
            tasks.start_soon(work, name)
        purged, started = 0, time.perf_counter()
        async for changes in (await purge(bench, 90)).batches():
            purged += len(changes)
        purge_s = time.perf_counter() - started
        done.set()
    assert purged == rows
    assert await left(bench) == {"mine": sum(counts.values())}
    assert len(await bench.list_deleted()) == 0
    return times, purge_s
