"""Streams that come in: what each packet makes the node do (protocol §8.4)."""

import random
import tracemalloc
from typing import Any

import pytest
from msgspec import UNSET, Raw

from broker.defaults import STREAM_MARK_BYTES, STREAM_PART_BYTES
from broker.errors import InvalidPacketDataError, MoleculerError
from broker.protocol.codecs.json import JSONCodec
from broker.protocol.packets import Address, Request, Response
from broker.streams.incoming import IncomingStreams, StreamBuffer
from broker.streams.packets import OBJECT_MODE


def request(sequence: int, *, more: bool = True, params: bytes = b"null", **fields: Any) -> Request:
    fields = {"sender": "js", "id": "1", "action": "a.b", "ver": "5", **fields}
    return Request(params=Raw(params), stream=more, sequence=sequence, **fields)


def response(sequence: int, *, more: bool = True, data: bytes = b"null", **fields: Any) -> Response:
    fields = {"sender": "js", "id": "1", "success": True, "ver": "5", **fields}
    return Response(data=Raw(data), stream=more, sequence=sequence, **fields)


class Side:
    """One receiving node, and what it made of packets."""

    def __init__(
        self, *, accept: bool = True, limit: int = 10, buffer_bytes: int = 1000, total_bytes: int = 10_000
    ) -> None:
        decode = JSONCodec().decode_chunk
        self.incoming = IncomingStreams("py", limit, buffer_bytes, total_bytes, 60.0, decode)
        self.accept = accept
        self.opened: list[tuple[Request | Response, StreamBuffer]] = []
        self.refused: list[Any] = []

    def take(self, packet: Request | Response, *, reply: str = "", now: float = 0.0) -> bool:
        """Whether it is a chunk that is not read."""
        opening, buffer, unread = self.incoming.take(packet, reply, now)
        if opening is not None and buffer is None:
            self.refused.append(opening.id)
        elif opening is not None and buffer is not None:
            self.opened.append((opening, buffer))
            if not self.accept:
                buffer.drop()
        return unread

    def chunks(self, number: int = 0) -> list[Any]:
        """What can be read of a stream."""
        buffer = self.opened[number][1]
        return [buffer.pop()[0] for _ in range(len(buffer))]

    def end(self, number: int = 0) -> Exception | None:
        """How a stream has ended for its reader."""
        return self.opened[number][1].end

    def waiting(self) -> list[int]:
        """How many packets of each open stream wait for one that is missing."""
        return [len(buffer._early) + (buffer._early_end is not None) for buffer in self.incoming.open.values()]


def is_overflow(error: Exception | None) -> bool:
    return isinstance(error, MoleculerError) and error.type == "STREAM_OVERFLOW"


def overflowed(side: Side) -> bool:
    return is_overflow(side.end())


def test_c73_the_opening_packet_begins_the_action_and_carries_no_chunk() -> None:
    side = Side()
    assert not side.take(request(0))
    assert side.chunks() == []


def test_c67_chunks_are_fed_and_the_end_ends() -> None:
    side = Side()
    for packet in (
        request(0),
        request(1, params=b'{"type":"Buffer","data":[1]}'),
        request(2, params=b'{"type":"Buffer","data":[2]}'),
        request(3, more=False),
    ):
        assert not side.take(packet)
    assert side.chunks() == [b"\1", b"\2"]
    assert isinstance(side.end(), StopAsyncIteration)
    assert not side.incoming.has(request(4))


def test_c70_packets_in_any_order_come_out_in_theirs() -> None:
    seed = random.SystemRandom().randrange(2**32)
    sequences = list(range(200))
    random.Random(seed).shuffle(sequences)
    side = Side(buffer_bytes=100_000)
    for sequence in sequences:
        side.take(request(sequence, params=b"%d" % sequence, meta={OBJECT_MODE: True}))
    assert side.chunks() == list(range(1, 200)), f"seed {seed}"


def test_c70_duplicates_are_dropped_whether_read_or_waiting() -> None:
    side = Side(buffer_bytes=100_000)
    for sequence in (0, 0, 2, 2, 1, 1, 2, 3):
        side.take(request(sequence, params=b'"%d"' % sequence))
    assert (len(side.opened), side.chunks()) == (1, [b"1", b"2", b"3"])
    assert side.opened[0][1].waiting == 0


def test_c70_chunks_that_come_before_the_opening_wait_for_it() -> None:
    side = Side()
    for sequence in (2, 1, 0):
        side.take(request(sequence, params=b'"%d"' % sequence))
        assert len(side.opened) == (sequence == 0)
    assert side.chunks() == [b"1", b"2"]


def test_c69_object_mode_is_that_of_the_first_packet_that_arrives_and_is_hidden() -> None:
    side = Side()
    flags: dict[str, Any] = {OBJECT_MODE: True}
    side.take(request(1, params=b"1", ver="4", meta=dict(flags)))
    side.take(request(0, ver="4", meta={**flags, "m": 1}))
    assert side.chunks() == [1]
    assert side.opened[0][0].meta == {"m": 1}


ERROR = {"name": "MyError", "message": "no", "code": 418, "retryable": False}


@pytest.mark.parametrize(
    ("opening", "end"),
    [
        (request(0), request(1, more=False, headers={"$streamError": ERROR})),
        (request(0, ver="4"), request(1, more=False, ver="4", meta={"$streamError": ERROR})),
        (response(0), response(1, more=False, success=False, error=ERROR)),
    ],
    ids=["a request", "a request of protocol 4", "an answer"],
)
def test_c71_a_broken_stream_ends_with_its_error(opening: Request | Response, end: Request | Response) -> None:
    side = Side()
    side.take(opening)
    side.take(end)
    error = side.end()
    assert isinstance(error, MoleculerError)
    assert (error.name, error.code, error.message) == ("MyError", 418, "no")


def test_the_rest_of_a_refused_stream_is_dropped_and_known_as_unread() -> None:
    side = Side(accept=False)
    side.take(request(0))
    assert side.take(request(1, params=b'"1"'))
    assert side.take(request(2, params=b'"1"'), reply="mark")
    assert side.opened[0][1].waiting == 0
    assert not side.take(request(3, more=False))
    assert not side.incoming.has(request(0))


def test_c68_an_answer_is_opened_and_read_to_its_end() -> None:
    side = Side()
    side.take(response(0, meta={"m": 1}))
    side.take(response(1, data=b'"1"'))
    side.take(response(2, more=False))
    assert side.opened[0][0].meta == {"m": 1}
    assert side.chunks() == [b"1"]
    assert isinstance(side.end(), StopAsyncIteration)


def test_only_the_sender_of_a_stream_can_add_to_it() -> None:
    side = Side()
    side.take(request(0))
    side.take(request(1, params=b'"1"', sender="other"))
    side.take(request(1, params=b'"2"'))
    assert side.chunks() == [b"2"]


def test_c74_a_lost_node_breaks_its_streams_and_no_others() -> None:
    side = Side()
    side.take(request(0))
    side.take(request(0, sender="other", id="2"))
    side.incoming.lose("js")
    error = side.end()
    assert isinstance(error, MoleculerError)
    assert error.name == "RequestRejectedError"
    assert side.end(1) is None
    assert side.incoming.has(request(1, sender="other", id="2"))


@pytest.mark.parametrize("chunk", [b"1" * 100, b""], ids=["", "without content"])
def test_what_waits_for_a_missing_packet_is_bounded(chunk: bytes) -> None:
    side = Side(buffer_bytes=10 * STREAM_PART_BYTES)
    side.take(request(0))
    for number in range(2, 30):
        side.take(request(number, params=chunk))
    assert overflowed(side)
    assert side.opened[0][1].waiting == 0


def test_a_stream_that_was_broken_off_keeps_nothing_of_what_still_comes() -> None:
    side = Side()
    side.take(request(0))
    error = InvalidPacketDataError({"command": "REQ", "reason": "odd"})
    for _ in range(2):
        side.incoming.refuse("REQ", Address(sender="js", id="1"), error)
    assert side.end() is error
    for number in range(2, 30):
        assert side.take(request(number, params=b"1" * 10), reply="mark")
    assert side.opened[0][1].waiting == 0
    side.take(request(30, more=False))
    assert not side.incoming.has(request(31))


def test_a_chunk_that_cannot_be_decoded_breaks_its_stream_and_is_known_as_unread() -> None:
    side = Side()
    side.take(request(0))
    assert side.take(request(1, params=b'{"type":"Buffer","data":[256]}'), reply="mark")
    assert isinstance(side.end(), InvalidPacketDataError)


def test_the_number_of_streams_is_bounded() -> None:
    side = Side(limit=2)
    for number in range(3):
        for kind in (request, response):
            side.take(kind(0, id=str(number)))
            side.take(kind(1, id=str(number)))
    assert len(side.opened) == 2
    assert side.refused == ["1", "1", "2", "2"]
    assert side.incoming.overfull("a.b").data == {"action": "a.b", "nodeID": "py", "size": 2, "limit": 2}


def test_of_a_chunk_that_waits_for_a_missing_packet_its_message_is_not_kept() -> None:
    side = Side(buffer_bytes=10_000)
    side.take(request(0))
    tracemalloc.start()
    try:
        for number in range(2, 5):
            more = b'{"ver":"5","sender":"js","id":"1","action":"a.b","stream":true,"params":"chunk","seq":%d' % number
            packet = JSONCodec().decode("REQ", more + b',"meta":{"much":"%s"}}' % (b"x" * 1_000_000))
            assert isinstance(packet, Request)
            side.take(packet)
            del packet
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 100_000
    side.take(request(1, params=b'"1"'))
    assert side.chunks() == [b"1", *[b"chunk"] * 3]


def test_of_the_ends_that_wait_for_a_missing_packet_one_is_kept() -> None:
    side = Side()
    side.take(request(0))
    for number in range(5, 1000):
        assert not side.take(request(number, more=False, meta={"much": "x" * 1000}))
    assert side.waiting() == [1]


@pytest.mark.parametrize(("accept", "sequence"), [(False, 0), (True, 1)], ids=["refused", "never opened"])
def test_what_reader_unreachable_is_forgotten_after_a_while(accept: bool, sequence: int) -> None:
    side = Side(accept=accept)
    side.take(request(sequence))
    side.incoming.expire(59.0)
    assert side.incoming.has(request(1))
    side.incoming.expire(61.0)
    assert not side.incoming.has(request(1))


def test_a_stream_with_a_reader_is_not_forgotten() -> None:
    side = Side()
    side.take(request(0))
    assert side.incoming.waits_for(1.0) == {"js"}
    side.incoming.expire(61.0)
    assert side.incoming.has(request(1))


def test_a_second_end_and_what_follows_an_end_are_dropped() -> None:
    side = Side()
    for packet in (request(2, more=False), request(3, params=b'"1"'), request(0), request(1, more=False)):
        side.take(packet)
    assert isinstance(side.end(), StopAsyncIteration)
    assert side.chunks() == []


def test_a_null_chunk_is_no_chunk() -> None:
    side = Side()
    side.take(request(0))
    assert not side.take(request(1), reply="mark")
    assert side.chunks() == []
    assert side.end() is None
    assert request(1).headers is UNSET


def test_c70_an_end_of_sequence_1_breaks_a_stream_that_lacks_a_chunk() -> None:
    side = Side()
    for packet in (response(0), response(1, data=b'"1"'), response(3, data=b'"3"')):
        side.take(packet)
    assert not side.take(response(0, more=False, success=False))
    assert side.incoming.has(response(1))
    side.take(response(1, more=False, success=False, error={"name": "MoleculerError", "message": "lost"}))
    assert not side.incoming.has(response(1))
    assert side.chunks() == [b"1"]
    assert isinstance(side.end(), MoleculerError)


@pytest.mark.parametrize(
    ("marks", "broken"),
    [("", ["C"]), ("C", ["B"]), ("ABC", [])],
    ids=["the one that is furthest ahead", "not one that can be slowed down", "none, when all can be"],
)
def test_one_bound_holds_for_all_streams(marks: str, broken: list[str]) -> None:
    side = Side(buffer_bytes=50_000_000, total_bytes=13_000_000)
    sequences: dict[str, int] = {}
    for id, megabytes in (("A", 1), ("B", 5), ("C", 7), ("A", 1)):
        side.take(request(0, id=id))
        for _ in range(megabytes):
            sequences[id] = sequences.get(id, 0) + 1
            packet = request(sequences[id], params=b'"%s"' % (b"x" * STREAM_MARK_BYTES), id=id)
            side.take(packet, reply="mark" if id in marks else "")
    assert [opening.id for opening, buffer in side.opened if is_overflow(buffer.end)] == broken
    assert sum(buffer.waiting for _, buffer in side.opened) <= 13_000_000 + len(marks) * 1_000_000
    if "C" in broken:  # what it sent is not kept, nor what it still sends
        buffer = next(buffer for opening, buffer in side.opened if opening.id == "C")
        side.take(request(8, params=b'"more"', id="C"))
        assert buffer.waiting == 0
