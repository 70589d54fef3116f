"""What a purge deletes, what it leaves, and that it can be ended and repeated, on both databases."""

from collections.abc import Sequence
from contextlib import aclosing

import anyio
import pytest

from broker import ValidationError
from services.environments_store.defaults import OperationLimits
from services.environments_store.errors import DatabaseUnavailableError, SoftDeleteUnavailableError
from services.environments_store.model import Change
from services.environments_store.operations.purge import Purge, check_age
from services.environments_store.operations.retention import Retention
from services.environments_store.queries.purging import choose_purging
from services.environments_store.shape import TableShape
from tests.support.operations import LOGGER, TRASHABLE, fill, purge, shape_of
from tests.support.store import Bench

pytestmark = pytest.mark.anyio
with_column = pytest.mark.parametrize("bench", TRASHABLE, indirect=True)
LIMITS = OperationLimits()


async def ids(bench: Bench) -> set[str]:
    return {row["id"] for row in await bench.database.fetch("SELECT id FROM environments")}


async def purged(work: Purge, size: int = 500) -> list[Change]:
    return [change async for changes in work.batches(size) for change in changes]


@with_column
async def test_what_is_older_goes_and_everything_else_stays(bench: Bench) -> None:
    await fill(bench, 25, deleted_days=91, prefix="old-")
    await fill(bench, 5, deleted_days=89, prefix="young-")
    await fill(bench, 5, prefix="live-")
    changes = await purged(await purge(bench, 90), size=10)
    assert {change.uuid for change in changes} == {f"old-{number}" for number in range(1, 26)}
    assert len(changes) == 25
    assert all(change.type == "purged" and change.hash is None and change.timestamp > 0 for change in changes)
    assert await ids(bench) == {f"{kind}-{number}" for kind in ("young", "live") for number in range(1, 6)}


@with_column
async def test_a_purge_is_done_in_batches_and_goes_on_where_another_ended(bench: Bench) -> None:
    await fill(bench, 25, deleted_days=91)
    work = await purge(bench, 90)
    async with aclosing(work.batches(10)) as batches:
        async for changes in batches:
            assert len(changes) == 10
            break
    assert await work.remaining() == 15
    assert len(await purged(await purge(bench, 90))) == 15
    assert await work.remaining() == 0


@with_column
async def test_a_forecast_counts_by_month_and_deletes_nothing(bench: Bench) -> None:
    for uuid, date in (
        ("a", "2024-12-31 23:59:59.999"),
        ("b", "2025-01-01 00:00:00.000"),
        ("c", "2025-01-31 10:00:00.5"),
    ):
        await bench.create(uuid)
        await bench.set_date(uuid, "deletedAt", date.ljust(23, "0"))
    await fill(bench, 3, deleted_days=1)
    forecast = await (await purge(bench, 90)).forecast()
    assert forecast.candidates == 3
    assert forecast.months == {"2024-12": 1, "2025-01": 2}
    assert (forecast.oldest, forecast.newest) == ("2024-12-31T23:59:59.999Z", "2025-01-31T10:00:00.500Z")
    assert len(await ids(bench)) == 6


@with_column
async def test_an_empty_trash_is_purged_in_no_time(bench: Bench) -> None:
    await bench.create("live")
    work = await purge(bench, 0)
    assert await purged(work) == []
    assert await work.forecast() == (0, {}, None, None)


@with_column
async def test_the_cutoff_does_not_move_while_a_purge_runs(bench: Bench) -> None:
    work = await purge(bench, 0)
    await bench.create("later")
    await anyio.sleep(0.002)  # the clock of the database has to tick, in milliseconds
    await bench.store.remove("later")
    assert await purged(work) == []


@with_column
async def test_the_batch_is_found_by_the_index(bench: Bench) -> None:
    await fill(bench, 2000, prefix="live-")
    await fill(bench, 50, deleted_days=91)
    column = "deletedAt" if bench.is_sqlite else '"deletedAt"'
    await bench.run(f"CREATE INDEX ix ON environments ({column}) WHERE {column} IS NOT NULL")
    await bench.run("ANALYZE environments")
    query = choose_purging(bench.status).delete
    cutoff = await bench.database.fetch_one(choose_purging(bench.status).cutoff, 90)
    assert cutoff is not None
    if bench.is_sqlite:
        rows = await bench.database.fetch(f"EXPLAIN QUERY PLAN {query}", cutoff["cutoff"], 10)
        shown = "\n".join(row["detail"] for row in rows)
        assert "SCAN" not in shown
    else:
        rows = await bench.database.fetch(f"EXPLAIN {query}", cutoff["cutoff"], 10)
        shown = "\n".join(row[0] for row in rows)
        assert "Seq Scan" not in shown
    assert "ix" in shown


@pytest.mark.parametrize("bench", ["postgresql", "postgresql with the guide's TIMESTAMP"], indirect=True)
async def test_a_trash_that_the_planner_does_not_know_of_is_not_read_whole_for_each_batch(bench: Bench) -> None:
    await fill(bench, 2000, prefix="live-")
    await bench.run('CREATE INDEX ix ON environments ("deletedAt")')
    await bench.run("ANALYZE environments")
    await bench.run("ALTER TABLE environments SET (autovacuum_enabled = off)")
    await fill(bench, 2000, deleted_days=91, prefix="old-")
    statements = choose_purging(bench.status)
    cutoff = await bench.database.fetch_one(statements.cutoff, 90)
    assert cutoff is not None
    rows = await bench.database.fetch(f"EXPLAIN {statements.delete}", cutoff["cutoff"], 10)
    shown = "\n".join(row[0] for row in rows)
    assert "Tid Scan" in shown
    assert shown.count("Index Scan") == 1


@pytest.mark.parametrize("bench", ["sqlite without deletedAt", "postgresql without deletedAt"], indirect=True)
async def test_without_the_column_nothing_is_purged(bench: Bench) -> None:
    await bench.create("U")
    with pytest.raises(SoftDeleteUnavailableError):
        await purge(bench, 90)
    assert await ids(bench) == {"U"}


@with_column
async def test_a_column_that_vanishes_ends_the_purge_and_is_reported(bench: Bench) -> None:
    await fill(bench, 3, deleted_days=91)
    reports: list[int] = []
    shape = TableShape(lambda: bench.status, lambda: reports.append(1))
    work = await Purge.older_than(90, bench.database, shape)
    name = "deletedAt" if bench.is_sqlite else '"deletedAt"'
    await bench.run(f"ALTER TABLE environments DROP COLUMN {name}")
    with pytest.raises(SoftDeleteUnavailableError):
        await purged(work)
    assert reports == [1]
    assert len(await ids(bench)) == 3


@pytest.mark.parametrize("days", [0])
def test_less_than_a_day_needs_force(days: int) -> None:
    with pytest.raises(ValidationError) as caught:
        check_age(days, False, LIMITS)
    assert caught.value.data[0]["field"] == "olderThanDays"
    check_age(days, True, LIMITS)
    check_age(1, False, LIMITS)


@with_column
async def test_the_automatic_purge_comes_by_itself_again_and_again(bench: Bench) -> None:
    told: list[str] = []
    first, second = anyio.Event(), anyio.Event()

    async def tell(changes: Sequence[Change]) -> None:
        told.extend(change.uuid for change in changes)
        (second if first.is_set() else first).set()

    await fill(bench, 3, deleted_days=31, prefix="old-")
    await fill(bench, 3, deleted_days=29, prefix="young-")
    limits = OperationLimits(retention_first_s=0.001, retention_every_s=0.01)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Retention(30, bench.database, shape_of(bench), tell, LOGGER, limits).run)
        with anyio.fail_after(30):
            await first.wait()
            await fill(bench, 2, deleted_days=31, prefix="later-")
            await second.wait()
        tasks.cancel_scope.cancel()
    assert sorted(told) == ["later-1", "later-2", "old-1", "old-2", "old-3"]
    assert await ids(bench) == {"young-1", "young-2", "young-3"}


@pytest.mark.parametrize("bench", ["postgresql"], indirect=True)
async def test_an_automatic_purge_that_fails_is_tried_again(bench: Bench) -> None:
    await fill(bench, 3, deleted_days=31)
    attempts: list[int] = []
    done = anyio.Event()

    async def tell(changes: Sequence[Change]) -> None:
        attempts.append(len(changes))
        if len(attempts) == 1:
            raise DatabaseUnavailableError("the connection went away")
        done.set()

    limits = OperationLimits(retention_first_s=0.001, retention_every_s=0.01)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Retention(30, bench.database, shape_of(bench), tell, LOGGER, limits).run)
        with anyio.fail_after(30):
            while not attempts:  # noqa: ASYNC110 - the first attempt fails on purpose
                await anyio.sleep(0.005)
            await fill(bench, 1, deleted_days=31, prefix="next-")
            await done.wait()
        tasks.cancel_scope.cancel()
    assert attempts == [3, 1]
