"""A stop waits for what is under way, and no longer."""

from contextvars import copy_context

import anyio
import pytest

from broker.node.work import HandlerTasks, Life, State, Tracker, belong_to, set_owners
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


async def nothing() -> None: ...


async def test_a_start_runs_to_its_end_and_a_stop_after_it_does_its_own_work() -> None:
    life, done = Life(), []

    async def start() -> None:
        done.append(life.state)
        life.state = State.STARTED

    async def stop() -> None:
        done.append(life.state)

    await life.start(start)
    assert life.ask_to_stop() is State.STARTED
    await life.stop(stop, 30)
    await life.ended(None)
    assert done == [State.STARTING, State.STOPPING]
    assert life.state is life.ask_to_stop() is State.STOPPED


async def test_a_stop_ends_a_start_and_waits_until_it_has_cleaned_up() -> None:
    life, notes = Life(), []
    begun = anyio.Event()

    async def start() -> None:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            notes.append("cleaned up")

    async def stop() -> None:
        notes.append("stopped")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(life.start, start)
        await begun.wait()
        assert life.ask_to_stop() is State.STARTING
        await life.stop(stop, 30)
    assert notes == ["cleaned up", "stopped"]


async def test_a_start_may_ask_for_its_own_stop() -> None:
    life, notes = Life(), []
    async with anyio.create_task_group() as tasks:

        async def start() -> None:
            life.ask_to_stop()
            tasks.start_soon(life.stop, nothing, 30)
            await life.ended(life)
            notes.append("never")

        with anyio.fail_after(30):
            await life.start(start)
    assert notes == []


async def test_its_own_work_does_not_wait_for_a_stop() -> None:
    life = Life()
    before = belong_to(life)
    with anyio.fail_after(30):
        await life.ended(life)
    set_owners(before)


async def test_what_a_start_raises_passes_and_what_a_stop_raises_is_for_those_who_wait() -> None:
    life = Life()

    async def fail() -> None:
        raise ValueError("the work failed")

    with pytest.raises(ValueError, match="the work failed"):
        await life.start(fail)
    await life.stop(fail, 30)
    for _ in range(2):
        with pytest.raises(ValueError, match="the work failed"):
            await life.ended(None)
