"""Fewer runs of an event handler than there are events: throttle and debounce (moleculer protocol §12.8)."""

from collections.abc import Callable
from typing import Any

from broker.context import Context, Next
from broker.middlewares.base import Target, Wrap
from broker.middlewares.circuit import After


def throttle(clock: Callable[[], float]) -> Wrap:
    """The first event of a while is handled, and the rest dropped. `clock` gives a monotonic time in seconds."""

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


def debounce(after: After, start: Callable[[Next, Context], None]) -> Wrap:
    """The last event is handled, once no other comes. `start` runs the rest of the chain in a task of its own."""

    def wrap(call_next: Next, target: Target) -> Next:
        wait_s: float = target.settings.get("debounce") or 0
        if wait_s <= 0:
            return call_next
        pending: list[Callable[[], None]] = []

        def run(ctx: Context) -> None:
            pending.clear()
            start(call_next, ctx)

        async def debounced(ctx: Context) -> Any:
            for cancel in pending:
                cancel()
            pending[:] = [after(wait_s, lambda: run(ctx))]

        return debounced

    return wrap
