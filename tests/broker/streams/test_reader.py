"""The reading end of a stream."""

import gc
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from broker import MoleculerError, RequestTimeoutError
from broker.defaults import STREAM_PART_BYTES
from broker.protocol.codecs.json import JSONCodec
from broker.streams.incoming import IncomingStreams, StreamBuffer
from broker.streams.packets import CONTINUE, STOP
from broker.streams.reader import StreamReader

pytestmark = pytest.mark.anyio


class Side:
    """A stream from the wire, its reader, and what its writer was answered."""

    def __init__(self, limit_bytes: int = 1000, idle_timeout_s: float = 30) -> None:
        self.streams = IncomingStreams("py", 10, limit_bytes, limit_bytes, 60.0, JSONCodec().decode_chunk)
        self.buffer = StreamBuffer(self.streams, "a", objects=True, touched=0.0)
        self.answers: list[tuple[str, bytes]] = []
        self.reader = StreamReader(
            self.buffer, idle_timeout_s, lambda reply, answer: self.answers.append((reply, answer))
        )

    def feed(self, chunk: Any, size: int = 1, *, marked: bool = False) -> None:
        self.buffer.feed(chunk, size - STREAM_PART_BYTES, "writer" if marked else "")

    async def answered(self) -> list[tuple[str, bytes]]:
        gc.collect()
        await anyio.lowlevel.checkpoint()
        return self.answers


async def test_chunks_are_read_in_order_to_the_end() -> None:
    side = Side()
    side.feed(b"a")
    side.feed({"b": 1}, 7)
    side.buffer.finish()
    assert [chunk async for chunk in side.reader] == [b"a", {"b": 1}]
    assert [chunk async for chunk in side.reader] == []


async def test_a_reader_waits_for_the_next_chunk() -> None:
    side = Side()
    read: list[bytes] = []

    async def consume() -> None:
        read.extend([chunk async for chunk in side.reader])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consume)
        await anyio.wait_all_tasks_blocked()
        side.feed(b"late", 4)
        await anyio.wait_all_tasks_blocked()
        assert read == [b"late"] or not read
        side.buffer.finish()
    assert read == [b"late"]


async def test_c71_an_error_is_raised_after_what_came_before_it() -> None:
    side = Side()
    side.feed(b"a")
    side.buffer.finish(MoleculerError("broke"))
    assert await anext(side.reader) == b"a"
    with pytest.raises(MoleculerError, match="broke"):
        await anext(side.reader)


async def test_a_writer_too_far_ahead_breaks_the_stream_and_holds_no_more_memory() -> None:
    side = Side(limit_bytes=10)
    side.feed(b"12345678", 8)
    side.feed(b"90123", 5)
    side.feed(b"x", 1)
    assert await anext(side.reader) == b"12345678"
    with pytest.raises(MoleculerError) as caught:
        await anext(side.reader)
    assert (caught.value.code, caught.value.type) == (429, "STREAM_OVERFLOW")


async def test_reading_makes_room() -> None:
    side = Side(limit_bytes=10)
    for _ in range(20):
        side.feed(b"12345678", 8)
        assert await anext(side.reader) == b"12345678"


async def test_a_marked_chunk_is_acknowledged_when_it_is_read() -> None:
    side = Side()
    side.feed(b"a", marked=True)
    side.feed(b"b")
    assert not side.answers
    assert [await anext(side.reader), await anext(side.reader)] == [b"a", b"b"]
    assert side.answers == [("writer", CONTINUE)]


async def test_nothing_for_the_idle_timeout_is_a_timeout() -> None:
    side = Side(idle_timeout_s=0.01)
    with pytest.raises(RequestTimeoutError):
        await anext(side.reader)


@pytest.mark.parametrize("how", ["closed", "dropped"])
async def test_stopping_early_is_sent_once_and_nothing_is_kept(how: str) -> None:
    side = Side()
    side.feed(b"a", marked=True)
    side.feed(b"b")
    async for _ in side.reader:
        break
    assert side.answers == [("writer", CONTINUE)]
    if how == "closed":
        await side.reader.aclose()
        await side.reader.aclose()
        assert [chunk async for chunk in side.reader] == []
    del side.reader
    assert await side.answered() == [("writer", CONTINUE), ("writer", STOP)]
    side.feed(b"c")
    assert side.buffer.waiting == 0


@pytest.mark.parametrize("how", ["closed", "dropped"])
async def test_stopping_after_the_end_is_not_sent(how: str) -> None:
    side = Side()
    side.feed(b"a", marked=True)
    side.buffer.finish()
    if how == "closed":
        await side.reader.aclose()
    del side.reader
    assert await side.answered() == []


async def test_the_rest_of_a_stream_of_bytes_can_be_read_at_once() -> None:
    side = Side()
    side.feed(b"ab", 2)
    side.feed(b"cd", 2)
    side.buffer.finish()
    assert await side.reader.read() == b"abcd"


async def test_while_much_waits_at_the_node_a_writer_is_answered_when_its_reader_has_caught_up() -> None:
    side = Side()
    side.streams.is_high = True
    answers = []
    for marked in (True, False, True, True, False):
        side.feed(b"x", marked=marked)
    for _ in range(5):
        await anext(side.reader)
        answers.append(len(side.answers))
    assert answers == [0, 0, 0, 1, 1]
    side.streams.is_high = False
    side.feed(b"x", marked=True)
    await anext(side.reader)
    assert side.answers == [("writer", CONTINUE)] * 4


async def test_a_stream_whose_backlog_is_dropped_fails_although_its_writer_is_done() -> None:
    side = Side()
    side.feed(b"x")
    side.buffer.finish()
    side.buffer.drop(MoleculerError("too much"))
    assert side.buffer.waiting == 0
    with pytest.raises(MoleculerError, match="too much"):
        await anext(side.reader)
