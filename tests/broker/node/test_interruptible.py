import anyio
import pytest

from broker.node.work import Interruptible

pytestmark = pytest.mark.anyio


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
