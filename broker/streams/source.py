"""What is sent as a stream: any iterable of bytes or of values, async or not."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

from broker.cancellation import failure_of

logger = logging.getLogger("broker")


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
    """Tell an iterable that no more is wanted. What its end raises is logged, as there is no caller to get it."""
    try:
        if hasattr(items, "aclose"):
            await items.aclose()
    except Exception:
        logger.exception("The source of a stream failed when it was closed")
