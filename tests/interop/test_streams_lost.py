"""Streams from Python to JS nodes are complete, or end with an error at both ends when a NATS connection is lost."""

import hashlib
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import anyio
import pytest

from broker import Context, MoleculerError, Service, ServiceBroker, action
from broker.transports.base import Transport
from tests.conftest import NatsServerFactory
from tests.support.js_node import VERSIONS, JsNode, js_node
from tests.support.nats_server import NatsServer
from tests.support.tcp_proxy import TcpProxy
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio
DEADLINE_S = 60
CHUNK = bytes(range(256)) * 400

JS_SERVICE = """
const results = [];
let begun = 0;
const streamOf = ctx => ctx.stream || ctx.params;
broker.createService({ name: "jslost", actions: {
    begun: () => begun,
    ended: () => results.length,
    async read(ctx) {
        let size = 0;
        begun++;
        try { for await (const chunk of streamOf(ctx)) size += chunk.length; return { size }; }
        catch (error) { results.push(error.name); throw error; }
    },
    async results() { while (!results.length) await new Promise(resolve => setTimeout(resolve, 50)); return results; },
} });
"""

JS_READER = """
const { createHash } = process.getBuiltinModule("node:crypto");
const hash = createHash("sha256"); let size = 0;
globalThis.begun = 0;
globalThis.reading = (async () => {
    const stream = await broker.call("pylost.make", { chunks: CHUNKS, wait: WAIT });
    try { for await (const chunk of stream) { size += chunk.length; hash.update(chunk); globalThis.begun = 1; } }
    catch (error) { return { error: error.name }; }
    return { size, digest: hash.digest("hex") };
})();
while (!globalThis.begun) await new Promise(setImmediate);
"""


class Lost(Service):
    name = "pylost"
    open = 0

    @action
    async def make(self, ctx: Context, chunks: int, wait: float) -> AsyncIterator[bytes]:
        self.open += 1
        try:
            async for chunk in endless(chunks, wait):
                yield chunk
        finally:
            self.open -= 1


async def endless(chunks: int, wait: float) -> AsyncIterator[bytes]:
    for _ in range(chunks):
        yield CHUNK
        if wait:
            await anyio.sleep(wait)


class Reader(Service):
    """Like the service of the JS node."""

    name = "jslost"

    def __init__(self) -> None:
        self.begun_count = self.ended_count = 0

    @action
    async def read(self, ctx: Context) -> int:
        self.begun_count += 1
        try:
            return len(await ctx.stream.read())
        finally:
            self.ended_count += 1

    @action
    async def begun(self, ctx: Context) -> int:
        return self.begun_count

    @action
    async def ended(self, ctx: Context) -> int:
        return self.ended_count


@dataclass(frozen=True)
class Pair:
    js: JsNode
    py: ServiceBroker
    service: Lost
    link: TcpProxy
    """The connection of one of the nodes."""

    @property
    def transport(self) -> Transport:
        transport = self.py._node.transport
        assert transport is not None
        return transport

    async def read(self, chunks: int, wait: float = 0) -> None:
        """Make JS begin to read."""
        await self.js.run(JS_READER.replace("CHUNKS", str(chunks)).replace("WAIT", str(wait)))

    async def outcome(self) -> Any:
        return await self.js.command("run", code="return globalThis.reading", deadline_s=DEADLINE_S * 3)


async def open_pair(stack: AsyncExitStack, server: NatsServer, version: str, behind_link: str = "") -> Pair:
    link = await stack.enter_async_context(TcpProxy(server.port).running())
    service = Lost()
    js_url, py_url = (link.url if behind_link == name else server.url for name in ("js", "py"))
    js = await stack.enter_async_context(js_node(version, js_url, "", "js"))
    py = await stack.enter_async_context(ServiceBroker("py", transporter=py_url, services=[service]))
    await js.run(JS_SERVICE)
    await js.wait_for_services("pylost")
    await py.wait_for_services("jslost", timeout=DEADLINE_S)
    return Pair(js, py, service, link)


CASES = [
    ("0.14", "js", 0.05),
    ("0.15", "py", 0),
    pytest.param("0.14", "py", 0.05, marks=pytest.mark.long),
    pytest.param("0.15", "js", 0, marks=pytest.mark.long),
]
"""The version, the node whose connection is lost, and the seconds that the writer waits between chunks."""


@pytest.fixture
async def pair(version: str, lost: str, nats_server: NatsServer, js_modules: object) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        yield await open_pair(stack, nats_server, version, lost)


@pytest.mark.parametrize(("version", "lost", "wait"), CASES)
async def test_c74_a_lost_connection_ends_an_answer_at_its_js_reader_and_its_python_writer(
    pair: Pair, wait: float
) -> None:
    await pair.read(1_000_000, wait)
    pair.link.close()
    await eventually(lambda: not (pair.transport.connected and pair.service.open), "the loss to be noticed")
    pair.link.open()
    assert set(await pair.outcome()) == {"error"}
    assert pair.service.open == 0


@pytest.mark.parametrize(("version", "lost", "wait"), CASES)
async def test_c74_a_lost_connection_ends_a_call_with_a_stream_and_its_js_handler(pair: Pair, wait: float) -> None:
    async def cut() -> None:
        await anyio.sleep(0.5)
        pair.link.close()
        await anyio.sleep(0.5)
        pair.link.open()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cut)
        with anyio.fail_after(DEADLINE_S), pytest.raises(MoleculerError):
            await pair.py.call("jslost.read", stream=endless(1_000_000, wait))
    assert len(await pair.js.call("jslost.results")) == 1


async def silent() -> AsyncIterator[bytes]:
    await anyio.sleep_forever()
    yield b""


@pytest.mark.parametrize("reader", ["Python", *VERSIONS])
async def test_c71_a_call_that_ends_before_its_first_chunk_ends_its_handler(
    reader: str, nats_server: NatsServer, js_modules: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its request is sent; its stream waits for the server to confirm that, or is open without a chunk to send yet."""
    monkeypatch.setattr("broker.streams.writer.STREAM_OPENING_S", 0.01)
    async with AsyncExitStack() as stack:
        link = await stack.enter_async_context(TcpProxy(nats_server.port).running())
        if reader == "Python":
            await stack.enter_async_context(ServiceBroker("js", transporter=nats_server.url, services=[Reader()]))
        else:
            js = await stack.enter_async_context(js_node(reader, nats_server.url, "", "js"))
            await js.run(JS_SERVICE)
        observer = await stack.enter_async_context(ServiceBroker("observer", transporter=nats_server.url))
        py = await stack.enter_async_context(ServiceBroker("py", transporter=link.url))
        for broker in (observer, py):
            await broker.wait_for_services("jslost", timeout=DEADLINE_S)

        async def reaches(action: str, wanted: int) -> None:
            with anyio.fail_after(DEADLINE_S / 3):  # below the time after which a silent stream ends
                while True:
                    if await observer.call(f"jslost.{action}") == wanted:
                        return
                    await anyio.sleep(0.01)  # between two questions

        transport = py._node.transport
        assert transport is not None
        flush, held = transport.flush, anyio.Event()

        async def late_flush() -> None:
            await held.wait()
            await flush()

        ends = itertools.product(("cancelled", "timed out", "lost"), ("the server", "the first chunk"))
        for number, (end, waits_for) in enumerate(ends, 1):
            monkeypatch.setattr(transport, "flush", late_flush if waits_for == "the server" else flush)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(fails, py, 1.5 if end == "timed out" else DEADLINE_S)
                await reaches("begun", number)
                if end == "cancelled":
                    tasks.cancel_scope.cancel()
                elif end == "lost":
                    link.close()
                    await eventually(lambda: not transport.connected)
                    held.set()
                    link.open()
            await reaches("ended", number)


async def fails(py: ServiceBroker, timeout_s: float) -> None:
    with pytest.raises(MoleculerError):
        await py.call("jslost.read", stream=silent(), timeout=timeout_s)


@pytest.mark.parametrize("version", VERSIONS)
async def test_c74_a_killed_js_reader_ends_the_python_writer(
    version: str, nats_server: NatsServer, js_modules: object
) -> None:
    async with AsyncExitStack() as stack:
        pair = await open_pair(stack, nats_server, version)
        await pair.read(1_000_000, 0.05)
        await pair.js.process.kill()
        await eventually(lambda: not pair.service.open, "the end of the writer")


async def test_c68_a_js_node_that_is_busy_for_seconds_loses_no_chunk(
    nats_server: NatsServer, js_modules: object
) -> None:
    async with AsyncExitStack() as stack:
        pair = await open_pair(stack, nats_server, VERSIONS[-1])
        await pair.read(60)
        await pair.js.run("Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 3000);")
        assert (await pair.outcome())["size"] == 60 * len(CHUNK)


@pytest.mark.parametrize(
    ("max_pending", "chunks"),
    [("16MB", 60), pytest.param("64MB", 1000, marks=pytest.mark.long)],
    ids=["small", "100 MB, default server"],
)
@pytest.mark.parametrize("version", VERSIONS)
async def test_c68_a_stream_larger_than_the_servers_buffer_arrives_completely_in_js(
    version: str, max_pending: str, chunks: int, make_nats_server: NatsServerFactory, js_modules: object
) -> None:
    server = make_nats_server(max_pending=max_pending)
    async with AsyncExitStack() as stack:
        pair = await open_pair(stack, server, version)
        await pair.read(chunks)
        expected = {"size": chunks * len(CHUNK), "digest": hashlib.sha256(CHUNK * chunks).hexdigest()}
        assert await pair.outcome() == expected
        answer = await pair.py.call("jslost.read", stream=endless(chunks, 0), timeout=DEADLINE_S * 3)
    assert answer == {"size": chunks * len(CHUNK)}
    assert "Slow Consumer" not in server.log()
