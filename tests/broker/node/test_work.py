"""A stop waits for what is under way, and no longer."""

import anyio
import pytest

from broker.node.work import Tracker
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


async def test_it_waits_until_nothing_is_under_way() -> None:
    tracker, done = Tracker(), anyio.Event()

    async def wait() -> None:
        await tracker.wait_idle()
        done.set()

    tracker.begin()
    tracker.begin()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await eventually(lambda: tracker._idle is not None)
        tracker.end()
        await anyio.lowlevel.checkpoint()
        assert not done.is_set()
        tracker.end()
    assert done.is_set()
    assert tracker.count == 0


async def test_it_goes_on_waiting_when_something_new_began_in_between() -> None:
    tracker = Tracker()
    tracker.begin()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tracker.wait_idle)
        await eventually(lambda: tracker._idle is not None)
        tracker.end()
        tracker.begin()
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        assert len(tasks._tasks) == 1  # type: ignore[attr-defined]  # whether it still waits
        tracker.end()


async def test_nothing_under_way_is_nothing_to_wait_for() -> None:
    await Tracker().wait_idle()
