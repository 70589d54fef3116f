"""Rows of many documents, of which the large ones are held one at a time."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing

from services.environments_store.database.base import Row

__all__ = ["alone_when_large"]


async def alone_when_large(
    batches: AsyncGenerator[Sequence[Row]], fetch: Callable[[object], Awaitable[Sequence[Row]]]
) -> AsyncGenerator[Sequence[Row]]:
    """The same rows in the same order; one that has `large` true is fetched by its id, and is a batch of its own."""
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
                yield (await fetch(row["id"]))[:1]
            if together:
                yield together
