"""Streams between Python and JS nodes that one side leaves before their end: the other side gets an error or the end
(protocol §8.2)."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import anyio
import pytest

from broker import Context, MoleculerError, Service, ServiceBroker, action
from tests.support.js_node import JsNode

pytestmark = pytest.mark.anyio
DEADLINE_S = 60

JS_SERVICE = """
const results = {};
const streamOf = ctx => ctx.stream || ctx.params;
async function count(stream) {
    let size = 0;
    try { for await (const chunk of stream) size += chunk.length; return { size }; }
    catch (error) { return { size, error: error.name }; }
}
broker.createService({ name: "jsleft", actions: {
    answersFirst(ctx) { results.first = count(streamOf(ctx)); return "answered"; },
    answersNever(ctx) { results.never = count(streamOf(ctx)); return new Promise(() => {}); },
    result: ctx => results[ctx.params.of],
} });
"""

JS_READER = """
globalThis.reading = (async () => {
    const stream = await broker.call("pyleft.endless");
    let begun; globalThis.begun = new Promise(resolve => { begun = resolve; });
    try { for await (const chunk of stream) begun(); return "ended"; } catch (error) { return error.name; }
})();
while (!globalThis.begun) await new Promise(setImmediate);
await globalThis.begun;
"""


class Left(Service):
    name = "pyleft"

    def __init__(self) -> None:
        self.released = anyio.Event()

    @action
    async def feed(self, ctx: Context) -> AsyncIterator[Any]:
        await self.released.wait()
        yield {"a": 1}
        yield b"bytes"

    @action
    async def release(self, ctx: Context) -> None:
        self.released.set()

    @action
    async def endless(self, ctx: Context) -> AsyncIterator[bytes]:
        while True:
            yield b"x"
            await anyio.sleep(0.01)

    @action
    async def breaks(self, ctx: Context, data: str) -> AsyncIterator[bytes]:
        yield b"x"
        raise MoleculerError("broke", 500, "BROKE", {"too large": "x" * 2_000_000, "no form": object()}[data])


@dataclass(frozen=True)
class Pair:
    js: JsNode
    broker: ServiceBroker


@pytest.fixture
async def pair(resident: JsNode, nats_url: str) -> AsyncIterator[Pair]:
    options: dict[str, Any] = {"namespace": resident.namespace, "transporter": nats_url, "shutdown_timeout": 0.2}
    mark = resident.mark()
    async with ServiceBroker("py", services=[Left()], **options) as broker:
        await resident.run(JS_SERVICE)
        await resident.local_event("$node.connected", after=mark)
        await resident.wait_for_services("pyleft")
        await broker.wait_for_services("jsleft", timeout=DEADLINE_S)
        yield Pair(resident, broker)
    await resident.command("destroyService", name="jsleft")


async def slowly(chunks: int, begun: anyio.Event | None = None) -> AsyncIterator[bytes]:
    for number in range(chunks):
        yield b"x" * 1000
        await anyio.sleep(0.01)
        if begun is not None and number == 2:
            begun.set()


async def test_c74_a_js_reader_gets_an_error_when_the_python_node_stops_mid_stream(pair: Pair) -> None:
    await pair.js.run(JS_READER)
    await pair.broker.stop()
    assert await pair.js.run("return globalThis.reading") == "RequestRejectedError"


@pytest.mark.parametrize(("data", "name"), [("too large", "PayloadTooLargeError"), ("no form", "MoleculerError")])
async def test_c71_a_js_reader_gets_an_error_even_if_its_data_cannot_be_encoded(
    pair: Pair, data: str, name: str
) -> None:
    params = f'{{ data: "{data}" }}'
    code = f'const stream = await broker.call("pyleft.breaks", {params});'
    code += "try { for await (const chunk of stream); return 'ended'; } catch (error) { return error.name; }"
    assert await pair.js.run(code) == name


async def test_c67_a_js_handler_that_answers_early_still_reads_the_whole_stream(pair: Pair) -> None:
    answer = await pair.broker.call("jsleft.answersFirst", stream=slowly(30), timeout=DEADLINE_S)
    assert answer == "answered"
    result = await pair.broker.call("jsleft.result", {"of": "first"}, timeout=DEADLINE_S)
    assert result == {"size": 30_000}


async def test_c71_a_js_handler_gets_an_error_when_the_call_is_cancelled(pair: Pair) -> None:
    begun = anyio.Event()

    async def call() -> Any:
        return await pair.broker.call("jsleft.answersNever", stream=slowly(10_000, begun))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await begun.wait()
        tasks.cancel_scope.cancel()
    result = await pair.broker.call("jsleft.result", {"of": "never"}, timeout=DEADLINE_S)
    assert result["error"] == "RequestRejectedError"


async def test_c68_a_js_caller_gets_the_stream_of_a_feed_without_an_item_yet(pair: Pair) -> None:
    """The timeout covers the answer, and the answer is the opened stream (§8.2)."""
    code = (
        'const feed = await broker.call("pyleft.feed", null, { timeout: 20000 }); await broker.call("pyleft.release");'
    )
    code += "const items = []; for await (const item of feed) items.push(item); return items.map(String);"
    assert await pair.js.run(code) == ["[object Object]", "bytes"]
