"""Middlewares: what goes on around handlers, calls and events, put together once when something is registered."""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from broker.cancellation import invoke_user
from broker.context import Context, Next
from broker.errors import BrokerOptionsError

logger = logging.getLogger("broker")

After = Callable[[float, Callable[[], None]], Callable[[], None]]
"""`after(seconds, function)` runs the function later, once; what it returns cancels that."""

Send = Callable[..., Awaitable[None]]
"""The rest of what sends an event: a function of its name, its data and its options."""


class Middleware:
    """What a user can put around the work of a broker. Override what you need; what is not overridden costs nothing.

    Any object with some of these methods will do, and a plain function is one with `local_action` alone. The first of
    several middlewares is outermost; hooks that end something run from the last to the first.
    """

    async def local_action(self, call_next: Next, ctx: Context) -> Any:
        """Around every action of this node, whoever calls it."""
        return await call_next(ctx)

    async def remote_action(self, call_next: Next, ctx: Context) -> Any:
        """Around every attempt of a call to another node."""
        return await call_next(ctx)

    async def local_event(self, call_next: Next, ctx: Context) -> Any:
        """Around every event handler of this node."""
        return await call_next(ctx)

    async def call(self, call_next: Callable[..., Awaitable[Any]], action: str, params: Any, options: Any) -> Any:
        """Around `broker.call` and `ctx.call`, before an endpoint is chosen. `options` is a `CallOptions`."""
        return await call_next(action, params, options)

    async def emit(self, call_next: Send, event: str, data: Any, options: Mapping[str, Any]) -> None:
        """Around `emit`; so `broadcast` and `broadcast_local`."""
        await call_next(event, data, options)

    async def broadcast(self, call_next: Send, event: str, data: Any, options: Mapping[str, Any]) -> None:
        await call_next(event, data, options)

    async def broadcast_local(self, call_next: Send, event: str, data: Any, options: Mapping[str, Any]) -> None:
        await call_next(event, data, options)

    def created(self, broker: Any) -> None:
        """The broker was made."""

    async def starting(self, broker: Any) -> None:
        """The broker is about to connect. An exception here, or in the next, fails its start."""

    async def started(self, broker: Any) -> None:
        """The broker has started."""

    async def stopping(self, broker: Any) -> None:
        """The broker is about to leave. An exception here, or in the next, is logged."""

    async def stopped(self, broker: Any) -> None:
        """The broker has stopped."""

    async def service_starting(self, service: Any) -> None:
        """A service's `started` is about to run. An exception here, or in the next, fails its start."""

    async def service_started(self, service: Any) -> None:
        """A service is offered."""

    async def service_stopping(self, service: Any) -> None:
        """A service's `stopped` is about to run. An exception here, or in the next, is logged."""

    async def service_stopped(self, service: Any) -> None:
        """A service has stopped."""


HOOKS = tuple(name for name in vars(Middleware) if not name.startswith("_"))


def hooks(middlewares: Iterable[Any], name: str) -> list[Callable[..., Any]]:
    """The hooks of one name that the middlewares have."""
    found = []
    for middleware in middlewares:
        if name == "local_action" and not _has_hooks(middleware):  # a function
            found.append(middleware)
        elif getattr(type(middleware), name, None) is not getattr(Middleware, name):
            found.append(getattr(middleware, name, None))
    return [hook for hook in found if hook is not None]


async def run_hooks(middlewares: Iterable[Any], name: str, subject: Any) -> None:
    """Run the hooks in the life of a broker or service, one after the other. The failure of an ending is logged."""
    ending = name.endswith(("stopping", "stopped"))
    found = hooks(middlewares, name)
    for hook in reversed(found) if ending else found:
        try:
            await invoke_user(hook, subject)
        except Exception:
            if not ending:
                raise
            logger.exception("The hook '%s' of a middleware failed", name)


def check_middlewares(middlewares: Iterable[Any]) -> None:
    """Raises BrokerOptionsError for what is neither a function nor has a hook, and for a class."""
    for middleware in middlewares:
        if isinstance(middleware, type):
            name = middleware.__name__
            raise BrokerOptionsError(f"middlewares must be objects, not classes: write {name}(), not {name}.")
        if not callable(middleware) and not _has_hooks(middleware):
            raise BrokerOptionsError(
                f"middlewares must be functions or objects with hooks such as local_action, not {middleware!r}."
            )


def _has_hooks(middleware: Any) -> bool:
    return any(hasattr(middleware, name) for name in HOOKS)


def compose(around: Sequence[Callable[..., Any]], inner: Callable[..., Any]) -> Callable[..., Any]:
    """A function inside all that goes around it, the first one outermost."""
    for one in reversed(around):
        inner = partial(one, inner)
    return inner


@dataclass(slots=True, frozen=True)
class Target:
    """What a chain leads to: an action of this node or of another one, or an event handler of this node."""

    name: str
    service: str
    local: bool
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What was declared: `retry_policy`, `circuit_breaker`, `bulkhead`, `cache`, `fallback`, `hooks`, `debounce`…"""
    instance: Any = None
    """The service of this node."""
    endpoint: Callable[[], Any] = lambda: None
    """The endpoint in the registry, where there is one."""


Wrap = Callable[[Next, Target], Next]
"""Puts one feature around the rest of a chain, or returns the rest as it is when the target does not use it."""


def wrapped(wraps: Sequence[Wrap], handler: Next, target: Target) -> Next:
    """The handler inside all features that the target uses, the first one outermost."""
    for wrap in reversed(wraps):
        handler = wrap(handler, target)
    return handler


def bound(function: Any, instance: Any) -> Callable[..., Any] | None:
    """What a service names for a hook or a fallback: a function, one of its methods, or the name of one."""
    if not isinstance(function, str):
        name = getattr(function, "__name__", "")
        if not any(vars(cls).get(name) is function for cls in type(instance).__mro__):
            return function if callable(function) else None
        function = name
    method = getattr(instance, function, None)
    return method if callable(method) else None
