"""The writing end of a stream (protocol §8.1-§8.3)."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import anyio
import pytest

from broker import Context
from broker.defaults import STREAM_CHUNK_BYTES, STREAM_ERROR_AFTER_OPENING_S, STREAM_OVERTAKEN_S, STREAM_PING_AGAIN_S
from broker.errors import BrokerDisconnectedError, MoleculerError, RequestRejectedError
from broker.protocol.codecs.json import JSONCodec
from broker.protocol.packets import Packet, Ping, Pong
from broker.streams.flow import FLOW_CONTROL, Fate, Flow
from broker.streams.outgoing import OutgoingStreams
from broker.streams.packets import CONTINUE, STOP
from broker.streams.writer import StreamWriter
from broker.transports.memory import too_large
from tests.support.transits import info, make_transit, meet, request

pytestmark = pytest.mark.anyio
BROKER: Any = None


class Wire:
    """What node "b" sends to node "a", as plain dicts. "a" answers pings."""

    has_inbox = True

    def __init__(self, max_payload: int | None = None, *, acknowledges: bool = False) -> None:
        self.codec = JSONCodec()
        self.transit = make_transit("b")
        meet(self.transit, "a")
        self.transit.registry.nodes["a"].client[FLOW_CONTROL] = True
        self.packets: list[dict[str, Any]] = []
        self.marks: list[str] = []
        self.broken = False
        self.loses_pings = 0
        self.late: list[Coroutine[Any, Any, None]] = []
        self.acknowledges = acknowledges
        self.group: asyncio.TaskGroup
        self.max_payload = max_payload
        self.streams = OutgoingStreams(
            "b", self.transit.topics, self.transit.registry, self.codec, self, self.publish, self
        )

    async def send(self, items: Any, *, settle: bool = True) -> list[dict[str, Any]]:
        writer = StreamWriter(self.streams, items)
        asked = request("x.y", sender="a", id="1")
        ctx = Context.from_request(BROKER, asked, self.codec.decode_value, None)
        async with asyncio.TaskGroup() as self.group:
            await writer.answer(asked, "reply.1" if self.acknowledges else "", ctx, None)
        assert writer.done.is_set()
        sent = self.packets.copy()
        if settle:
            await self.settle()
        return sent

    async def settle(self) -> None:
        """The connection is back, and what the writer does in the background comes to its end."""
        self.broken = False
        for work in self.late:
            await work
        assert len(self.streams) == 0

    async def publish(self, subject: str, packet: Packet, reply_id: str | None) -> None:
        if self.broken:
            raise BrokerDisconnectedError
        if isinstance(packet, Ping):
            self.loses_pings -= 1
            if self.loses_pings < 0:
                self.streams.pong(Pong(sender="a", id=packet.id))
            return
        assert subject == "MOL.RES.a"
        encoded = self.codec.encode(packet)
        if self.max_payload is not None and len(encoded) > self.max_payload:
            raise too_large(len(encoded), self.max_payload)
        if reply_id:
            self.marks.append(reply_id)
        self.packets.append(json.loads(encoded))

    def start_handler(self, work: Coroutine[Any, Any, None]) -> bool:
        self.group.create_task(work)
        return True

    def start_in_background(self, work: Coroutine[Any, Any, None]) -> None:
        self.late.append(work)


async def test_c68_an_empty_stream_is_an_opening_and_an_end() -> None:
    packets = await Wire().send([])
    assert [(packet["seq"], packet["stream"]) for packet in packets] == [(0, True), (1, False)]


async def test_c73_sequences_count_up_and_the_opening_carries_nothing() -> None:
    packets = await Wire().send([b"a", b"b"])
    assert [packet["seq"] for packet in packets] == [0, 1, 2, 3]
    assert packets[0]["data"] is packets[-1]["data"] is None
    assert packets[1]["data"] == {"type": "Buffer", "data": [97]}


@pytest.mark.parametrize("beyond", [-STREAM_CHUNK_BYTES, -1, 0, 1, STREAM_CHUNK_BYTES])
async def test_bytes_are_cut_without_loss_and_never_above_the_size_of_a_chunk(beyond: int) -> None:
    data = bytes(STREAM_CHUNK_BYTES + beyond)
    packets = await Wire().send([data, b"end"])
    chunks = [bytes(packet["data"]["data"]) for packet in packets[1:-1]]
    assert b"".join(chunks) == data + b"end"
    assert all(len(chunk) <= STREAM_CHUNK_BYTES for chunk in chunks)


@pytest.mark.parametrize("byte", [0, 99, 255])
async def test_c72_no_chunk_is_above_max_payload_whatever_the_bytes_are(byte: int) -> None:
    wire = Wire(max_payload=4096)
    packets = await wire.send(bytes([byte]) * 10_000)
    received = b"".join(bytes(packet["data"]["data"]) for packet in packets if packet["data"])
    assert received == bytes([byte]) * 10_000


async def test_a_value_above_max_payload_breaks_the_stream_with_words() -> None:
    packets = await Wire(max_payload=4096).send([{"a": 1}, "x" * 5000])
    assert packets[-1]["stream"] is False
    assert "max_payload" in packets[-1]["error"]["message"]


async def test_an_exception_of_the_source_reaches_the_reader() -> None:
    async def breaking() -> AsyncIterator[bytes]:
        yield b"a"
        raise ValueError("broke")

    packets = await Wire().send(breaking())
    assert (packets[-1]["success"], packets[-1]["error"]["message"]) == (False, "broke")


async def test_an_exception_that_is_too_large_is_replaced_by_one_that_says_so() -> None:
    async def breaking() -> AsyncIterator[bytes]:
        yield b"a"
        raise MoleculerError("much" * 2000)

    packets = await Wire(max_payload=4096).send(breaking())
    assert (packets[-1]["seq"], packets[-1]["stream"], packets[-1]["success"]) == (2, False, False)
    assert "max_payload" in packets[-1]["error"]["message"]


async def test_c71_an_early_error_reaches_a_js_node_when_it_has_a_reader() -> None:
    async def breaking() -> AsyncIterator[bytes]:
        yield b"a"
        raise ValueError("broke")

    began = anyio.current_time()
    await Wire(acknowledges=False).send(breaking())
    assert anyio.current_time() - began >= STREAM_ERROR_AFTER_OPENING_S


@pytest.mark.parametrize("data", [{"no": "form", "in": {"json": object()}}, "x" * 5000], ids=["no form", "too large"])
async def test_an_error_that_cannot_be_sent_still_ends_the_stream(data: Any) -> None:
    async def breaking() -> AsyncIterator[bytes]:
        yield b"a"
        raise MoleculerError("broke", 500, "BROKE", data)

    packets = await Wire(max_payload=4096).send(breaking())
    assert [(packet["seq"], packet["stream"]) for packet in packets] == [(0, True), (1, True), (2, False)]
    assert not packets[-1]["success"]


async def test_an_error_of_the_source_is_sent_even_if_it_is_about_a_lost_connection() -> None:
    async def passing_on() -> AsyncIterator[bytes]:
        yield b"a"
        raise BrokerDisconnectedError("of a third node")

    packets = await Wire().send(passing_on())
    assert packets[-1]["error"]["message"] == "of a third node"


async def test_a_stream_of_bytes_that_goes_on_with_values_breaks() -> None:
    packets = await Wire().send([b"a", {"b": 1}])
    assert "began with bytes" in packets[-1]["error"]["message"]


async def test_a_reader_that_stops_ends_the_source_and_the_stream() -> None:
    wire = Wire(acknowledges=True)
    closed: list[bool] = []

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"a"
                wire.streams.marked("RES-1:1", STOP)
        finally:
            closed.append(True)

    packets = await wire.send(endless())
    assert packets[-1]["stream"] is False
    assert closed == [True]
    assert wire.marks == ["RES-1:1"]


@pytest.mark.parametrize("first", [[], [b"a"]], ids=["before the first chunk", "after it"])
async def test_c74_a_node_that_stops_ends_a_stream_that_has_nothing_to_send(
    first: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.streams.writer.STREAM_OPENING_S", 0.01)
    wire = Wire(acknowledges=True)

    async def silent() -> AsyncIterator[bytes]:
        for chunk in first:
            yield chunk
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wire.send, silent())
        with anyio.fail_after(30):
            while len(wire.packets) < 1 + len(first):  # noqa: ASYNC110 - no event announces it
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    assert (wire.packets[-1]["stream"], wire.packets[-1]["success"]) == (False, False)


async def test_a_lost_connection_ends_the_writing_quietly() -> None:
    wire = Wire()

    async def items() -> AsyncIterator[bytes]:
        yield b"a"
        wire.broken = True
        yield b"b"

    assert len(await wire.send(items())) == 2


async def broken_off(wire: Wire) -> None:
    """Send a stream whose connection is lost before its second chunk."""

    async def items() -> AsyncIterator[bytes]:
        yield b"a"
        wire.broken = True
        yield b"b"

    await wire.send(items(), settle=False)
    wire.packets.clear()


@pytest.mark.parametrize("acknowledges", [False, True])
async def test_a_reader_that_may_lack_chunks_gets_a_late_end_in_a_form_that_it_takes(acknowledges: bool) -> None:
    """A node puts aside what comes behind a lost chunk."""
    wire = Wire(acknowledges=acknowledges)
    await broken_off(wire)
    await wire.settle()
    assert not any(end["success"] or end["stream"] for end in wire.packets)
    assert [end["seq"] for end in wire.packets] == [0, 1]


async def test_a_late_end_that_may_be_lost_is_sent_again() -> None:
    wire = Wire(acknowledges=True)
    await broken_off(wire)
    wire.loses_pings = 1
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wire.settle)
        await anyio.wait_all_tasks_blocked()
        assert len(wire.packets) == 2
        later = anyio.current_time() + STREAM_PING_AGAIN_S
        await wire.streams.tick(later)  # the next ping is answered, and the one before it has been lost
        await wire.streams.tick(later + STREAM_OVERTAKEN_S)
    assert len(wire.packets) == 4


@pytest.mark.parametrize("again", ["same", "another", "never"])
async def test_a_late_end_waits_for_the_process_that_read_and_not_for_long(
    again: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.streams.writer.STREAM_PING_AGAIN_S", 0.001)
    monkeypatch.setattr("broker.streams.writer.FORGET_OFFLINE_S", 0.1 if again == "never" else 60)
    wire = Wire(acknowledges=True)
    await broken_off(wire)
    wire.transit.registry.lose_node("a", 1.0, unexpected=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wire.settle)
        await anyio.wait_all_tasks_blocked()
        assert wire.packets == []
        if again != "never":
            wire.transit.receive("INFO", info("a", instance=None if again == "same" else again), 2.0)
    assert len(wire.packets) == (2 if again == "same" else 0)


@pytest.mark.parametrize(("items", "sent"), [([{"a": 1}, None, {"b": 1}], 1), ([None], 0)])
async def test_none_breaks_a_stream_off_as_javascript_takes_it_for_the_end(items: list[Any], sent: int) -> None:
    packets = await Wire().send(items)
    assert (packets[-1]["seq"], packets[-1]["stream"], packets[-1]["success"]) == (sent + 1, False, False)
    assert "cannot hold None" in packets[-1]["error"]["message"]


async def test_what_comes_from_outside_reaches_the_streams_that_it_is_about() -> None:
    streams = Wire().streams

    def begin(id: str, node_id: str = "a") -> Flow:
        return streams.open("REQ", request("x.y", id=id), node_id)

    one, other = begin("1"), begin("2", "c")
    between = asyncio.get_running_loop().time()
    await anyio.sleep(0.001)  # the clock goes on
    late = begin("3")
    assert one.pace is late.pace is not other.pace
    one.mark(1, 1)
    streams.marked("REQ-1:1", CONTINUE)
    assert one._ahead == 3
    assert streams.reader_of("REQ-2:7") == "c"
    assert streams.reader_of("unknown") is None
    streams.gone("a", until=between)
    assert [flow.fate for flow in (one, other, late)] == [Fate.LOST, Fate.OPEN, Fate.OPEN]
    assert isinstance(one.error, RequestRejectedError)
    assert one.error.data == {"action": "x.y", "nodeID": "a"}
    streams.denied("MOL.REQ.c")
    assert isinstance(other.error, MoleculerError)
    assert other.error.data == {"subject": "MOL.REQ.c"}
    for flow in (one, other, late):
        streams.close(flow)
    assert len(streams) == 0
