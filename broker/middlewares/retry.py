"""Try again what may succeed the next time (moleculer protocol §12.2)."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from broker.defaults import RETRY_DELAY_S, RETRY_FACTOR, RETRY_MAX_DELAY_S
from broker.errors import MoleculerError, ServiceNotAvailableError, ServiceNotFoundError

T = TypeVar("T")


async def with_retries(attempt: Callable[[], Awaitable[T]], retries: int) -> T:
    """Run `attempt` up to `retries` more times while it fails with a retryable error.

    Waits 100, 200, 400, 800, 1000, 1000… milliseconds between. A failure to find the action here is not tried again:
    each attempt chooses anew, so another would fail alike.
    """
    delay = RETRY_DELAY_S
    for _ in range(retries):
        try:
            return await attempt()
        except MoleculerError as error:
            if not error.retryable or _not_found_here(error):
                raise
        await anyio.sleep(delay)
        delay = min(delay * RETRY_FACTOR, RETRY_MAX_DELAY_S)
    return await attempt()


def _not_found_here(error: MoleculerError) -> bool:
    return isinstance(error, ServiceNotFoundError | ServiceNotAvailableError) and error.node_id is None
