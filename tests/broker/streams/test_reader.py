"""The reading end of a stream."""

import gc

import anyio
import pytest

from broker import MoleculerError, RequestTimeoutError
from broker.streams.reader import StreamReader

pytestmark = pytest.mark.anyio


def make_reader(limit_bytes: int = 100, idle_timeout_s: float = 30) -> StreamReader:
    return StreamReader(
        limit_bytes=limit_bytes,
        idle_timeout_s=idle_timeout_s,
        describe_idle=lambda: RequestTimeoutError({"action": "stream", "nodeID": "a"}),
    )


def listened_to() -> tuple[StreamReader, list[tuple[str, bool]]]:
    """A reader, and what its writer was told."""
    told: list[tuple[str, bool]] = []
    reader = make_reader()
    reader.reply = "writer"
    reader.tell = lambda reply, go_on: told.append((reply, go_on))
    return reader, told


async def test_chunks_are_read_in_order_to_the_end() -> None:
    reader = make_reader()
    reader.feed(b"a", 1)
    reader.feed({"b": 1}, 7)
    reader.end()
    assert [chunk async for chunk in reader] == [b"a", {"b": 1}]
    assert [chunk async for chunk in reader] == []


async def test_a_reader_waits_for_the_next_chunk() -> None:
    reader = make_reader()
    read: list[bytes] = []

    async def consume() -> None:
        read.extend([chunk async for chunk in reader])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consume)
        await anyio.wait_all_tasks_blocked()
        reader.feed(b"late", 4)
        await anyio.wait_all_tasks_blocked()
        assert read == [b"late"] or not read
        reader.end()
    assert read == [b"late"]


async def test_c71_an_error_is_raised_after_what_came_before_it() -> None:
    reader = make_reader()
    reader.feed(b"a", 1)
    reader.fail(MoleculerError("broke"))
    assert await anext(reader) == b"a"
    with pytest.raises(MoleculerError, match="broke"):
        await anext(reader)


async def test_a_writer_too_far_ahead_breaks_the_stream_and_holds_no_more_memory() -> None:
    reader = make_reader(limit_bytes=10)
    reader.feed(b"12345678", 8)
    reader.feed(b"90123", 5)
    reader.feed(b"x", 1)
    assert await anext(reader) == b"12345678"
    with pytest.raises(MoleculerError) as caught:
        await anext(reader)
    assert (caught.value.code, caught.value.type) == (429, "STREAM_OVERFLOW")


async def test_reading_makes_room() -> None:
    reader = make_reader(limit_bytes=10)
    for _ in range(20):
        reader.feed(b"12345678", 8)
        assert await anext(reader) == b"12345678"


async def test_the_writer_hears_what_was_read_and_not_before() -> None:
    reader, told = listened_to()
    reader.feed(b"a", 1, marked=True)
    reader.feed(b"b", 1)
    assert not told
    assert [await anext(reader), await anext(reader)] == [b"a", b"b"]
    assert told == [("writer", True)]


async def test_nothing_for_the_idle_timeout_is_a_timeout() -> None:
    reader = make_reader(idle_timeout_s=0.01)
    with pytest.raises(RequestTimeoutError):
        await anext(reader)


async def test_stopping_early_is_told_once_and_stopping_after_the_end_is_not() -> None:
    reader, told = listened_to()
    async with reader:
        reader.feed(b"a", 1)
    await reader.aclose()
    assert told == [("writer", False)]
    assert [chunk async for chunk in reader] == []
    ended, told = listened_to()
    ended.end()
    await ended.aclose()
    assert told == []


async def test_dropping_the_reader_stops_the_writer() -> None:
    reader, told = listened_to()
    reader.feed(b"a", 1)
    reader.feed(b"b", 1)
    async for _ in reader:
        break
    assert told == []
    del reader
    gc.collect()
    assert told == [("writer", False)]


async def test_dropping_the_reader_after_the_end_is_not_told() -> None:
    reader, told = listened_to()
    reader.end()
    del reader
    gc.collect()
    assert told == []


async def test_the_rest_of_a_stream_of_bytes_can_be_read_at_once() -> None:
    reader = make_reader()
    reader.feed(b"ab", 2)
    reader.feed(b"cd", 2)
    reader.end()
    assert await reader.read() == b"abcd"


async def test_while_much_waits_at_the_node_a_writer_is_answered_when_its_reader_has_caught_up() -> None:
    loaded = True
    told: list[bool] = []
    reader = StreamReader(
        limit_bytes=100, idle_timeout_s=30, describe_idle=lambda: TimeoutError(), is_loaded=lambda: loaded
    )
    reader.reply = "writer"
    reader.tell = lambda _reply, go_on: told.append(go_on)
    answers = []
    for marked in (True, False, True, True, False):
        reader.feed(b"x", 1, marked=marked)
    for _ in range(5):
        await anext(reader)
        answers.append(len(told))
    assert answers == [0, 0, 0, 1, 1]
    loaded = False
    reader.feed(b"x", 1, marked=True)
    await anext(reader)
    assert told == [True] * 4


async def test_a_stream_whose_backlog_is_dropped_fails_although_its_writer_is_done() -> None:
    reader = make_reader()
    reader.feed(b"x", 1)
    reader.end()
    reader.overflow(MoleculerError("too much"))
    assert reader.waiting == 0
    with pytest.raises(MoleculerError, match="too much"):
        await anext(reader)
