"""Rows of many documents, of which the large ones are held one at a time."""

import ctypes
import io
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any

import anyio.lowlevel

from services.environments_store.database.base import Row
from services.environments_store.defaults import StoreLimits

__all__ = ["WholeRow", "alone_when_large", "return_large_buffers"]

_M_MMAP_THRESHOLD = -3  # of malloc.h


async def alone_when_large(
    batches: AsyncGenerator[Sequence[Row]], fetch: Callable[[Row], Awaitable[Sequence[Row]]]
) -> AsyncGenerator[Sequence[Row]]:
    """The same rows in the same order; one that has `large` true is fetched, and is a batch of its own."""
    async with aclosing(batches):
        async for rows in batches:
            together: list[Row] = []
            for row in rows:
                if not row["large"]:
                    together.append(row)
                    continue
                if together:
                    yield together
                    together = []
                found = await _put_together(list(await fetch(row)))
                yield found
                del found  # before the next is fetched
            if together:
                yield together


class WholeRow:
    """A row with a document that was read by itself."""

    def __init__(self, row: Row, document: bytes) -> None:
        self._row = row
        self._document = document

    def __getitem__(self, key: Any, /) -> Any:
        return self._document if key == "environment" else self._row[key]


async def _put_together(pieces: list[Row]) -> Sequence[Row]:
    """The row whose document came in pieces. Each piece is let go when it is copied, and the loop is free between."""
    if len(pieces) < 2:
        return pieces
    document = io.BytesIO()  # whose value is no copy, unlike what `join` gives
    pieces.reverse()
    while pieces:
        last = pieces.pop()
        document.write(last["environment"])
        await anyio.lowlevel.checkpoint()
    return [WholeRow(last, document.getvalue())]


def return_large_buffers() -> None:
    """Have glibc give each large buffer back to the system when it is freed. By itself it raises the size from which it
    does so to that of the largest document that it has met, and keeps several times as much. Other C libraries have no
    such setting."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, StoreLimits().thread_from_bytes)
