"""Streams on the wire: Python sends the same packets as a JS node for the same content (protocol §8)."""

import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker import Context, MoleculerClientError, Service, action
from tests.interop.conftest import Cluster

pytestmark = pytest.mark.anyio

BYTES = [b"aa", b"\xff\x00", b"c"]
VALUES: list[Any] = [{"n": 1}, "text", [1, None]]
JS_CHUNKS = "[Buffer.from([97, 97]), Buffer.from([255, 0]), Buffer.from([99])]"

# `broker.send(action, objects, fails)` streams in, `flow.out` streams out, both what Python does below.
JS = """
const { Readable } = process.getBuiltinModule("node:stream");
const streamOf = ctx => ctx.stream || ctx.params;
const contents = { true: VALUES, false: CHUNKS };
function source({ objects, fails, empty }) {
    return Readable.from((async function* () {
        if (!empty) yield* contents[Boolean(objects)];
        if (fails) throw Object.assign(new Error("broke"), { name: "MoleculerClientError", code: 418, type: "T",
            retryable: false, data: { d: 1 } });
    })(), { objectMode: Boolean(objects) });
}
async function read(stream) {
    const seen = [];
    try { for await (const item of stream) Buffer.isBuffer(item) ? seen.push(...item) : seen.push(item); }
    catch (error) { return { seen, error: error.message, code: error.code }; }
    return { seen };
}
broker.createService({ name: "flow", actions: {
    in: ctx => read(streamOf(ctx)),
    out: ctx => source(ctx.params),
} });
broker.send = (action, order) => OLD
    ? broker.call(action, source(order), { meta: { m: 1 } })
    : broker.call(action, { p: 1 }, { meta: { m: 1 }, headers: { h: "1" }, stream: source(order) });
await broker.waitForServices("flow", 10000, 20);
"""


async def contents(objects: bool = False, fails: bool = False, empty: bool = False) -> AsyncIterator[Any]:
    for item in () if empty else VALUES if objects else BYTES:
        yield item
    if fails:
        raise MoleculerClientError("broke", 418, "T", {"d": 1})


class Flow(Service):
    name = "pyflow"

    @action(name="in")
    async def read(self, ctx: Context) -> Any:
        seen: list[Any] = []
        try:
            async for item in ctx.stream:
                seen += item if isinstance(item, bytes) else [item]
        except MoleculerClientError as error:
            return {"seen": seen, "error": error.message, "code": error.code}
        return {"seen": seen}

    @action
    async def out(
        self, ctx: Context, objects: bool = False, fails: bool = False, empty: bool = False
    ) -> AsyncIterator[Any]:
        async for item in contents(objects, fails, empty):
            yield item

    @action
    async def worst(self, ctx: Context) -> AsyncIterator[bytes]:
        yield b"\xff" * 3_000_000


@pytest.fixture(scope="module")
async def flow(cluster: Cluster) -> Cluster:
    await cluster.broker.add_service(Flow())
    code = JS.replace("VALUES", '[{ n: 1 }, "text", [1, null]]').replace("CHUNKS", JS_CHUNKS)
    await cluster.js.run(code.replace("OLD", str(cluster.ver == "4").lower()))
    await cluster.js.wait_for_services("pyflow")
    await cluster.broker.wait_for_services("flow", timeout=30)
    return cluster


ORDERS: list[dict[str, bool]] = [
    {},
    {"objects": True},
    {"empty": True},
    {"fails": True},
    {"objects": True, "fails": True},
]


def comparable(packet: dict[str, Any]) -> dict[str, Any]:
    """Without the fields that differ between any two streams."""
    plain = {name: value for name, value in packet.items() if name not in ("id", "sender", "requestID", "action")}
    for error in (
        plain.get("error"),
        plain.get("meta", {}).get("$streamError"),
        (plain.get("headers") or {}).get("$streamError"),
    ):
        if error:
            for name in ("stack", "nodeID"):
                error.pop(name, None)
    return plain


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: " ".join(order) or "bytes")
async def test_c68_c69_c71_c73_an_answer_stream_has_the_packets_of_js(flow: Cluster, order: dict[str, bool]) -> None:
    packets = {}
    for node, called in (("js", "flow.out"), ("py", "pyflow.out")):
        mark = await flow.tap.mark()
        packet = {"ver": flow.ver, "sender": "tap", "id": f"out-{node}", "action": called, "params": order}
        await flow.tap.publish(f"REQ.{node}", {**packet, "meta": {"m": 1}, "headers": {"h": "1"}})
        await flow.tap.wait_for("RES.tap", after=mark, sender=node, stream=False)
        packets[node] = [comparable(packet) for packet in flow.tap.find("RES.tap", after=mark, sender=node)]
    assert packets["py"] == packets["js"]
    check_sequence(packets["py"], "data")


async def test_c67_chunks_without_an_action_belong_to_their_stream(flow: Cluster) -> None:
    """moleculer-java sends every packet after the opening of a stream without the action."""
    common = {"ver": flow.ver, "sender": "tap", "id": "java"}
    opening: dict[str, Any] = {"params": None, "meta": {}, "timeout": 9000, "level": 1, "stream": True, "seq": 0}
    chunk = {"stream": True, "seq": 1, "params": {"type": "Buffer", "data": list(b"hello")}}
    end = {"success": True, "meta": {}, "stream": False, "seq": 2}
    answers = []
    for node, called in (("js", "flow.in"), ("py", "pyflow.in")):
        mark = await flow.tap.mark()
        for packet in ({**opening, "action": called}, chunk, end):
            await flow.tap.publish(f"REQ.{node}", {**common, **packet})
        answers.append((await flow.tap.wait_for("RES.tap", after=mark, id="java"))["data"])
    assert answers == [{"seen": list(b"hello")}] * 2


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: " ".join(order) or "bytes")
async def test_c67_c69_c71_c73_a_request_stream_has_the_packets_of_js(flow: Cluster, order: dict[str, bool]) -> None:
    mark = await flow.tap.mark()
    options: dict[str, Any] = {"meta": {"m": 1}, "stream": contents(**order)}
    if flow.ver == "5":
        options |= {"headers": {"h": "1"}, "params": {"p": 1}}
    here = await flow.broker.call("flow.in", **options)
    there = await flow.js.run(f"return broker.send('pyflow.in', {{ {', '.join(f'{name}: true' for name in order)} }})")
    expected = [] if order.get("empty") else VALUES if order.get("objects") else list(b"".join(BYTES))
    assert there["seen"] == expected
    for result in (here, there):
        if not order.get("fails"):  # JS then discards the chunks it has not read yet
            assert result["seen"] == expected
        assert result.get("error") == ("broke" if order.get("fails") else None)
    await flow.tap.catch_up()
    ours = [comparable(packet) for packet in flow.tap.find("REQ.js", after=mark, action="flow.in")]
    theirs = [comparable(packet) for packet in flow.tap.find("REQ.py", after=mark, action="pyflow.in")]
    assert ours == theirs
    check_sequence(ours, "params")


def check_sequence(packets: list[dict[str, Any]], chunk: str) -> None:
    assert [packet["seq"] for packet in packets] == list(range(len(packets)))
    assert [packet["stream"] for packet in packets] == [True] * (len(packets) - 1) + [False]
    assert None not in [packet[chunk] for packet in packets[1:-1]]
    assert packets[-1][chunk] is None


async def test_c70_chunks_in_any_order_are_delivered_once_and_in_order(flow: Cluster) -> None:
    """JS sorts them too; only Python drops duplicates."""
    for node, called, doubled in (("js", "flow.in", False), ("py", "pyflow.in", True)):
        packet = {"ver": flow.ver, "sender": "tap", "id": f"any-{node}", "action": called, "meta": {}, "timeout": 0}
        chunks = [{**packet, "seq": n, "stream": True, "params": {"type": "Buffer", "data": [n]}} for n in range(1, 6)]
        packets = [
            {**packet, "seq": 0, "stream": True, "params": None},
            *chunks,
            {**packet, "seq": 6, "stream": False, "params": None},
        ]
        seed = random.SystemRandom().randrange(2**32)
        shuffled = [*packets, *(chunks if doubled else ())]
        random.Random(seed).shuffle(shuffled)
        mark = await flow.tap.mark()
        for one in shuffled:
            await flow.tap.publish(f"REQ.{node}", one)
        answer = await flow.tap.wait_for("RES.tap", after=mark, id=f"any-{node}")
        assert answer["data"] == {"seen": [1, 2, 3, 4, 5]}, f"{node}, seed {seed}"
        await flow.tap.settle(node, ver=flow.ver)
        assert len(flow.tap.find("RES.tap", after=mark, id=f"any-{node}")) == 1


async def test_c72_no_packet_exceeds_max_payload_whatever_the_bytes(flow: Cluster) -> None:
    mark = await flow.tap.mark()
    size = await flow.js.run(
        "let size = 0; for await (const chunk of await broker.call('pyflow.worst')) size += chunk.length; return size"
    )
    assert size == 3_000_000
    await flow.tap.catch_up()
    sizes = [len(seen.data) for seen in flow.tap.seen[mark:] if seen.topic == "RES.js"]
    assert max(sizes) <= 1024 * 1024
    assert max(sizes) > 512 * 1024, "and not needlessly small"


async def test_c44_the_meta_of_an_answer_stream_comes_back_too(flow: Cluster) -> None:
    class Marked(Service):
        name = "marked"

        @action
        async def out(self, ctx: Context) -> AsyncIterator[bytes]:
            ctx.meta["seen"] = 1
            yield b"a"

    await flow.broker.add_service(Marked())
    await flow.js.wait_for_services("marked")
    code = "const meta = { m: 1 }; const s = await broker.call('marked.out', {}, { meta }); s.resume(); return meta"
    assert await flow.js.run(code) == {"m": 1, "seen": 1}
    await flow.js.run(
        "const { Readable } = process.getBuiltinModule('node:stream');"
        "broker.createService({ name: 'jsmarked', actions: { out(ctx) { ctx.meta.seen = 1;"
        " return Readable.from([Buffer.from('a')], { objectMode: false }); } } });"
    )
    await flow.broker.wait_for_services("jsmarked", timeout=30)
    meta = {"m": 1}
    stream = await flow.broker.call("jsmarked.out", meta=meta, timeout=30)
    assert await stream.read() == b"a"
    assert meta == {"m": 1, "seen": 1}


async def test_c74_streams_of_a_node_that_leaves_break(flow: Cluster) -> None:
    """A raw peer leaves mid-stream; a 0.14 reader neither ends nor fails."""
    info = {"services": [], "instanceID": "i", "seq": 2, "config": {}}
    await flow.tap.publish("INFO", {"ver": flow.ver, "sender": "leaver", **info})
    packet = {"ver": flow.ver, "sender": "leaver", "id": "left", "action": "pyflow.in", "meta": {}, "timeout": 0}
    await flow.tap.publish("REQ.py", {**packet, "seq": 0, "stream": True, "params": None})
    chunk = {"type": "Buffer", "data": [1]}
    await flow.tap.publish("REQ.py", {**packet, "seq": 1, "stream": True, "params": chunk})
    await flow.tap.settle("py", ver=flow.ver)
    mark = await flow.tap.mark()
    await flow.tap.publish("DISCONNECT", {"ver": flow.ver, "sender": "leaver"})
    answer = await flow.tap.wait_for("RES.leaver", after=mark, id="left")
    assert (answer["success"], answer["error"]["name"]) == (False, "RequestRejectedError")
