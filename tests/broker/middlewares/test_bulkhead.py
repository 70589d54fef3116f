"""A number at once, a number waiting, first come, first served (protocol §12.5)."""

import asyncio

import anyio
import pytest
from anyio.abc import TaskGroup

from broker.context import Context, Next
from broker.errors import QueueIsFullError
from broker.middlewares.bulkhead import bulkhead
from broker.services.policies import BulkheadPolicy
from tests.support.targets import made_context, run, target
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


class Work:
    """A handler whose runs end when the test says so."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.most = 0
        self.inside = 0
        self._doors: dict[int, anyio.Event] = {}

    async def __call__(self, ctx: Context) -> int:
        number: int = ctx.params
        self.begun.append(number)
        self.inside += 1
        self.most = max(self.most, self.inside)
        door = self._doors[number] = anyio.Event()
        try:
            await door.wait()
        finally:
            self.inside -= 1
        self.ended.append(number)
        return number

    def end(self, number: int) -> None:
        self._doors[number].set()


def bounded(work: Next, concurrency: int = 2, queue: int = 3) -> Next:
    policy = BulkheadPolicy(enabled=True, concurrency=concurrency, max_queue_size=queue)
    return bulkhead(policy)(work, target())


async def fill(tasks: TaskGroup, chain: Next, work: Work, begun: int, queued: int) -> None:
    for number in range(begun + queued):
        tasks.start_soon(run, chain, made_context(number))
    await eventually(lambda: len(work.begun) == begun)


async def test_c79_no_more_than_the_concurrency_run_at_once_and_the_rest_in_order() -> None:
    work = Work()
    chain = bounded(work)
    async with anyio.create_task_group() as tasks:
        await fill(tasks, chain, work, 2, 3)
        for number in range(5):
            await eventually(lambda number=number: number in work.begun)  # type: ignore[misc]  # a loop's variable
            work.end(number)
    assert (work.begun, work.ended, work.most) == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], 2)


async def test_c79_past_the_queue_a_call_is_refused_at_once() -> None:
    work = Work()
    chain = bounded(work)
    async with anyio.create_task_group() as tasks:
        await fill(tasks, chain, work, 2, 3)
        with pytest.raises(QueueIsFullError) as refused:
            await chain(made_context(9))
        assert refused.value.data == {"action": "posts.find", "nodeID": "js-1", "size": 3, "limit": 3}
        assert refused.value.retryable
        tasks.cancel_scope.cancel()


async def test_c79_an_event_is_refused_by_its_own_name() -> None:
    work = Work()
    chain = bounded(work, 1, 1)
    async with anyio.create_task_group() as tasks:
        await fill(tasks, chain, work, 1, 1)
        with pytest.raises(QueueIsFullError) as refused:
            await chain(made_context(9, action=None, event="user.created"))
        assert refused.value.data["event"] == "user.created"
        assert refused.value.data["service"] == "posts"
        tasks.cancel_scope.cancel()


async def test_c79_a_queue_of_0_has_no_bound() -> None:
    work = Work()
    chain = bounded(work, 1, 0)
    async with anyio.create_task_group() as tasks:
        await fill(tasks, chain, work, 1, 200)
        for number in range(201):
            await eventually(lambda number=number: number in work.begun)  # type: ignore[misc]  # a loop's variable
            work.end(number)
    assert len(work.ended) == 201


async def test_a_call_that_is_cancelled_while_it_waits_leaves_the_queue() -> None:
    work = Work()
    chain = bounded(work, 1, 5)
    async with anyio.create_task_group() as tasks:
        await fill(tasks, chain, work, 1, 0)
        with anyio.move_on_after(0.01):
            await chain(made_context(1))
        tasks.start_soon(run, chain, made_context(2))
        await anyio.lowlevel.checkpoint()
        work.end(0)
        await eventually(lambda: 2 in work.begun)
        work.end(2)
    assert work.begun == [0, 2]


async def test_a_place_that_is_given_to_a_cancelled_call_goes_to_the_next() -> None:
    work = Work()

    async def handler(ctx: Context) -> int:
        result = await work(ctx)
        if result == 0:  # between the turn of the first that waits and its next step
            asyncio.get_running_loop().call_soon(first.cancel)
        return result

    chain = bounded(handler, 1, 5)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run(chain, made_context(0)))
        await eventually(lambda: work.begun == [0])
        first = tasks.create_task(run(chain, made_context(1)))
        tasks.create_task(run(chain, made_context(2)))
        await asyncio.sleep(0)
        work.end(0)
        await eventually(lambda: 2 in work.begun)
        work.end(2)
        tasks.create_task(run(chain, made_context(3)))
        await eventually(lambda: 3 in work.begun)
        work.end(3)
    assert work.begun == [0, 2, 3]


async def test_a_failure_leaves_the_gate() -> None:
    async def failing(ctx: Context) -> None:
        raise ValueError("no")

    chain = bounded(failing, 1, 1)
    for _ in range(3):
        with pytest.raises(ValueError, match="no"):
            await chain(made_context())


async def test_without_a_policy_that_is_enabled_there_is_nothing_in_the_way() -> None:
    work = Work()
    assert bulkhead(BulkheadPolicy())(work, target()) is work
    assert bulkhead(BulkheadPolicy())(work, target(bulkhead={"enabled": True})) is not work
    assert bulkhead(BulkheadPolicy(enabled=True))(work, target(bulkhead={"enabled": False})) is work
