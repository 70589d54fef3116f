"""The last internal events of a node, for services that have stopped by then (moleculer protocol §4.2, §7.4)."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import anyio

from broker.cancellation import invoke_user
from broker.context import Caller, Context
from broker.middlewares.base import compose
from broker.middlewares.handler import make_listener
from broker.registry.registry import Registry

logger = logging.getLogger("broker")

LAST_EVENTS = ("$transporter.disconnected", "$broker.stopped")


class Farewell:
    """Remembers the handlers of the last events while services are still registered, and runs them in the end, each
    for `timeout_s` at most. `hooks` are those that users' middlewares have for a local broadcast."""

    def __init__(
        self, broker: Caller, registry: Registry, hooks: Sequence[Callable[..., Any]], *, timeout_s: float
    ) -> None:
        self._broker = broker
        self._timeout_s = timeout_s
        self._broadcast_local = compose(hooks, self._run)
        self._listeners = {
            event: [
                member.event
                for _, members in registry.find_listeners_here(event)
                for member in members
                if member.event is not None
            ]
            for event in LAST_EVENTS
        }

    async def send(self, event: str, payload: dict[str, Any]) -> None:
        """Run the handlers of an event one after the other. Failures are logged."""
        await _logged(event, self._broadcast_local, event, payload, {})

    async def _run(self, event: str, payload: dict[str, Any], _options: Any) -> None:
        for definition in self._listeners.get(event, ()):
            ctx = Context.outgoing(self._broker, self._broker.node_id, event=event, params=payload)
            with anyio.move_on_after(self._timeout_s):
                await _logged(event, make_listener(definition), ctx)


async def _logged(event: str, function: Callable[..., Any], *arguments: Any) -> None:
    try:
        await invoke_user(function, *arguments)
    except Exception:
        logger.exception("A handler of '%s' failed", event)
