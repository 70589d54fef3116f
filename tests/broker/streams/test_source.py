"""Sources of streams are read in one task, so they may hold open what only the task that opened it can close."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from broker import BrokerDisconnectedError, Context, MoleculerError, Service, ServiceBroker, action
from broker.streams.reader import is_stream
from broker.streams.writer import StreamWriter
from tests.support.cluster import Cluster

pytestmark = pytest.mark.anyio
DEADLINE_S = 30


async def in_a_scope() -> AsyncIterator[int]:
    with anyio.fail_after(DEADLINE_S):
        for number in range(3):
            yield number
            await anyio.lowlevel.checkpoint()


async def in_a_group_of_anyio() -> AsyncIterator[int]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.lowlevel.checkpoint)
        for number in range(3):
            yield number


async def in_a_group_of_asyncio() -> AsyncIterator[int]:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(anyio.lowlevel.checkpoint())
        for number in range(3):
            yield number


async def in_too_little_time() -> AsyncIterator[int]:
    async with asyncio.timeout(0.05):
        yield 0
        await anyio.sleep_forever()


Made = Callable[[], AsyncIterator[int]]
SOURCES: dict[str, Made] = {
    made.__name__: made for made in (in_a_scope, in_a_group_of_anyio, in_a_group_of_asyncio, in_too_little_time)
}


class Streams(Service):
    name = "streams"

    @action
    async def made(self, ctx: Context, name: str) -> AsyncIterator[int]:
        async for number in SOURCES[name]():
            yield number

    @action
    async def values(self, ctx: Context) -> list[Any]:
        return [value async for value in ctx.stream]


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "in_too_little_time"])
async def test_a_source_may_hold_a_scope_or_a_task_group_open(name: str, cluster: Cluster) -> None:
    here, there = await cluster.start(("here", [Streams()]), ("there", []))
    for caller in (here, there):
        assert await caller.call("streams.values", stream=SOURCES[name](), timeout=DEADLINE_S) == [0, 1, 2]
        made = await caller.call("streams.made", {"name": name}, timeout=DEADLINE_S)
        assert [number async for number in made] == [0, 1, 2]


async def test_a_timeout_in_a_source_breaks_its_stream_and_cancels_nothing_else(cluster: Cluster) -> None:
    _, there = await cluster.start(("here", [Streams()]), ("there", []))
    with pytest.raises(MoleculerError) as caught:
        await there.call("streams.values", stream=in_too_little_time(), timeout=DEADLINE_S)
    assert caught.value.name == "TimeoutError"
    made = await there.call("streams.made", {"name": "in_too_little_time"}, timeout=DEADLINE_S)
    assert await anext(made) == 0
    with pytest.raises(MoleculerError) as caught:
        await anext(made)
    assert caught.value.name == "TimeoutError"


async def test_what_the_source_raises_before_its_first_item_is_raised_by_the_call(cluster: Cluster) -> None:
    async def breaking() -> AsyncIterator[int]:
        raise ValueError("no first item")
        yield 0

    _, there = await cluster.start(("here", [Streams()]), ("there", []))
    with pytest.raises(ValueError, match="no first item"):
        await there.call("streams.values", stream=breaking())


async def test_a_call_that_is_given_up_before_the_first_item_closes_the_source(cluster: Cluster) -> None:
    waiting, closed = anyio.Event(), anyio.Event()

    async def silent() -> AsyncIterator[int]:
        try:
            waiting.set()
            await anyio.sleep_forever()
            yield 0
        finally:
            await anyio.lowlevel.checkpoint()
            closed.set()

    _, there = await cluster.start(("here", [Streams()]), ("there", []))

    async def call() -> None:
        await there.call("streams.values", stream=silent())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await waiting.wait()
        tasks.cancel_scope.cancel()
    with anyio.fail_after(DEADLINE_S):
        await closed.wait()


async def test_a_node_that_has_stopped_reads_no_source() -> None:
    async with ServiceBroker("alone") as broker:
        pass
    with pytest.raises(BrokerDisconnectedError):
        await StreamWriter(broker._node.effects.writers, [1]).begin()


def test_async_iterables_are_streams_and_other_results_are_not() -> None:
    async def numbers() -> AsyncIterator[int]:
        yield 1

    assert is_stream(numbers())
    assert not any(is_stream(value) for value in ([1], b"x", {"a": 1}, "text", None))
