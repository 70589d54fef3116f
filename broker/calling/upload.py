"""The source of a stream that a call takes along: read in one task, from its first item to its end.

What a source opens on the way, such as a scope or a task group, can be closed in no other task. The call waits for the
first item, which tells whether the stream is one of bytes, but not for long: that may be an answer to what the call
brings. The node it goes to is known only later, and may be another one when the first turns out to be gone.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio

from broker.calling.outgoing import Source
from broker.defaults import STREAM_OPENING_S
from broker.errors import BrokerDisconnectedError
from broker.node.node import Node
from broker.streams.flow import Flow


class Upload:
    """One source on its way out."""

    def __init__(self, node: Node, items: Any) -> None:
        self.source = Source(items)
        self.sent = False
        """Whether items have gone out: they cannot be sent again."""
        self._node = node
        self._reading = Flow(acknowledges=False)
        self._begun = anyio.Event()
        self._decided = anyio.Event()
        self._failure: Exception | None = None
        self._write: Callable[[], Awaitable[None]] | None = None
        self._handed_over = False

    async def open(self) -> None:
        """Wait for the first item, but not for long. Raises what the source raises meanwhile."""
        if not self._node.start_handler(self._read()):
            raise BrokerDisconnectedError("The broker has stopped.")
        with anyio.move_on_after(STREAM_OPENING_S):
            await self._begun.wait()
        if not self._begun.is_set():
            self.source.announce()
        elif self._failure is not None:
            raise self._failure

    def send(self, write: Callable[[], Awaitable[None]]) -> None:
        """Go on with the source in `write`."""
        self.sent, self._write = True, write
        self._decided.set()

    def hand_over(self) -> AsyncIterator[Any]:
        """The items, for a handler of this node. Whoever reads them closes the source."""
        self._handed_over = True
        self._decided.set()
        return self._items()

    async def _items(self) -> AsyncIterator[Any]:
        await self._begun.wait()
        async for item in self.source.items():
            yield item

    def drop(self) -> None:
        """Close the source, unless it is on its way."""
        if not self._decided.is_set():
            self._reading.stop()

    def abandon(self) -> None:
        """Wait no more for its first item."""
        if not self._begun.is_set():
            self._reading.stop()

    async def _read(self) -> None:
        try:
            async with self._reading.writing():
                await self._open()
                await self._decided.wait()
            if self._write is not None:
                await self._write()
        finally:
            if not self._handed_over:
                await self.source.close()

    async def _open(self) -> None:
        self._failure = BrokerDisconnectedError("The broker has stopped.")  # unless this comes to its end
        try:
            await self.source.open()
        except Exception as error:
            self._failure = error
            self.drop()
        else:
            self._failure = None
        finally:
            self._begun.set()
