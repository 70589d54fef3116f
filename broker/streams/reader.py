"""The reading end of a stream: what a handler or a caller holds, and how what is sent is read."""

import asyncio
import logging
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, Self

from broker.cancellation import failure_of, invoke_user
from broker.errors import RequestTimeoutError
from broker.streams.incoming import StreamBuffer
from broker.streams.packets import CONTINUE, STOP

logger = logging.getLogger("broker")


class Readable(AsyncIterator[Any]):
    """What a handler or a caller reads: `async for chunk in stream`, bytes or values as the writer sent them."""

    @abstractmethod
    async def aclose(self) -> None:
        """Read no further. Calling it again has no effect."""

    async def read(self) -> bytes:
        """Everything that is left of a stream of bytes."""
        return b"".join([chunk async for chunk in self])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class StreamReader(Readable):
    """A stream from another node.

    Ends when the writer ends. Raises the writer's error, RequestRejectedError when its node is lost,
    RequestTimeoutError when nothing came for the idle timeout, STREAM_OVERFLOW when a writer that cannot be slowed
    down is too far ahead. `aclose` (also by leaving `async with`) stops a Python writer; so does dropping the reader,
    as a `break` out of `async for chunk in await ctx.call(…)` does.
    """

    def __init__(self, buffer: StreamBuffer, idle_timeout_s: float, answer: Callable[[str, bytes], None]) -> None:
        """`answer` takes a reply subject of the writer and CONTINUE, for each marked chunk that is read, or STOP, when
        the reader stops before the writer does."""
        self._buffer = buffer
        self._idle_timeout_s = idle_timeout_s
        self._answer = answer
        self._loop = asyncio.get_running_loop()
        self._unanswered = 0
        self._arrived = asyncio.Event()
        buffer.wake = self._arrived.set

    async def __anext__(self) -> Any:
        buffer = self._buffer
        while not buffer:
            if buffer.end is not None:
                raise buffer.end
            self._arrived.clear()
            try:
                async with asyncio.timeout(self._idle_timeout_s or None):
                    await self._arrived.wait()
            except TimeoutError:
                buffer.finish(RequestTimeoutError(buffer.about))
        chunk, marked = buffer.pop()
        if marked:
            self._let_go_on()
        return chunk

    async def aclose(self) -> None:
        self._stop()

    def __del__(self) -> None:
        self._stop()

    def _stop(self) -> None:
        """Any thread may do so, as the garbage collector does."""
        buffer = self._buffer
        ended = buffer.end is not None
        buffer.drop()
        if not ended and buffer.reply:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._answer, buffer.reply, STOP)

    def _let_go_on(self) -> None:
        """Answer a mark. While too much waits at this node, only the last one that is here: so the writer stays closer
        to its reader."""
        buffer = self._buffer
        self._unanswered += 1
        answers = int(not buffer.marks) if buffer.streams.is_high else self._unanswered
        self._unanswered -= answers
        for _ in range(answers):
            self._answer(buffer.reply, CONTINUE)


class LocalStream(Readable):
    """A stream within one node: items of an iterator, each made what another node would get. Closing it closes the
    iterator, and `along`, the stream that was sent along with the request that this one answers."""

    def __init__(
        self, items: AsyncIterator[Any], as_remote: Callable[[Any], Any], along: Readable | None = None
    ) -> None:
        self._items = items
        self._as_remote = as_remote
        self._along = along

    async def __anext__(self) -> Any:
        return self._as_remote(await invoke_user(anext, self._items))

    async def aclose(self) -> None:
        try:
            await close_quietly(self._items)
        finally:
            if self._along is not None:
                await self._along.aclose()


def is_stream(value: object) -> bool:
    """Whether a handler's result is to be sent as a stream."""
    return hasattr(value, "__aiter__")


async def async_iterator(items: Any) -> AsyncIterator[Any]:
    """One async iterator for async and plain iterables; bytes themselves are one chunk."""
    if isinstance(items, bytes | bytearray | memoryview):
        yield bytes(items)
    elif is_stream(items):
        try:
            async for item in items:
                yield item
        except asyncio.CancelledError as error:
            raise failure_of(error)  # noqa: B904 - it may be the error itself
        finally:
            await close_quietly(items)
    else:
        for item in items:
            yield item


async def close_quietly(items: Any) -> None:
    """Close an iterable, if it can be closed. What that raises is logged, as no caller is left to get it."""
    try:
        if hasattr(items, "aclose"):
            await items.aclose()
    except Exception:
        logger.exception("The source of a stream failed when it was closed")
