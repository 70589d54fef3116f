"""A stream that stays within one node: no wire, and the same to read as one from another node."""

import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from broker.cancellation import ASKED_ONLY
from broker.streams.reader import Readable

logger = logging.getLogger("broker")


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
        aclose = getattr(self._items, "aclose", None)
        try:
            if aclose is not None:
                await aclose()
        except Exception:  # as between nodes, where nobody waits for it
            logger.exception("The source of a stream failed when it was closed")
        finally:
            if self._along is not None:
                await self._along.aclose()
