"""How far the writers of streams may be ahead of their readers, and why they stop.

The protocol has no flow control. Between two nodes of this kind it is added without a new packet: some chunks are
published with a reply subject, which JS nodes ignore, and the reader answers there when it has read that far, or when
it will read no further (`Flow`). What is on its way to a node of any kind is held back by pings (`Pace`).
"""

import asyncio
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from typing import NamedTuple

from broker.defaults import (
    NODE_PROBE_AFTER_S,
    STREAM_FLIGHT_BYTES,
    STREAM_IDLE_TIMEOUT_S,
    STREAM_MARK_BYTES,
    STREAM_MARK_CHUNKS,
    STREAM_MARKS_AHEAD,
    STREAM_OVERTAKEN_S,
    STREAM_PING_AGAIN_S,
)
from broker.errors import MoleculerRetryableError
from broker.ids import new_id
from broker.streams.packets import CONTINUE, STOP

FLOW_CONTROL = "streamMarks"
"""The key in the `client` of INFO by which a node says that it answers marks."""


class Pace:
    """How much is on its way to one node, in all streams together.

    Every node answers a ping when it has received what was sent to it before. So a ping goes out behind each MiB, only
    some MiB are sent ahead of the answers, and an answer that stays away after a later one shows that something was
    lost. It may come a little late: a JS node with compression unpacks and packs its packets in threads.
    JS nodes send as fast as they can instead, until the NATS server drops a reader that is too slow.
    """

    def __init__(
        self, node_id: str, ping: Callable[[str], Awaitable[None]], lost: Callable[[Exception, float], None]
    ) -> None:
        """`ping` sends a ping with an id; `lost` is called with what went wrong, and the monotonic time until which
        streams may have lost chunks."""
        self.node_id = node_id
        self._ping = ping
        self._lost = lost
        self._open: dict[str, tuple[float, int]] = {}
        """When each ping was sent that is not answered yet, and how many bytes before it, the oldest first."""
        self._overtaken: dict[str, tuple[float, float]] = {}
        """Pings that a later one overtook: when that one was sent, and when it was answered."""
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
        while ping_id in self._open or self._overtaken:
            await self._changed.wait()

    def answered(self, ping_id: str) -> None:
        """A ping was answered."""
        if self._overtaken.pop(ping_id, None) is not None:
            self._notify()
        if ping_id not in self._open:
            return
        now, sent = asyncio.get_running_loop().time(), self._open[ping_id][0]
        for older in list(self._open):
            self._in_flight -= self._open.pop(older)[1]
            if older == ping_id:
                break
            self._overtaken[older] = (sent, now)
        self._notify()

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
        lost = [sent for sent, since in self._overtaken.values() if now - since >= STREAM_OVERTAKEN_S]
        if lost:
            self._overtaken.clear()
            self._notify()
            self._fail("STREAM_LOST", "that node lost its connection to NATS for a moment. Send it again.", max(lost))
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
        self._overtaken.clear()
        self._in_flight = self._bytes = 0
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Fate(Enum):
    """What becomes of a stream."""

    OPEN = auto()
    STOPPED = auto()
    """Its reader has gone, or its writer gives up: only the end is sent."""
    LOST = auto()
    """Its reader may lack chunks, as its node or the connection went away."""
    FORGOTTEN = auto()
    """Its reader's node does not know it any more, so that nothing is sent, not even the end."""


class Route(NamedTuple):
    """Where a stream goes."""

    action: str
    subject: str
    mark: str
    """Begins the reply ids of its chunks."""
    pace: Pace
    instance_id: str | None
    """Of the reader's node; None when it is not known."""
    since: float
    """The monotonic time at which it was opened."""
    acknowledges: bool
    """Whether the reader's node answers marks."""

    @property
    def node_id(self) -> str:
        """The reader's node."""
        return self.pace.node_id


class Flow:
    """One stream to one node: how far its writer may go on, and its fate."""

    def __init__(self, route: Route) -> None:
        self.route = route
        self.fate = Fate.OPEN
        self.error: Exception | None = None
        """Why the writer gave up, for the reader; None when it was the reader that went."""
        self.waiting = False
        """Whether the writer waits for the reader or its node."""
        self._open_marks = 0
        self._ahead = 2  # marks, until the reader has begun to read: what is never read shall not take much
        self._unmarked_bytes = (
            STREAM_MARK_BYTES  # the first chunk carries a mark, so that the reader can stop us from then on
        )
        self._unmarked = 0
        self._changed = asyncio.Event()

    def mark(self, size: int) -> bool:
        """Count a chunk that goes out now; True when it must carry a reply subject: for the answer of the reader, and
        that of the server when the reader's node is gone."""
        self._unmarked_bytes += size
        self._unmarked += 1
        if self._unmarked_bytes < STREAM_MARK_BYTES and self._unmarked < STREAM_MARK_CHUNKS:
            return False
        self._unmarked_bytes = self._unmarked = 0
        self._open_marks += self.route.acknowledges
        return True

    async def room(self, size: int) -> bool:
        """Wait until a message of this size may go out; False when the stream has stopped."""
        self.waiting = True
        try:
            while self._open_marks >= self._ahead and self.fate is Fate.OPEN:
                await self._changed.wait()
                self._changed.clear()
            await self.route.pace.room(size)
        finally:
            self.waiting = False
        return self.fate is Fate.OPEN

    def mark_answered(self, answer: bytes) -> None:
        """The reader answered a mark. Anything else that is sent there, such as the acknowledgement of a JetStream
        stream that stores all subjects, is no answer."""
        if answer == CONTINUE:
            self._open_marks -= 1
            self._ahead = min(self._ahead + 1, STREAM_MARKS_AHEAD)
            self._changed.set()
        elif answer == STOP:
            self.stop()

    def stop(self, error: Exception | None = None) -> None:
        """Write no more: the reader has gone, or with `error`, the writer gives up and its reader is told why."""
        self._stop(Fate.STOPPED, error)

    def lose(self, error: Exception) -> None:
        """Write no more, as chunks are lost, or the reader's node or the connection is. Also of a writer that has given
        up the reader may not have learned why."""
        if self.fate is Fate.STOPPED and self.error is not None:
            self.fate = Fate.LOST
        self._stop(Fate.LOST, error)

    def forget(self) -> None:
        """Write no more, not even the end. A JS node forgets the stream of a request that it answers with an error, and
        takes what comes then for a new one, which it keeps (§8.4)."""
        self._stop(Fate.FORGOTTEN, None)

    def _stop(self, fate: Fate, error: Exception | None) -> None:
        if self.fate is Fate.OPEN:
            self.fate, self.error = fate, error
            self._changed.set()
            self.stopped()

    def stopped(self) -> None:
        """The writer is to stop, wherever it waits."""
