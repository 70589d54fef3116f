"""Internal events: what happens to this node, told to its own services and to parts of the broker (protocol §7.4)."""

from collections.abc import Callable
from typing import Any

import anyio

from broker.context import Caller, Context
from broker.endpoints import Listener
from broker.errors import BrokerDisconnectedError
from broker.farewell import Farewell
from broker.registry import Registry
from broker.transit import Transit

Hear = Callable[[dict[str, Any]], None]


class InternalEvents:
    """They reach the services of this node, nobody else. `start_listener` runs a handler in a task of its own."""

    def __init__(
        self, broker: Caller, transit: Transit, registry: Registry, start_listener: Callable[[Listener, Context], None]
    ) -> None:
        self._broker = broker
        self._transit = transit
        self._registry = registry
        self._start_listener = start_listener
        self._hearing: dict[str, list[Hear]] = {}
        self._services_changed = anyio.Event()
        self._over = False

    def on(self, event: str, hear: Hear) -> None:
        """Let a part of the broker act on an event, before the services do."""
        self._hearing.setdefault(event, []).append(hear)

    def fire(self, event: str, payload: dict[str, Any]) -> None:
        """It happened now."""
        if event == "$services.changed":
            self._services_changed.set()
            self._services_changed = anyio.Event()
        if self._transit.stopping:
            return
        for hear in self._hearing.get(event, ()):
            hear(payload)
        for choices in self._registry.find_listeners(event):
            for listener in choices.members:
                if listener.local:
                    self._start_listener(listener, self._context(event, payload))

    async def services_changed(self) -> None:
        """Return when services came or went, somewhere in the cluster. Raises BrokerDisconnectedError when the node
        has stopped."""
        if not self._over:
            await self._services_changed.wait()
        if self._over:
            raise BrokerDisconnectedError("The broker has stopped.")

    def end(self) -> None:
        """Nothing happens any more: whoever waits for it is told so."""
        self._over = True
        self._services_changed.set()

    async def tell_last(self, farewell: Farewell, event: str, payload: dict[str, Any], *, timeout_s: float) -> None:
        """Tell the services, which have stopped by now."""
        await farewell.tell(event, lambda: self._context(event, payload), timeout_s)

    def _context(self, event: str, payload: dict[str, Any]) -> Context:
        return Context(self._broker, event=event, params=payload, node_id=self._broker.node_id)
