"""Contexts and targets of chains, for tests of one middleware at a time."""

from collections.abc import Callable
from typing import Any

from broker.context import CallOptions, Context, Next
from broker.middlewares.base import Target

__all__ = ["Timers", "made_context", "run", "target"]


def made_context(
    params: Any = None, *, called: bool = True, action: str | None = "posts.find", event: str | None = None, **more: Any
) -> Context:
    """A context as calls and events have; `called` tells whether this node made the call."""
    broker: Any = None
    options = {name: more.pop(name) for name in ("retries", "fallback") if name in more}
    ctx = Context.outgoing(broker, "js-1", action=action, event=event, params=params)
    ctx.options = CallOptions(**options) if called else None
    for name, value in more.items():
        setattr(ctx, name, value)
    return ctx


def target(name: str = "posts.find", *, local: bool = True, **settings: Any) -> Target:
    """What a chain leads to, with what was declared for it."""
    more = {key: settings.pop(key) for key in ("instance", "endpoint") if key in settings}
    return Target(name=name, service="posts", local=local, settings=settings, **more)


async def run(chain: Next, ctx: Context) -> Any:
    """For `tasks.start_soon`, which takes coroutine functions."""
    return await chain(ctx)


class Timers:
    """`after` of a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0

    @property
    def pending(self) -> int:
        return len(self._due)

    def after(self, delay_s: float, function: Callable[[], None]) -> Callable[[], None]:
        self._number += 1
        entry = (self.now + delay_s, self._number, function)
        self._due.append(entry)

        def cancel() -> None:
            if entry in self._due:
                self._due.remove(entry)

        return cancel

    def advance(self, seconds: float) -> None:
        """Let time pass, and run what is due in its order."""
        end = self.now + seconds
        while self._due and min(entry[0] for entry in self._due) <= end:
            entry = min(self._due, key=lambda one: one[:2])
            self._due.remove(entry)
            self.now = entry[0]
            entry[2]()
        self.now = end
