"""What is sent as a stream: any iterable of bytes or of values, read in one task from its first item to its end.

What a source opens on the way, such as a scope or a task group, can be closed in no other task.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import anyio

from broker.cancellation import failure_of
from broker.defaults import STREAM_OPENING_S
from broker.errors import BrokerDisconnectedError

logger = logging.getLogger("broker")


class Source:
    """One iterable. Its first item tells whether it is one of bytes or of values.

    The node that what a call takes along goes to is known only when that item is there, or is late, and may be another
    one when the first turns out to be gone.
    """

    def __init__(self, items: Any) -> None:
        self._items = async_iterator(items)
        self._first: list[Any] = []
        self._failure: Exception | None = None
        self._announced = False
        self._section: asyncio.Timeout | None = None
        self.of_bytes = True
        """Whether its items are bytes, which may be cut to fit."""
        self.sent = False
        """Whether items have gone out: they cannot be sent again."""
        self._begun = asyncio.Event()
        self._decided = asyncio.Event()
        self._write: Callable[[], Awaitable[None]] | None = None
        self._cut_short: Callable[[], Awaitable[None]] | None = None
        self._handed_over = False

    @property
    def objects(self) -> bool:
        """Whether its reader is told that it is one of values."""
        return self._announced or not self.of_bytes

    async def items(self) -> AsyncIterator[Any]:
        """Every item, the first one too."""
        for item in self._first:
            yield item
        self._first.clear()
        if self._failure is not None:
            raise self._failure
        async for item in self._items:
            yield item

    async def close(self) -> None:
        """Close the iterable."""
        await close_quietly(self._items)

    @asynccontextmanager
    async def breakable(self) -> AsyncIterator[None]:
        """What is done in here is broken off by `break_off`, wherever it waits: the next item may never come."""
        try:
            async with asyncio.timeout(None) as section:
                self._section = section
                yield
        except TimeoutError:
            if not section.expired():
                raise
        finally:
            self._section = None

    def break_off(self) -> None:
        """Break off what waits; without effect when nothing does."""
        if self._section is not None:
            self._section.reschedule(asyncio.get_running_loop().time())
            self._section = None

    async def begin(self, start: Callable[[Coroutine[Any, Any, None]], bool]) -> None:
        """Wait for the first item, but not for long, as it may be an answer to what is sent along: a stream that opens
        without it is one of values, which bytes may be, too (§8.3). Raises what the source raises meanwhile."""
        if not start(self._read()):
            raise BrokerDisconnectedError("The broker has stopped.")
        with anyio.move_on_after(STREAM_OPENING_S):
            await self._begun.wait()
        if not self._begun.is_set():
            self._announced = True
        elif self._failure is not None:
            raise self._failure

    def send(self, write: Callable[[], Awaitable[None]], cut_short: Callable[[], Awaitable[None]]) -> None:
        """Go on with the source in `write`; `cut_short` is called when its task is cancelled."""
        self.sent, self._write, self._cut_short = True, write, cut_short
        self._decided.set()

    def hand_over(self) -> AsyncIterator[Any]:
        """The items, for a handler of this node, which closes the source."""
        self._handed_over = True
        self._decided.set()
        return self._items_here()

    def drop(self) -> None:
        """Close the source, unless it is on its way."""
        if not self._decided.is_set():
            self.break_off()

    async def _items_here(self) -> AsyncIterator[Any]:
        await self._begun.wait()
        async for item in self.items():
            yield item

    async def _open(self) -> None:
        self._failure = BrokerDisconnectedError("The broker has stopped.")  # unless this comes to its end
        try:
            async for item in self._items:
                self._first.append(item)
                self.of_bytes = isinstance(item, bytes | bytearray | memoryview)
                break
        except Exception as error:
            self._failure = error
            if not self._announced:  # else its reader gets it
                self.drop()
        else:
            self._failure = None
        finally:
            self._begun.set()

    async def _read(self) -> None:
        try:
            async with self.breakable():
                await self._open()
                await self._decided.wait()
            if self._write is not None:
                await self._write()
        except asyncio.CancelledError:
            if self._cut_short is not None:
                await self._cut_short()
            raise
        finally:
            if not self._handed_over:
                await self.close()


def is_stream(value: object) -> bool:
    """Whether a handler's result is to be sent as a stream."""
    return hasattr(value, "__aiter__")


async def async_iterator(items: Any) -> AsyncIterator[Any]:
    """One async iterator for async and plain iterables; bytes themselves are one chunk."""
    if isinstance(items, bytes | bytearray | memoryview):
        yield bytes(items)
    elif hasattr(items, "__aiter__"):
        try:
            async for item in items:
                yield item
        except asyncio.CancelledError as error:
            raise failure_of(error)  # noqa: B904 - it may be the error itself
        finally:
            await close(items)
    else:
        for item in items:
            yield item


async def close_quietly(items: Any) -> None:
    """Tell an iterable that no more is wanted. What its end raises is logged, as there is no caller to get it."""
    try:
        await close(items)
    except Exception:
        logger.exception("The source of a stream failed when it was closed")


async def close(items: Any) -> None:
    """Close what can be closed."""
    aclose = getattr(items, "aclose", None)
    if aclose is not None:
        await aclose()
