"""Streams between Python and JS nodes, both ways, bytes and values (protocol §8)."""

import hashlib
import json
import random
import re
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import anyio
import pytest

from broker import Context, MoleculerClientError, MoleculerError, RequestRejectedError, Service, ServiceBroker, action
from tests.support.js_node import VERSIONS, JsNode, js_node
from tests.support.processes import start_python

pytestmark = pytest.mark.anyio
DEADLINE_S = 60

# The same services for both versions: 0.14 passes the stream as the params, 0.15 as `ctx.stream`.
JS_SERVICE = """
const { Readable, Transform } = process.getBuiltinModule("node:stream");
const { createHash } = process.getBuiltinModule("node:crypto");
const streamOf = ctx => ctx.stream || ctx.params;
broker.createService({ name: "jsstream", actions: {
    async digest(ctx) {
        const hash = createHash("sha256"); let size = 0, chunks = 0;
        for await (const chunk of streamOf(ctx)) { hash.update(chunk); size += chunk.length; chunks++; }
        return { digest: hash.digest("hex"), size, chunks, meta: ctx.meta, params: ctx.stream ? ctx.params : null };
    },
    async values(ctx) { const seen = []; for await (const value of streamOf(ctx)) seen.push(value); return seen; },
    async failure(ctx) {
        try { for await (const _ of streamOf(ctx)); return null; }
        catch (error) { return { name: error.name, message: error.message, code: error.code }; }
    },
    invert(ctx) {
        return streamOf(ctx).pipe(new Transform({
            transform(chunk, _, done) { done(null, Buffer.from(chunk.map(byte => 255 - byte))); }
        }));
    },
    count: ctx => Readable.from((function* () { for (let i = 0; i < ctx.params.to; i++) yield { i }; })()),
    bytes(ctx) { let left = ctx.params.size;
        return new Readable({ read() {
            const size = Math.min(left, 65536); left -= size; this.push(size ? Buffer.alloc(size, left % 256) : null);
        } });
    },
    breaks: ctx => Readable.from((async function* () { yield { i: 0 }; throw new Error("broke in JS"); })()),
    empty: ctx => Readable.from([], { objectMode: false }),
    hang: ctx => new Readable({ read() {}, construct(done) { this.push("first"); done(); } }),
} });
await broker.waitForServices("jsstream", 10000, 20);
"""

# `call(action, chunks, objects)`: a JS caller that streams in and gets a digest, values or a stream's content back.
JS_CALLER = """
const { Readable, PassThrough } = process.getBuiltinModule("node:stream");
const { createHash } = process.getBuiltinModule("node:crypto");
const given = GIVEN;
async function* chunks() {
    if (given.values) yield* given.values;
    for (let left = given.size || 0; left > 0; left -= 65536) {
        await new Promise(setImmediate); // as a file does
        yield Buffer.alloc(Math.min(left, 65536), left % 251);
    }
    if (given.fails) throw new Error("source broke in JS");
}
const source = given.size !== undefined || given.values
    ? Readable.from(chunks(), { objectMode: Boolean(given.values) }) : undefined;
const options = { meta: given.meta || {}, timeout: 60000 };
const answer = await (VERSION === "0.14" && source
    ? broker.call(given.action, source, options)
    : broker.call(given.action, given.params || {}, { ...options, ...(source ? { stream: source } : {}) }));
if (!answer || typeof answer.pipe !== "function") return { plain: answer };
const hash = createHash("sha256"); let size = 0; const values = [];
try {
    for await (const chunk of answer) {
        if (Buffer.isBuffer(chunk)) { hash.update(chunk); size += chunk.length; } else values.push(chunk);
        if (given.onFirst && values.length === 1) await broker.call(given.onFirst);
    }
} catch (error) { return { values, size, error: { name: error.name, message: error.message, code: error.code } }; }
return { values, size, digest: hash.digest("hex") };
"""


class Streams(Service):
    name = "pystream"

    def __init__(self) -> None:
        self.read_first = anyio.Event()

    @action
    async def digest(self, ctx: Context) -> dict[str, Any]:
        digest, size = hashlib.sha256(), 0
        async for chunk in ctx.stream:
            digest.update(chunk)
            size += len(chunk)
        return {"digest": digest.hexdigest(), "size": size, "meta": ctx.meta, "params": ctx.params}

    @action
    async def values(self, ctx: Context) -> list[Any]:
        return [value async for value in ctx.stream]

    @action
    async def failure(self, ctx: Context) -> dict[str, Any] | None:
        try:
            async for _ in ctx.stream:
                pass
        except MoleculerError as error:
            return {"name": error.name, "message": error.message, "nodeID": error.node_id}
        return None

    @action
    async def invert(self, ctx: Context) -> AsyncIterator[bytes]:
        table = bytes(range(255, -1, -1))
        async for chunk in ctx.stream:
            yield chunk.translate(table)

    @action
    async def count(self, ctx: Context, to: int) -> AsyncIterator[dict[str, int]]:
        for number in range(to):
            yield {"i": number}

    @action
    async def breaks(self, ctx: Context) -> AsyncIterator[dict[str, int]]:
        self.read = anyio.Event()
        yield {"i": 0}
        # 0.14 cannot handle an error that arrives with the opening: its stream has no listener yet.
        await self.read.wait()
        raise MoleculerClientError("broke in Python", 418, "TEAPOT")

    @action
    async def read_one(self, ctx: Context) -> None:
        self.read_first.set()

    @action
    async def seen(self, ctx: Context) -> None:
        self.read.set()

    @action
    async def empty(self, ctx: Context) -> AsyncIterator[bytes]:
        for chunk in list[bytes]():
            yield chunk


@dataclass(frozen=True)
class Cluster:
    version: str
    js: JsNode
    broker: ServiceBroker

    async def from_js(self, action: str, **given: Any) -> dict[str, Any]:
        """What a JS node receives from a Python action."""
        code = JS_CALLER.replace("GIVEN", json.dumps({"action": action, **given}))
        code = code.replace("VERSION", json.dumps(self.version))
        answer: dict[str, Any] = await self.js.command("run", code=code, deadline_s=DEADLINE_S)
        return answer


@pytest.fixture(scope="module", params=VERSIONS)
async def cluster(request: pytest.FixtureRequest, nats_url: str, js_modules: object) -> AsyncIterator[Cluster]:
    namespace = f"streams-{uuid.uuid4().hex[:12]}"
    async with (
        js_node(request.param, nats_url, namespace, "js") as js,
        ServiceBroker("py", namespace=namespace, transporter=nats_url, services=[Streams()]) as broker,
    ):
        await js.command("run", code=JS_SERVICE)
        await js.wait_for_services("pystream")
        await broker.wait_for_services("jsstream", timeout=DEADLINE_S)
        yield Cluster(request.param, js, broker)


def js_bytes(size: int) -> bytes:
    """What the JS caller sends for this size."""
    return b"".join(bytes([left % 251]) * min(left, 65536) for left in range(size, 0, -65536))


async def test_c67_bytes_from_python_arrive_unchanged_in_js(cluster: Cluster) -> None:
    seed = random.SystemRandom().randrange(2**32)
    data = random.Random(seed).randbytes(1_500_000)
    result = await cluster.broker.call("jsstream.digest", stream=data, meta={"name": "f.bin"}, timeout=DEADLINE_S)
    assert (result["digest"], result["size"]) == (hashlib.sha256(data).hexdigest(), len(data)), f"seed {seed}"
    assert result["meta"]["name"] == "f.bin"


async def test_c67_params_are_sent_with_a_stream_in_protocol_5_and_refused_in_4(cluster: Cluster) -> None:
    call = cluster.broker.call("jsstream.digest", {"p": 1}, stream=[b"a"], timeout=DEADLINE_S)
    if cluster.version == "0.14":
        with pytest.raises(MoleculerClientError, match="protocol 4"):
            await call
    else:
        assert (await call)["params"] == {"p": 1}


async def test_c67_values_from_python_arrive_in_js(cluster: Cluster) -> None:
    values = [{"a": 1}, "text", 7, [1, 2], {"é": "😀"}]
    assert await cluster.broker.call("jsstream.values", stream=values, timeout=DEADLINE_S) == values


async def test_c71_an_exception_in_a_python_source_is_raised_at_the_js_reader(cluster: Cluster) -> None:
    async def breaking() -> AsyncIterator[bytes]:
        yield b"a"
        raise MoleculerClientError("broke in Python", 418, "TEAPOT")

    failure = await cluster.broker.call("jsstream.failure", stream=breaking(), timeout=DEADLINE_S)
    assert (failure["name"], failure["message"], failure["code"]) == ("MoleculerClientError", "broke in Python", 418)


async def test_c68_values_and_bytes_from_js_are_read_in_python(cluster: Cluster) -> None:
    values = await cluster.broker.call("jsstream.count", {"to": 500}, timeout=DEADLINE_S)
    assert [value async for value in values] == [{"i": number} for number in range(500)]
    received = await (await cluster.broker.call("jsstream.bytes", {"size": 300_000}, timeout=DEADLINE_S)).read()
    assert len(received) == 300_000
    assert await (await cluster.broker.call("jsstream.empty", timeout=DEADLINE_S)).read() == b""


async def test_c71_an_error_in_a_js_stream_is_raised_at_the_python_reader(cluster: Cluster) -> None:
    stream = await cluster.broker.call("jsstream.breaks", timeout=DEADLINE_S)
    assert await anext(stream) == {"i": 0}
    with pytest.raises(MoleculerError, match="broke in JS") as caught:
        await anext(stream)
    assert caught.value.node_id == "js"


async def test_c68_a_js_transform_returns_the_bytes_that_python_sends(cluster: Cluster) -> None:
    data = random.Random(1).randbytes(700_000)
    stream = await cluster.broker.call("jsstream.invert", stream=data, timeout=DEADLINE_S)
    assert await stream.read() == data.translate(bytes(range(255, -1, -1)))


async def test_c67_bytes_from_js_arrive_unchanged_in_python(cluster: Cluster) -> None:
    result = (await cluster.from_js("pystream.digest", size=1_000_001, meta={"name": "f.bin"}))["plain"]
    data = js_bytes(1_000_001)
    assert (result["digest"], result["size"]) == (hashlib.sha256(data).hexdigest(), len(data))
    assert result["meta"] == {"name": "f.bin"}


async def test_c67_values_from_js_arrive_in_python(cluster: Cluster) -> None:
    values = [{"a": 1}, "text", 7, {"type": "x"}]
    assert (await cluster.from_js("pystream.values", values=values))["plain"] == values


async def test_c71_an_exception_in_a_js_source_is_raised_at_the_python_reader(cluster: Cluster) -> None:
    failure = (await cluster.from_js("pystream.failure", values=[{"a": 1}], fails=True))["plain"]
    assert failure == {"name": "Error", "message": "source broke in JS", "nodeID": "js"}


async def test_c68_values_of_a_python_answer_arrive_in_js(cluster: Cluster) -> None:
    answer = await cluster.from_js("pystream.count", params={"to": 300})
    assert answer["values"] == [{"i": number} for number in range(300)]
    assert (await cluster.from_js("pystream.empty"))["size"] == 0


async def test_c71_an_error_in_a_python_stream_is_raised_at_the_js_reader(cluster: Cluster) -> None:
    answer = await cluster.from_js("pystream.breaks", onFirst="pystream.seen")
    assert answer["values"] == [{"i": 0}]
    assert (answer["error"]["message"], answer["error"]["code"]) == ("broke in Python", 418)


async def test_c68_a_python_transform_returns_the_bytes_that_js_sends(cluster: Cluster) -> None:
    answer = await cluster.from_js("pystream.invert", size=2_000_000)
    expected = js_bytes(2_000_000).translate(bytes(range(255, -1, -1)))
    assert (answer["size"], answer["digest"]) == (len(expected), hashlib.sha256(expected).hexdigest())


@pytest.mark.parametrize(
    ("version", "size"),
    [
        ("0.15", 12_000_000),
        *(pytest.param(version, 100_000_000, marks=pytest.mark.long) for version in VERSIONS),
    ],
)
async def test_c67_c68_a_stream_larger_than_the_memory_limit_passes_through_a_python_transform(
    version: str, size: int, nats_url: str, namespace: str, js_modules: object
) -> None:
    arguments = ("-m", "broker", "run", "tests.interop.test_streams:Streams", "--nats-url", nats_url)
    async with (
        start_python(*arguments, "--namespace", namespace, warm=False) as process,
        js_node(version, nats_url, namespace, "js") as js,
    ):
        await js.wait_for_services("pystream", deadline_s=DEADLINE_S)
        code = JS_CALLER.replace("GIVEN", json.dumps({"action": "pystream.invert", "size": size}))
        answer = await js.command("run", code=code.replace("VERSION", json.dumps(version)), deadline_s=DEADLINE_S * 3)
        peak = re.search(r"VmHWM:\s+(\d+) kB", await anyio.Path(f"/proc/{process.pid}/status").read_text())
    expected = js_bytes(size).translate(bytes(range(255, -1, -1)))
    assert (answer["size"], answer["digest"]) == (size, hashlib.sha256(expected).hexdigest())
    assert peak is not None
    assert int(peak[1]) < 150_000


@pytest.mark.parametrize("version", VERSIONS)
async def test_c74_the_loss_of_a_js_writer_breaks_the_stream_at_its_python_reader(
    version: str, nats_url: str, namespace: str, js_modules: object
) -> None:
    async with (
        ServiceBroker("py", namespace=namespace, transporter=nats_url) as broker,
        js_node(version, nats_url, namespace, "js") as js,
    ):
        await js.command("run", code=JS_SERVICE)
        await broker.wait_for_services("jsstream", timeout=DEADLINE_S)
        stream = await broker.call("jsstream.hang", timeout=DEADLINE_S)
        assert await anext(stream) == b"first"
        await js.stop()
        with pytest.raises(RequestRejectedError), anyio.fail_after(DEADLINE_S):
            await anext(stream)


@pytest.mark.parametrize("version", VERSIONS)
async def test_c74_a_python_writer_that_stops_breaks_the_stream_at_its_js_reader(
    version: str, nats_url: str, namespace: str, js_modules: object
) -> None:
    """It ends with a packet of the stream: a reader of 0.14 ignores the DISCONNECT."""
    service = Streams()
    async with (
        js_node(version, nats_url, namespace, "js") as js,
        ServiceBroker("py", namespace=namespace, transporter=nats_url, services=[service], shutdown_timeout=1) as py,
        anyio.create_task_group() as tasks,
    ):
        await js.wait_for_services("pystream", deadline_s=DEADLINE_S)
        answers: list[dict[str, Any]] = []

        async def read() -> None:
            code = JS_CALLER.replace("GIVEN", json.dumps({"action": "pystream.breaks", "onFirst": "pystream.read_one"}))
            code = code.replace("VERSION", json.dumps(version))
            answers.append(await js.command("run", code=code, deadline_s=DEADLINE_S))

        tasks.start_soon(read)
        with anyio.fail_after(DEADLINE_S):
            await service.read_first.wait()
        await py.stop()
    assert answers[0]["error"]["name"] == "RequestRejectedError"
    assert answers[0]["values"] == [{"i": 0}]
