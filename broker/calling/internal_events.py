"""Internal events: what happens to this node, for its own services and for parts of the broker (protocol §7.4)."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import anyio

from broker.cancellation import invoke_user
from broker.context import Caller, Context, Next
from broker.conversation.transit import Transit
from broker.errors import BrokerDisconnectedError
from broker.middlewares.base import compose
from broker.middlewares.handler import make_listener
from broker.registry.registry import Registry

logger = logging.getLogger("broker")

Listener = Callable[[dict[str, Any]], None]

LAST_EVENTS = ("$transporter.disconnected", "$broker.stopped")


class InternalEvents:
    """They reach the services of this node, and never leave it. `broadcast_local` starts a local broadcast."""

    def __init__(self, transit: Transit, broadcast_local: Callable[[str, dict[str, Any]], None]) -> None:
        self._transit = transit
        self._broadcast_local = broadcast_local
        self._listeners: dict[str, list[Listener]] = {}
        self._services_changed = anyio.Event()
        self._ended = False

    def on(self, event: str, listener: Listener) -> None:
        """Let a part of the broker act on an event, before the services do."""
        self._listeners.setdefault(event, []).append(listener)

    def fire(self, event: str, payload: dict[str, Any]) -> None:
        """Run the listeners of an event, and broadcast it, unless the node is stopping."""
        if event == "$services.changed":
            self._services_changed.set()
            self._services_changed = anyio.Event()
        if self._transit.stopping:
            return
        for listener in self._listeners.get(event, ()):
            listener(payload)
        self._broadcast_local(event, payload)

    async def services_changed(self) -> None:
        """Return when services came or went, somewhere in the cluster. Raises BrokerDisconnectedError when the node
        has stopped."""
        if not self._ended:
            await self._services_changed.wait()
        if self._ended:
            raise BrokerDisconnectedError("The broker has stopped.")

    def end(self) -> None:
        """Wake up whatever waits for a change: none follows."""
        self._ended = True
        self._services_changed.set()


class LastEvents:
    """The last internal events, for services that have stopped by then (§4.2). Their handlers are remembered while the
    services are registered, and run in the end, each for `timeout_s` at most. `hooks` are those that users' middlewares
    have for a local broadcast."""

    def __init__(
        self, broker: Caller, registry: Registry, hooks: Sequence[Callable[..., Any]], *, timeout_s: float
    ) -> None:
        self._broker = broker
        self._hooks = hooks
        self._timeout_s = timeout_s
        self._handlers = {event: list(_handlers_of(event, registry)) for event in LAST_EVENTS}

    async def send(self, event: str, payload: dict[str, Any]) -> None:
        """Run the handlers of an event one after the other. Failures are logged."""
        await _logged(event, compose(self._hooks, self._run), event, payload, {})

    async def _run(self, event: str, payload: dict[str, Any], _options: Any) -> None:
        for handler in self._handlers.get(event, ()):
            ctx = Context.outgoing(self._broker, self._broker.node_id, event=event, params=payload)
            with anyio.move_on_after(self._timeout_s):
                await _logged(event, handler, ctx)


def _handlers_of(event: str, registry: Registry) -> Iterator[Next]:
    for _, here in registry.find_listeners_here(event):
        for endpoint in here:
            if endpoint.event is not None:
                yield make_listener(endpoint.event)


async def _logged(event: str, function: Callable[..., Any], *arguments: Any) -> None:
    try:
        await invoke_user(function, *arguments)
    except Exception:
        logger.exception("A handler of '%s' failed", event)
