"""Internal events: what happens to this node, for its own services and for parts of the broker (protocol §7.4)."""

from collections.abc import Callable
from typing import Any

import anyio

from broker.conversation.transit import Transit
from broker.errors import BrokerDisconnectedError

Hear = Callable[[dict[str, Any]], None]


class InternalEvents:
    """They reach the services of this node, and never leave it. `broadcast_local` starts a local broadcast."""

    def __init__(self, transit: Transit, broadcast_local: Callable[[str, dict[str, Any]], None]) -> None:
        self._transit = transit
        self._broadcast_local = broadcast_local
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
        self._broadcast_local(event, payload)

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
