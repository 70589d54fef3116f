"""The writing end of a stream (protocol §8.1-§8.3)."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import anyio
import pytest
from msgspec import Raw

from broker.defaults import STREAM_CHUNK_BYTES, STREAM_ERROR_AFTER_OPENING_S
from broker.errors import BrokerDisconnectedError, MoleculerError
from broker.protocol.codecs.json import JSONCodec
from broker.protocol.packets import Packet, Response
from broker.streams.flow import Flow
from broker.streams.packets import STOP
from broker.streams.source import Source
from broker.streams.writer import StreamWriter
from broker.transports.memory import too_large
from tests.support.routes import make_route

pytestmark = pytest.mark.anyio


class Wire:
    """Where packets end up, as plain dicts."""

    node_id = "b"

    def __init__(self, max_payload: int | None = None, *, acknowledges: bool = False) -> None:
        self.codec = JSONCodec()
        self.tasks = self
        self.packets: list[dict[str, Any]] = []
        self.marks: list[str] = []
        self.owed: list[Packet] = []
        self.broken = self.closed = False
        self.late: list[Coroutine[Any, Any, None]] = []
        self.route = make_route(acknowledges=acknowledges)
        self.writer: StreamWriter
        self.group: asyncio.TaskGroup
        self.max_payload = max_payload

    async def send(self, items: Any) -> list[dict[str, Any]]:
        source = Source(items)
        async with asyncio.TaskGroup() as self.group:
            await source.begin(self.start_handler)
            self.writer = StreamWriter(self, source, self.route, self._packet)
            await self.writer.open()
            self.writer.go_on()
        assert self.writer.done.is_set()
        for work in self.late:
            await work
        assert self.closed
        return self.packets

    async def publish(self, subject: str, packet: Packet, reply_id: str | None) -> None:
        if self.broken:
            raise BrokerDisconnectedError
        assert subject == self.route.subject
        encoded = self.codec.encode(packet)
        if self.max_payload is not None and len(encoded) > self.max_payload:
            raise too_large(len(encoded), self.max_payload)
        if reply_id:
            self.marks.append(reply_id)
        self.packets.append(json.loads(encoded))

    def owe(self, flow: Flow, ends: list[Packet]) -> None:
        self.owed += ends

    def close(self, flow: Flow) -> None:
        self.closed = True

    def start_handler(self, work: Coroutine[Any, Any, None]) -> bool:
        self.group.create_task(work)
        return True

    def start_in_background(self, work: Coroutine[Any, Any, None]) -> None:
        self.late.append(work)

    def _packet(self, sequence: int, more: bool, chunk: Raw, error: BaseException | None) -> Packet:
        failure = {"error": {"message": str(error), "data": getattr(error, "data", None)}} if error else {}
        return Response(
            sender="b", id="1", success=error is None, data=chunk, stream=more, sequence=sequence, **failure
        )


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


async def test_an_exception_that_is_too_large_is_told_as_such_in_its_place() -> None:
    async def breaking() -> AsyncIterator[bytes]:
        yield b"a"
        raise MoleculerError("much" * 2000)

    packets = await Wire(max_payload=4096).send(breaking())
    assert (packets[-1]["seq"], packets[-1]["stream"], packets[-1]["success"]) == (2, False, False)
    assert "max_payload" in packets[-1]["error"]["message"]


async def test_c71_an_early_error_comes_to_a_js_node_when_it_has_a_reader_to_tell() -> None:
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


async def test_an_error_of_the_source_is_told_though_it_speaks_of_a_lost_connection() -> None:
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
                wire.writer.mark_answered(STOP)
        finally:
            closed.append(True)

    packets = await wire.send(endless())
    assert packets[-1]["stream"] is False
    assert closed == [True]
    assert wire.marks == ["r1:1"]


@pytest.mark.parametrize("first", [[], [b"a"]], ids=["before the first chunk", "after it"])
async def test_c74_a_node_that_stops_ends_a_stream_that_has_nothing_to_send(
    first: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.streams.source.STREAM_OPENING_S", 0.01)
    wire = Wire(acknowledges=True)

    async def silent() -> AsyncIterator[bytes]:
        for chunk in first:
            yield chunk
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wire.send, silent())
        with anyio.fail_after(30):
            while len(wire.packets) < 1 + len(first):  # noqa: ASYNC110 - no event tells of it
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


@pytest.mark.parametrize(("acknowledges", "sequences"), [(False, [0, 1]), (True, [3])])
async def test_a_reader_that_may_lack_chunks_is_told_later_in_a_form_that_it_takes(
    acknowledges: bool, sequences: list[int]
) -> None:
    """A JS node puts aside what comes behind a lost chunk."""
    wire = Wire(acknowledges=acknowledges)

    async def items() -> AsyncIterator[bytes]:
        yield b"a"
        wire.broken = True
        yield b"b"

    await wire.send(items())
    assert all(isinstance(end, Response) and not end.success and not end.stream for end in wire.owed)
    assert [end.sequence for end in wire.owed if isinstance(end, Response)] == sequences


@pytest.mark.parametrize(("items", "sent"), [([{"a": 1}, None, {"b": 1}], 1), ([None], 0)])
async def test_none_breaks_a_stream_off_as_javascript_takes_it_for_the_end(items: list[Any], sent: int) -> None:
    packets = await Wire().send(items)
    assert (packets[-1]["seq"], packets[-1]["stream"], packets[-1]["success"]) == (sent + 1, False, False)
    assert "cannot hold None" in packets[-1]["error"]["message"]
