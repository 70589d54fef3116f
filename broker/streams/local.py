"""A stream that stays within one node: no wire, and the same to read as one from another node."""

from collections.abc import AsyncIterator, Callable
from typing import Any

from broker.cancellation import ASKED_ONLY
from broker.streams.reader import Readable
from broker.streams.source import close_quietly


class LocalStream(Readable):
    """Items of an iterator, each made what another node would get. Closing it closes the iterator, and `along`, the
    stream that was sent along with the request that this one answers."""

    def __init__(
        self, items: AsyncIterator[Any], as_remote: Callable[[Any], Any], along: Readable | None = None
    ) -> None:
        self._items = items
        self._as_remote = as_remote
        self._along = along

    async def __anext__(self) -> Any:
        with ASKED_ONLY:
            return self._as_remote(await anext(self._items))

    async def aclose(self) -> None:
        try:
            await close_quietly(self._items)
        finally:
            if self._along is not None:
                await self._along.aclose()
