"""Scenario 38: a restore and a purge of the same environment, in both orders: what was restored never disappears."""

import random

import anyio
import pytest

from services.environments_store.errors import EnvironmentNotFoundError
from tests.support.operations import TRASHABLE, fill, purge
from tests.support.store import Bench

pytestmark = pytest.mark.anyio

AT_ONCE = 10


@pytest.mark.parametrize("rounds", [30, pytest.param(100, marks=pytest.mark.long)])
@pytest.mark.parametrize("bench", TRASHABLE[:3], indirect=True)
async def test_m38_a_restored_environment_never_disappears(bench: Bench, rounds: int) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - repeats the order
    order = random.Random(seed)
    restored = purged = 0
    for number in range(rounds):
        await bench.run("DELETE FROM environments")
        await fill(bench, AT_ONCE, deleted_days=91)
        kept, gone = await one_round(bench, order, restore_first=number % 2 == 0)
        live = {record["id"] for record in await bench.list()}
        assert live == kept
        assert kept | gone == {f"row-{row}" for row in range(1, AT_ONCE + 1)}
        assert not kept & gone
        restored, purged = restored + len(kept), purged + len(gone)
    assert restored + purged == rounds * AT_ONCE
    assert restored > 0, "no restore came first: the rounds prove nothing"
    assert purged > 0, "no purge came first: the rounds prove nothing"


async def one_round(bench: Bench, order: random.Random, *, restore_first: bool) -> tuple[set[str], set[str]]:
    """The ids that were restored, and those that were purged, by what each operation answered."""
    kept: set[str] = set()
    gone: set[str] = set()
    rows = [f"row-{number}" for number in range(1, AT_ONCE + 1)]
    order.shuffle(rows)

    async def restore() -> None:
        for uuid in rows:
            try:
                written = await bench.store.restore(uuid)
                assert written.change is not None
                kept.add(uuid)
            except EnvironmentNotFoundError:
                continue

    async def delete() -> None:
        work = await purge(bench, 90)
        size = order.randint(1, AT_ONCE)
        async for changes in work.batches(size):
            gone.update(change.uuid for change in changes)

    async with anyio.create_task_group() as tasks:
        for operation in (restore, delete) if restore_first else (delete, restore):
            tasks.start_soon(operation)
            if order.random() < 0.5:
                await anyio.sleep(order.random() * 0.004)  # a head start, so that neither always wins
    return kept, gone


@pytest.mark.parametrize("bench", ["postgresql", "postgresql with the guide's TIMESTAMP"], indirect=True)
async def test_m38_a_purge_neither_waits_for_a_restore_under_way_nor_takes_it_back(bench: Bench) -> None:
    await fill(bench, 3, deleted_days=91)
    work = await purge(bench, 90)
    async with bench.database.transaction() as connection:
        await connection.execute("UPDATE environments SET \"deletedAt\" = NULL WHERE id = 'row-2'")
        with anyio.fail_after(30):
            changes = [change async for changes in work.batches(10) for change in changes]
        assert {change.uuid for change in changes} == {"row-1", "row-3"}
    assert [record["id"] for record in await bench.list()] == ["row-2"]


@pytest.mark.parametrize("bench", ["postgresql", "postgresql with the guide's TIMESTAMP"], indirect=True)
async def test_m38_a_restore_that_comes_second_learns_that_there_is_nothing_left(bench: Bench) -> None:
    await fill(bench, 1, deleted_days=91)
    outcome: list[str] = []

    async def restore() -> None:
        try:
            await bench.store.restore("row-1")
            outcome.append("restored")
        except EnvironmentNotFoundError:
            outcome.append("not found")

    async with anyio.create_task_group() as tasks, bench.database.transaction() as connection:
        await connection.execute("DELETE FROM environments WHERE id = 'row-1'")
        tasks.start_soon(restore)
        with anyio.fail_after(30):
            while not await waiting(bench):  # noqa: ASYNC110 - the server tells of it when asked
                await anyio.sleep(0.005)
        assert outcome == []
    assert outcome == ["not found"]


async def waiting(bench: Bench) -> bool:
    query = "SELECT 1 FROM pg_locks WHERE NOT granted AND pid <> pg_backend_pid() AND locktype = 'transactionid'"
    return await bench.database.fetch_one(query) is not None
