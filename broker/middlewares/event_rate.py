"""Fewer runs of an event handler than there are events: throttle and debounce (moleculer protocol §12.8)."""

from collections.abc import Callable
from typing import Any

from broker.context import Context, Next
from broker.middlewares.base import After, Target, Wrap


def throttle(clock: Callable[[], float]) -> Wrap:
    """The first event of a while is handled, and the rest dropped. `clock` gives a monotonic time in seconds."""

    def wrap(call_next: Next, target: Target) -> Next:
        wait_s: float = target.settings.get("throttle") or 0
        last = float("-inf")

        async def throttled(ctx: Context) -> Any:
            nonlocal last
            if (now := clock()) - last >= wait_s:
                last = now
                await call_next(ctx)

        return throttled if wait_s > 0 else call_next

    return wrap


def debounce(after: After, start: Callable[[Next, Context], None]) -> Wrap:
    """The last event is handled, once no other comes. `start` runs the rest of the chain in a task of its own."""

    def wrap(call_next: Next, target: Target) -> Next:
        wait_s: float = target.settings.get("debounce") or 0
        cancel: Callable[[], None] = lambda: None  # noqa: E731

        async def debounced(ctx: Context) -> None:
            nonlocal cancel
            cancel()
            cancel = after(wait_s, lambda: start(call_next, ctx))

        return debounced if wait_s > 0 else call_next

    return wrap
