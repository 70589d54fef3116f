"""Streams that come in: what each packet makes the node do (protocol §8.4)."""

import gc
import tracemalloc
from typing import Any

import pytest
from msgspec import UNSET, Raw

from broker.conversation.effects import Effect, EndStream, FeedStream, Pending, Reject, Settle, StopWriter
from broker.conversation.incoming_streams import Receiving
from broker.defaults import STREAM_MARK_BYTES, STREAM_PART_BYTES
from broker.errors import InvalidPacketDataError
from broker.protocol.codecs.json import JSONCodec
from broker.protocol.packets import Address, Request, Response
from broker.streams.ordering import OBJECT_MODE
from broker.streams.reader import StreamOverflowError, StreamReader


def request(sequence: int, *, more: bool = True, params: bytes = b"null", **fields: Any) -> Request:
    fields = {"sender": "js", "id": "1", "action": "a.b", "ver": "5", **fields}
    return Request(params=Raw(params), stream=more, sequence=sequence, **fields)


def response(sequence: int, *, more: bool = True, data: bytes = b"null", **fields: Any) -> Response:
    fields = {"sender": "js", "id": "1", "success": True, "ver": "5", **fields}
    return Response(data=Raw(data), stream=more, sequence=sequence, **fields)


class Side:
    """One receiving node, and what it was told to do."""

    def __init__(
        self, *, accept: bool = True, limit: int = 10, buffer_bytes: int = 1000, total_bytes: int = 10_000
    ) -> None:
        self.receiving = Receiving("py", limit, buffer_bytes, total_bytes, 60.0)
        self.sequences: dict[str, int] = {}
        self.begun: list[tuple[Request, StreamReader]] = []
        self.accept = accept
        self.refused = 0

    def request(self, packet: Request, now: float = 0.0) -> list[Effect]:
        return self.receiving.request(packet, "", now, self._begin, self._refuse)

    def response(self, packet: Response, pending: Pending | None) -> list[Effect]:
        return self.receiving.response(packet, "", 0.0, lambda _id: pending)

    def _begin(self, packet: Request, reader: StreamReader) -> tuple[bool, list[Effect]]:
        self.begun.append((packet, reader))
        return self.accept, []

    def _refuse(self) -> list[Effect]:
        self.refused += 1
        return []


def kinds(effects: list[Effect]) -> list[str]:
    return [type(effect).__name__ for effect in effects]


def test_c73_the_opening_packet_begins_the_action_and_carries_no_chunk() -> None:
    side = Side()
    assert side.request(request(0)) == []
    assert len(side.begun) == 1


def test_c67_chunks_are_fed_and_the_end_ends() -> None:
    side = Side()
    side.request(request(0))
    fed = side.request(request(1, params=b'{"type":"Buffer","data":[1]}'))
    ended = side.request(request(2, more=False))
    assert kinds(fed + ended) == ["FeedStream", "EndStream"]
    assert not side.receiving.has_request(request(3))


def test_c70_chunks_that_come_before_the_opening_wait_for_it() -> None:
    side = Side()
    assert side.request(request(2, params=b"2")) == []
    assert side.request(request(1, params=b"1")) == []
    effects = side.request(request(0))
    assert [bytes(effect.chunk) for effect in effects if isinstance(effect, FeedStream)] == [b"1", b"2"]


def test_c69_object_mode_is_that_of_the_first_packet_that_arrives_and_is_hidden() -> None:
    side = Side()
    flags: dict[str, Any] = {OBJECT_MODE: True}
    side.request(request(1, params=b"1", ver="4", meta=dict(flags)))
    (fed,) = side.request(request(0, ver="4", meta={**flags, "m": 1}))
    assert isinstance(fed, FeedStream)
    assert fed.objects
    assert side.begun[0][0].meta == {"m": 1}


def test_c71_a_broken_request_stream_ends_with_its_error() -> None:
    side = Side()
    error = {"name": "MyError", "message": "no", "code": 418, "retryable": False}
    side.request(request(0))
    (end,) = side.request(request(1, more=False, headers={"$streamError": error}))
    assert isinstance(end, EndStream)
    assert end.error is not None
    assert (end.error.name, end.error.code) == ("MyError", 418)


def test_the_rest_of_a_refused_stream_is_swallowed() -> None:
    side = Side(accept=False)
    side.request(request(0))
    assert side.request(request(1, params=b"1")) == []
    assert side.request(request(2, more=False)) == []
    assert not side.receiving.has_request(request(0))


def test_c68_an_answer_settles_its_request_with_a_reader() -> None:
    side = Side()
    pending = Pending("1", "js", "a.b", None, 0.0)
    (settle,) = side.response(response(0, meta={"m": 1}), pending)
    fed = side.response(response(1, data=b"1"), None)
    ended = side.response(response(2, more=False), None)
    assert isinstance(settle, Settle)
    assert settle.stream is not None
    assert kinds(fed + ended) == ["FeedStream", "EndStream"]


def test_c71_a_broken_answer_ends_with_its_error() -> None:
    side = Side()
    _held = side.response(response(0), Pending("1", "js", "a.b", None, 0.0))
    broken = response(1, more=False, success=False, error={"name": "X", "message": "broke"})
    (end,) = side.response(broken, None)
    assert isinstance(end, EndStream)
    assert end.error is not None
    assert end.error.message == "broke"


def test_an_answer_nobody_waits_for_is_swallowed() -> None:
    side = Side()
    assert side.response(response(0), None) == []
    assert side.response(response(1, data=b"1"), None) == []


def test_only_the_sender_of_a_stream_can_add_to_it() -> None:
    side = Side()
    side.request(request(0))
    assert side.request(request(1, params=b"1", sender="other")) == []
    (fed,) = side.request(request(1, params=b"2"))
    assert isinstance(fed, FeedStream)
    assert bytes(fed.chunk) == b"2"


def test_c74_a_lost_node_breaks_its_streams_and_no_others() -> None:
    side = Side()
    side.request(request(0))
    side.request(request(0, sender="other", id="2"))
    (end,) = side.receiving.lose("js")
    assert isinstance(end, EndStream)
    assert end.error is not None
    assert end.error.name == "RequestRejectedError"
    assert side.receiving.has_request(request(1, sender="other", id="2"))


def test_what_waits_for_a_missing_packet_is_bounded() -> None:
    side = Side(buffer_bytes=100)
    side.request(request(0))
    effects = [effect for number in range(2, 30) for effect in side.request(request(number, params=b"1" * 10))]
    assert kinds(effects) == ["EndStream"]


def test_a_stream_that_was_broken_off_keeps_nothing_of_what_still_comes() -> None:
    side = Side(buffer_bytes=100)
    side.request(request(0))
    error = InvalidPacketDataError({"command": "REQ", "reason": "odd"})
    address = Address(sender="js", id="1")
    assert kinds(side.receiving.refuse("REQ", address, error)) == ["EndStream"]
    assert side.receiving.refuse("REQ", address, error) == []
    assert [effect for number in range(2, 30) for effect in side.request(request(number, params=b"1" * 10))] == []
    side.request(request(30, more=False))
    assert not side.receiving.has_request(request(31))


def test_a_writer_that_can_be_told_hears_that_its_stream_was_broken_off() -> None:
    side = Side()
    side.request(request(0))
    side.receiving.refuse("REQ", Address(sender="js", id="1"), InvalidPacketDataError({"command": "REQ"}))
    (told,) = side.receiving.request(request(2, params=b"1"), "mark", 0.0, side._begin, side._refuse)
    assert told == StopWriter("mark")


def test_of_a_stream_whose_reader_was_dropped_nothing_is_kept_and_its_writer_hears_so() -> None:
    side = Side()
    side.request(request(0))
    side.begun.clear()
    gc.collect()
    assert side.receiving.request(request(1, params=b"1"), "mark", 0.0, side._begin, side._refuse) == [
        StopWriter("mark")
    ]
    assert side.request(request(2, params=b"1")) == []
    side.receiving.expire(61.0)
    assert not side.receiving.has_request(request(3))


def test_the_number_of_streams_is_bounded() -> None:
    side = Side(limit=2)
    for number in range(5):
        side.request(request(0, id=str(number)))
        side.request(request(1, id=str(number)))
    assert (len(side.begun), side.refused) == (2, 3)


def test_an_answer_that_is_one_stream_too_many_fails_its_call() -> None:
    side = Side(limit=1)
    side.response(response(0), Pending("1", "js", "a.b", None, 0.0))
    (rejected,) = side.response(response(0, id="2"), Pending("2", "js", "a.b", None, 0.0))
    assert isinstance(rejected, Reject)
    assert rejected.error.data == {"action": "a.b", "nodeID": "py", "size": 1, "limit": 1}
    assert side.response(response(1, id="2"), None) == []


def test_chunks_without_content_that_wait_for_a_missing_packet_are_bounded() -> None:
    side = Side(buffer_bytes=10 * STREAM_PART_BYTES)
    side.request(request(0))
    effects = [effect for number in range(2, 30) for effect in side.request(request(number, params=b""))]
    assert kinds(effects) == ["EndStream"]


def test_of_a_chunk_that_waits_for_a_missing_packet_its_message_is_not_kept() -> None:
    side = Side()
    side.request(request(0))
    tracemalloc.start()
    try:
        for number in range(2, 5):
            more = b'{"ver":"5","sender":"js","id":"1","action":"a.b","stream":true,"params":"chunk","seq":%d' % number
            packet = JSONCodec().decode("REQ", more + b',"meta":{"much":"%s"}}' % (b"x" * 1_000_000))
            assert isinstance(packet, Request)
            assert side.request(packet) == []
            del packet
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 100_000
    fed = side.request(request(1, params=b"1"))
    assert [bytes(effect.chunk) for effect in fed if isinstance(effect, FeedStream)] == [b"1", *[b'"chunk"'] * 3]


def test_of_the_ends_that_wait_for_a_missing_packet_one_is_kept() -> None:
    side = Side()
    side.request(request(0))
    for number in range(5, 1000):
        assert side.request(request(number, more=False, meta={"much": "x" * 1000})) == []
    (stream,) = side.receiving._streams.values()
    assert len(stream.ordered._waiting) == 1


def test_what_nobody_reads_is_forgotten_after_a_while() -> None:
    side = Side(accept=False)
    side.request(request(0), now=0.0)
    side.receiving.expire(59.0)
    assert side.receiving.has_request(request(1))
    side.receiving.expire(61.0)
    assert not side.receiving.has_request(request(1))


def test_a_second_end_and_what_follows_an_end_are_dropped() -> None:
    side = Side()
    side.request(request(2, more=False))
    side.request(request(3, params=b"1"))
    effects = side.request(request(0)) + side.request(request(1, more=False))
    assert kinds(effects).count("EndStream") == 1


def test_a_null_chunk_is_no_chunk() -> None:
    side = Side()
    side.request(request(0))
    assert [e for e in side.request(request(1)) if not isinstance(e, FeedStream)] == []
    assert request(1).headers is UNSET


def test_c70_an_end_of_sequence_1_breaks_a_stream_that_lacks_a_chunk() -> None:
    side = Side()
    side.response(response(0), Pending("1", "js", "a.b", None, 0.0))
    side.response(response(1, data=b"1"), None)
    side.response(response(3, data=b"3"), None)
    assert side.response(response(0, more=False, success=False), None) == []
    assert side.receiving.has_response(response(1))
    side.response(response(1, more=False, success=False, error={"name": "MoleculerError", "message": "lost"}), None)
    assert not side.receiving.has_response(response(1))


@pytest.mark.parametrize(
    ("marks", "broken"),
    [("", ["C"]), ("C", ["B"]), ("ABC", [])],
    ids=["the one that is furthest ahead", "not one that can be slowed down", "none, when all can be"],
)
def test_one_bound_holds_for_all_streams(marks: str, broken: list[str]) -> None:
    side = Side(buffer_bytes=50_000_000, total_bytes=13_000_000)
    for id, megabytes in (("A", 1), ("B", 5), ("C", 7), ("A", 1)):
        side.request(request(0, id=id))
        for _ in range(megabytes):
            side.sequences[id] = side.sequences.get(id, 0) + 1
            packet = request(side.sequences[id], params=b"x" * STREAM_MARK_BYTES, id=id)
            for effect in side.receiving.request(packet, "", 0.0, side._begin, side._refuse):
                if isinstance(effect, FeedStream):
                    effect.reader.reply = "mark" if id in marks else ""
                    effect.reader.feed(effect.chunk, len(effect.chunk))
                else:
                    assert isinstance(effect, EndStream)
                    assert isinstance(effect.error, StreamOverflowError)
                    assert effect.drop
                    effect.reader.overflow(effect.error)
    assert [opening.id for opening, reader in side.begun if reader.ended] == broken
    assert sum(reader.waiting for _, reader in side.begun) <= 13_000_000 + len(marks) * 1_000_000
