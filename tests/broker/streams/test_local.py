"""Streams within one node are read as those between nodes."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from msgspec import Struct

from broker import Context, MoleculerClientError, Service, ServiceBroker, action
from tests.support.cluster import Cluster

pytestmark = pytest.mark.anyio


class Number(Struct):
    value: int


class Streams(Service):
    name = "streams"

    def __init__(self) -> None:
        self.closed = 0

    @action
    async def size(self, ctx: Context) -> int:
        return len(await ctx.stream.read())

    @action
    async def first(self, ctx: Context) -> Any:
        async with ctx.stream as stream:
            return await anext(stream)

    @action
    async def refuse(self, ctx: Context) -> None:
        raise MoleculerClientError("no", 418, "TEAPOT")

    @action
    async def echo(self, ctx: Context) -> AsyncIterator[Any]:
        try:
            async for item in ctx.stream:
                yield item
        finally:
            self.closed += 1

    @action
    async def forward(self, ctx: Context) -> Any:
        return await ctx.call("streams.echo", stream=ctx.stream)

    @action
    async def records(self, ctx: Context) -> AsyncIterator[Number]:
        yield Number(1)


class Source:
    """Chunks, and whether it was closed."""

    def __init__(self, *chunks: Any) -> None:
        self.chunks = chunks
        self.closed = False

    async def items(self) -> AsyncIterator[Any]:
        try:
            for chunk in self.chunks:
                yield chunk
            await anyio.sleep_forever()
        finally:
            await anyio.lowlevel.checkpoint()
            self.closed = True


async def test_a_stream_is_read_the_same_on_the_own_node_as_on_others(cluster: Cluster) -> None:
    here, there = await cluster.start(("here", [Streams()]), ("there", []))
    for caller in (here, there):
        assert await caller.call("streams.size", stream=[b"ab", b"c"]) == 3
        assert await caller.call("streams.size", stream=memoryview(b"abc")) == 3
        assert await caller.call("streams.first", stream=[1, 2]) == 1
        assert await (await caller.call("streams.echo", stream=[b"ab", b"c"])).read() == b"abc"
        async with await caller.call("streams.forward", stream=[b"ab", b"c"]) as stream:
            assert [chunk async for chunk in stream] == [b"ab", b"c"]
        assert [record async for record in await caller.call("streams.records")] == [{"value": 1}]
        assert [item async for item in await caller.call("streams.echo", stream=[Number(2)])] == [{"value": 2}]


@pytest.mark.parametrize("name", ["first", "refuse"])
async def test_a_source_is_closed_when_the_handler_is_done_with_it(name: str) -> None:
    async with ServiceBroker("alone", services=[Streams()]) as broker:
        source = Source(b"a")
        try:
            await broker.call(f"streams.{name}", stream=source.items())
        except MoleculerClientError:
            assert name == "refuse"
        assert source.closed or name == "refuse", "one that was never asked has nothing to close"


@pytest.mark.parametrize("name", ["echo", "forward"])
async def test_closing_the_answer_closes_the_handler_and_the_source(name: str) -> None:
    service = Streams()
    async with ServiceBroker("alone", services=[service]) as broker:
        source = Source(b"a")
        stream = await broker.call(f"streams.{name}", stream=source.items())
        assert await anext(stream) == b"a"
        await stream.aclose()
        assert (service.closed, source.closed) == (1, True)
        await stream.aclose()


async def test_a_source_that_fails_when_it_is_closed_fails_no_call(caplog: pytest.LogCaptureFixture) -> None:
    async def source() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            raise ValueError("failed at the end")

    async with ServiceBroker("alone", services=[Streams()]) as broker:
        assert await broker.call("streams.first", stream=source()) == 1
    assert [record.getMessage() for record in caplog.records] == ["The source of a stream failed when it was closed"]
