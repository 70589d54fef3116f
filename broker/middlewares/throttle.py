"""Run an event handler for the first event of a while, and drop the rest (moleculer protocol §12.8)."""

from collections.abc import Callable
from typing import Any

from broker.context import Context, Next
from broker.middlewares.base import Target, Wrap


def throttle(clock: Callable[[], float]) -> Wrap:
    """`clock` gives a monotonic time in seconds."""

    def wrap(call_next: Next, target: Target) -> Next:
        wait_s: float = target.settings.get("throttle") or 0
        if wait_s <= 0:
            return call_next
        last = float("-inf")

        async def throttled(ctx: Context) -> Any:
            nonlocal last
            now = clock()
            if now - last < wait_s:
                return None
            last = now
            return await call_next(ctx)

        return throttled

    return wrap
