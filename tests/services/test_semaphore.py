"""Who waits for a connection, for how long, and in which order."""

import asyncio

import anyio
import anyio.lowlevel
import pytest

from services.environments_store.database.failures import StatementFailure
from services.environments_store.database.semaphore import TimedSemaphore

pytestmark = pytest.mark.anyio


async def test_those_who_wait_have_their_turn_in_the_order_in_which_they_came() -> None:
    semaphore, order = TimedSemaphore(2, 60.0), list[int]()

    async def hold(number: int) -> None:
        async with semaphore:
            order.append(number)
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        for number in range(10):
            group.start_soon(hold, number)
    assert order == list(range(10))
    assert [semaphore.try_acquire() for _ in range(3)] == [True, True, False]


async def test_one_that_waits_too_long_learns_who_may_hold_the_connections() -> None:
    semaphore = TimedSemaphore(1, 0.01, "exports may hold them")
    async with semaphore:
        with pytest.raises(StatementFailure, match="exports may hold them") as caught:
            async with semaphore:
                pass
    assert caught.value.timed_out
    assert semaphore.try_acquire()


@pytest.mark.parametrize("released_first", [True, False])
async def test_a_turn_of_a_caller_that_goes_away_is_the_next_ones(released_first: bool) -> None:
    semaphore = TimedSemaphore(1, 60.0)
    assert await semaphore.acquire()

    async def wait() -> None:
        async with semaphore:
            await anyio.lowlevel.checkpoint()

    # A cancel scope would spare one whose turn has come.
    waiting = asyncio.get_running_loop().create_task(wait())
    await anyio.wait_all_tasks_blocked()
    for step in (semaphore.release, waiting.cancel)[:: 1 if released_first else -1]:
        step()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert semaphore.try_acquire()
    assert not semaphore.try_acquire()
