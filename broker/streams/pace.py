"""How much may be on its way to a node, in all streams together.

Every node answers a ping when it has received what was sent to it before. So a ping goes out behind each MiB, only some
MiB are sent ahead of the answers, and an answer that is missing before another shows that something was lost. JS nodes
send as fast as they can instead, until the NATS server drops a reader that is too slow.
"""

import asyncio
from collections.abc import Awaitable, Callable

from broker.defaults import (
    NODE_PROBE_AFTER_S,
    STREAM_FLIGHT_BYTES,
    STREAM_IDLE_TIMEOUT_S,
    STREAM_MARK_BYTES,
    STREAM_PING_AGAIN_S,
)
from broker.errors import MoleculerRetryableError
from broker.ids import new_id


class Pace:
    """Of one node. `ping` sends a ping with an id; `lost` is called with what went wrong, and the monotonic time until
    which streams may have lost chunks."""

    def __init__(
        self, node_id: str, ping: Callable[[str], Awaitable[None]], lost: Callable[[Exception, float], None]
    ) -> None:
        self.node_id = node_id
        self._ping = ping
        self._lost = lost
        self._open: dict[str, tuple[float, int]] = {}
        """When each ping was sent that is not answered yet, and how many bytes before it, the oldest first."""
        self._bytes = 0
        """Behind the last ping."""
        self._in_flight = 0
        self._asked = 0.0
        self._unlimited = False
        self._changed = asyncio.Event()

    async def room(self, size: int) -> None:
        """Return when a message of this size may go out; it counts from then on."""
        while self._in_flight >= STREAM_FLIGHT_BYTES:
            await self._changed.wait()
        self._bytes += size
        self._in_flight += size

    async def sent(self) -> None:
        """The message has gone out."""
        if self._bytes >= STREAM_MARK_BYTES:
            await self._ask()

    async def settled(self) -> None:
        """Return when the node has received what was sent until now."""
        ping_id = await self._ask()
        while ping_id in self._open:
            await self._changed.wait()

    def answered(self, ping_id: str) -> None:
        """A ping was answered."""
        if ping_id not in self._open:
            return
        sent, oldest = self._open[ping_id][0], next(iter(self._open))
        for older in list(self._open):
            self._in_flight -= self._open.pop(older)[1]
            if older == ping_id:
                break
        self._notify()
        if oldest != ping_id:
            self._fail("STREAM_LOST", "that node lost its connection to NATS for a moment. Send it again.", sent)

    def stop_asking(self) -> None:
        """Pings cannot be sent to the node, so nothing waits for their answers."""
        self._unlimited = True
        self._forget()

    def is_late(self, now: float) -> bool:
        """Whether the node has not answered as soon as a live one does."""
        return now - self._waits_since(now) > NODE_PROBE_AFTER_S

    async def tick(self, now: float) -> None:
        """Ask also after less than a MiB; and ask again, as only a later answer shows that one is lost. Call it about
        once a second."""
        if now - self._waits_since(now) >= STREAM_IDLE_TIMEOUT_S:
            if self._in_flight >= STREAM_FLIGHT_BYTES:  # a node that may not answer can still be sent a little
                why = "that node has answered no ping for long. Does it run, may it receive PING and send PONG?"
                self._fail("STREAM_STALLED", why, now)
            self._forget()
        elif (self._bytes or self._open) and now - self._asked >= STREAM_PING_AGAIN_S:
            await self._ask()

    def _waits_since(self, now: float) -> float:
        return next(iter(self._open.values()))[0] if self._open else now

    async def _ask(self) -> str:
        ping_id = new_id()
        if self._unlimited:
            self._forget()
        else:
            self._asked = asyncio.get_running_loop().time()
            self._open[ping_id], self._bytes = (self._asked, self._bytes), 0
            await self._ping(ping_id)
        return ping_id

    def _fail(self, kind: str, why: str, until: float) -> None:
        text = f"A stream to '{self.node_id}' did not arrive whole, as {why}"
        self._lost(MoleculerRetryableError(text, 503, kind, {"nodeID": self.node_id}), until)

    def _forget(self) -> None:
        self._open.clear()
        self._in_flight = self._bytes = 0
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
