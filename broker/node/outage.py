"""An outage of the connection, for what is to be sent and for calls that wait for answers (moleculer protocol §4.5).

Most outages are short: this node moves to another server of a cluster, or its server restarts. What is to be sent in
a short one waits for its end, and calls go on waiting for their answers. In a long one they fail.

Answers may be lost in either kind: what is published to a node without a connection goes nowhere. So for a while after
an outage, its own or one that others may have had, a node makes sure that its answers are received.
"""

import asyncio
from collections.abc import Callable

import anyio

from broker.defaults import NODE_RECONNECT_S, SHORT_OUTAGE_S
from broker.errors import BrokerDisconnectedError
from broker.transports.base import Transport


class Outage:
    """Whether there is one, and how long. `on_long` is called when one is no longer short."""

    def __init__(self, transport: Transport | None, on_long: Callable[[], None]) -> None:
        self.is_on = True
        """Until the first connection, too."""
        self.is_long = True
        self.began = 0.0
        """The monotonic time at which the last one began."""
        self.is_unsettled = False
        """Nodes are reconnecting, or were a moment ago."""
        self._transport = transport
        self._on_long = on_long
        self._stopped = False
        self._changed = anyio.Event()
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}

    def begin(self, now: float) -> None:
        self.is_on, self.is_long, self.began = True, False, now
        self._after(SHORT_OUTAGE_S, self._grow)
        self._wake()

    def end(self) -> None:
        self._cancel(self._grow)
        self.is_on = self.is_long = False
        self._wake()

    def unsettle(self) -> None:
        """This node was away, or others may be."""
        self.is_unsettled = True
        self._after(NODE_RECONNECT_S, self._settle)

    def stop(self) -> None:
        """The node stops: nothing will be sent any more."""
        self._stopped = True
        for function in list(self._timers):
            self._cancel(function)
        self._wake()

    async def over(self, *, patient: bool) -> None:
        """Return when there is a connection. Raises BrokerDisconnectedError when the node stops, and in a long outage
        unless `patient`."""
        with anyio.move_on_after(None if patient else SHORT_OUTAGE_S):
            while not self._is_connected():
                if self._stopped or (self.is_long and not patient):
                    break
                await self._changed.wait()
        if not self._is_connected():
            raise BrokerDisconnectedError

    def _is_connected(self) -> bool:
        return self._transport is not None and self._transport.connected

    def _grow(self) -> None:
        self.is_long = True
        self._on_long()
        self._wake()

    def _settle(self) -> None:
        self.is_unsettled = False

    def _after(self, delay_s: float, function: Callable[[], None]) -> None:
        self._cancel(function)
        self._timers[function] = asyncio.get_running_loop().call_later(delay_s, function)

    def _cancel(self, function: Callable[[], None]) -> None:
        if function in self._timers:
            self._timers.pop(function).cancel()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
