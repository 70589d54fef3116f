"""What became of a write whose connection died before the answer."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from services.environments_store.defaults import StoreLimits
from services.environments_store.errors import DatabaseUnavailableError, OutcomeUnknownError

__all__ = ["settle"]

T = TypeVar("T")


async def settle(error: OutcomeUnknownError, look: Callable[[], Awaitable[T | None]], limits: StoreLimits) -> T:
    """The answer of `look`, tried until the database is back. None from it is no proof: what was stored may have been
    changed by others since.

    Raises DatabaseUnavailableError for None, and the unknown outcome itself when the database did not answer within
    `read_back_s`.
    """
    with anyio.move_on_after(limits.read_back_s):
        while True:
            try:
                answer = await look()
            except DatabaseUnavailableError:
                await anyio.sleep(limits.read_back_pause_s)
                continue
            if answer is None:
                raise DatabaseUnavailableError(
                    "The connection to the database was lost, and nothing of this write is to be seen. Try again."
                ) from error
            return answer
    raise error
