"""A stop waits for what is under way, and no longer."""

from contextvars import copy_context

import anyio
import pytest

from broker.node.work import HandlerTasks, Interruptible, Tracker
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


async def test_it_waits_until_nothing_is_under_way() -> None:
    tracker, done = Tracker(), anyio.Event()

    async def wait() -> None:
        await tracker.wait_idle()
        done.set()

    tracker.count += 1
    tracker.count += 1
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
    tracker.count += 1
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tracker.wait_idle)
        await eventually(lambda: tracker._idle is not None)
        tracker.end()
        tracker.count += 1
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        assert len(tasks._tasks) == 1  # type: ignore[attr-defined]  # whether it still waits
        tracker.end()


async def test_nothing_under_way_is_nothing_to_wait_for() -> None:
    await Tracker().wait_idle()


async def test_a_task_that_fails_is_logged_and_ends_no_other(caplog: pytest.LogCaptureFixture) -> None:
    tasks, done = HandlerTasks(), anyio.Event()

    async def fail() -> None:
        raise ValueError("mine")

    async def work() -> None:
        await anyio.lowlevel.checkpoint()
        done.set()

    assert tasks.start(fail(), copy_context())
    assert tasks.start(work(), copy_context())
    assert await tasks.finish(10)
    assert done.is_set()
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["mine"]


async def test_tasks_that_take_too_long_are_cancelled_and_none_starts_after_them() -> None:
    tasks = HandlerTasks()
    assert tasks.start(anyio.sleep_forever(), copy_context())
    assert not await tasks.finish(0)
    assert not tasks.start(anyio.sleep_forever(), copy_context())


async def test_work_runs_to_its_end_and_ending_it_later_is_nothing() -> None:
    work, done = Interruptible(), []

    async def run() -> None:
        done.append("work")

    await work.end()
    await work.run(run)
    await work.end()
    assert done == ["work"]


async def test_who_ends_work_waits_until_it_has_cleaned_up() -> None:
    work, notes = Interruptible(), []
    begun = anyio.Event()

    async def run() -> None:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            notes.append("cleaned up")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work.run, run)
        await begun.wait()
        await work.end()
        assert notes == ["cleaned up"]


async def test_work_may_end_itself() -> None:
    work, notes = Interruptible(), []

    async def run() -> None:
        await work.end()
        notes.append("never")

    with anyio.fail_after(30):
        await work.run(run)
    assert notes == []


async def test_an_exception_of_the_work_passes() -> None:
    work = Interruptible()

    async def run() -> None:
        raise ValueError("the work failed")

    with pytest.raises(ValueError, match="the work failed"):
        await work.run(run)
    await work.end()
