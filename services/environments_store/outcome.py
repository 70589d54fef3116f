"""What is done when a write met trouble half-way: a connection that died before the answer, a table that changed."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from services.environments_store.defaults import StoreLimits
from services.environments_store.errors import DatabaseUnavailableError, OutcomeUnknownError, StalePlanError

__all__ = ["across_changes", "settle"]

T = TypeVar("T")


async def across_changes(transaction: Callable[[], Awaitable[T]]) -> T:
    """The outcome of a transaction, made once more when the table was changed in the middle of it: unlike a statement
    by itself, it is not repeated by the driver."""
    try:
        return await transaction()
    except StalePlanError:
        return await transaction()


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
