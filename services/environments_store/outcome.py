"""Recovery of interrupted writes: after a lost connection, and after a change of the table."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from services.environments_store.defaults import StoreLimits
from services.environments_store.errors import DatabaseUnavailableError, OutcomeUnknownError, StalePlanError

__all__ = ["across_changes", "settle"]

T = TypeVar("T")


async def across_changes(transaction: Callable[[], Awaitable[T]]) -> T:
    """Run a transaction, and once more if a change of the table made a plan stale: the driver repeats only single
    statements."""
    try:
        return await transaction()
    except StalePlanError:
        return await transaction()


async def settle(error: OutcomeUnknownError, look: Callable[[], Awaitable[T | None]], limits: StoreLimits) -> T:
    """Read the outcome of a write back by `look`, retrying until the database is reachable.

    Raises DatabaseUnavailableError for None, which does not prove that nothing was stored: others may have changed it
    since; and `error` itself when the database does not answer within `read_back_s`.
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
                    "The connection to the database was lost, and this write is not visible. Try again."
                ) from error
            return answer
    raise error
