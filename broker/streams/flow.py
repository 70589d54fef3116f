"""How far the writers of streams may be ahead of their readers, and why they stop.

The protocol has no flow control. Between two Python nodes it is added without a new packet: some chunks are published
with a reply subject, which JS nodes ignore, and the reader answers there when it has read that far, or when it will
read no further (`Flow`). What is on its way to a node of any kind is held back by pings (`Pace`).
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum, auto

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

PACE = "pace:"
"""Begins the ids of the pings behind chunks."""


@dataclass(eq=False)
class Pace:
    """The window of one node: how many bytes are in flight to it, in all streams together.

    Every node answers a ping when it has received what was sent to it before. So a ping goes out behind each MiB, only
    some MiB are sent ahead of the answers, and an answer that stays away after a later one shows a loss. It may come a
    little late: a JS node with compression unpacks and packs its packets in threads.
    """

    node_id: str
    ping: Callable[[str], Awaitable[None]]
    """Sends a ping with an id."""
    lost: Callable[[Exception, float], None]
    """Called with what went wrong, and the monotonic time until which streams may have lost chunks."""
    _open: dict[str, tuple[float, int]] = field(default_factory=dict)
    """When each ping was sent that is not answered yet, and how many bytes before it, the oldest first."""
    _overtaken: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Pings that a later one overtook: when that one was sent, and when it was answered."""
    _bytes: int = 0
    """What was sent after the last ping."""
    _in_flight: int = 0
    _asked: float = 0.0
    _unlimited: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

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
        self.forget()

    def forget(self) -> None:
        """Wait for no answer to what was asked until now."""
        self._open.clear()
        self._overtaken.clear()
        self._in_flight = self._bytes = 0
        self._notify()

    def is_late(self, now: float) -> bool:
        """Whether the node has not answered as soon as a live one does."""
        return now - self._waits_since(now) > NODE_PROBE_AFTER_S

    async def tick(self, now: float) -> None:
        """Ask also after less than a MiB; and ask again, as only a later answer shows that one is lost. Call it several
        times a second."""
        lost = [sent for sent, since in self._overtaken.values() if now - since >= STREAM_OVERTAKEN_S]
        if lost:
            self._overtaken.clear()
            self._notify()
            self._fail("STREAM_LOST", "that node lost its connection to NATS for a moment. Send it again.", max(lost))
        if now - self._waits_since(now) >= STREAM_IDLE_TIMEOUT_S:
            if self._in_flight >= STREAM_FLIGHT_BYTES:  # a node that may not answer can still be sent a little
                why = "that node has answered no ping for long. Does it run, may it receive PING and send PONG?"
                self._fail("STREAM_STALLED", why, now)
            self.forget()
        elif (self._bytes or self._open) and now - self._asked >= STREAM_PING_AGAIN_S:
            await self._ask()

    def _waits_since(self, now: float) -> float:
        return next(iter(self._open.values()))[0] if self._open else now

    async def _ask(self) -> str:
        ping_id = f"{PACE}{new_id()}"
        if self._unlimited:
            self.forget()
        else:
            self._asked = asyncio.get_running_loop().time()
            self._open[ping_id], self._bytes = (self._asked, self._bytes), 0
            await self.ping(ping_id)
        return ping_id

    def _fail(self, kind: str, why: str, until: float) -> None:
        text = f"A stream to '{self.node_id}' did not arrive whole, as {why}"
        self.lost(MoleculerRetryableError(text, 503, kind, {"nodeID": self.node_id}), until)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Fate(Enum):
    """What becomes of a stream."""

    OPEN = auto()
    STOPPED = auto()  # its reader has gone, or its writer gives up: only the end is sent
    LOST = auto()  # its reader may lack chunks, as its node or the connection went away
    FORGOTTEN = auto()  # its reader's node does not know it any more: nothing is sent, not even the end


@dataclass(eq=False)
class Flow:
    """One stream to one node: where it goes, how far its writer may go on, and its fate."""

    action: str
    subject: str
    key: str
    """Begins the reply ids of its chunks."""
    pace: Pace
    instance_id: str | None
    """Of the reader's node; None when it is not known."""
    since: float
    """The monotonic time at which it was opened."""
    acknowledges: bool
    """Whether the reader's node answers marks."""
    on_stop: Callable[[], None] | None = None
    """Called when the writer is to stop, wherever it waits."""
    fate: Fate = Fate.OPEN
    error: Exception | None = None
    """Why the writer gave up, for the reader; None when it was the reader that went."""
    waiting: bool = False
    """Whether the writer waits for the reader or its node."""
    _open_marks: int = 0
    _ahead: int = 2  # marks, until the reader has begun to read: what is never read shall not take much
    _unmarked_bytes: int = STREAM_MARK_BYTES  # the first chunk carries a mark: the reader can stop us from then on
    _unmarked: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def mark(self, size: int, sequence: int) -> str | None:
        """The reply id of a chunk that goes out now, when it must have one: for the answer of the reader, and that of
        the server when the reader's node is gone."""
        self._unmarked_bytes += size
        self._unmarked += 1
        if self._unmarked_bytes < STREAM_MARK_BYTES and self._unmarked < STREAM_MARK_CHUNKS:
            return None
        self._unmarked_bytes = self._unmarked = 0
        self._open_marks += self.acknowledges
        return f"{self.key}:{sequence}"

    async def room(self, size: int) -> bool:
        """Wait until a message of this size may go out; False when the stream has stopped."""
        self.waiting = True
        try:
            while self._open_marks >= self._ahead and self.fate is Fate.OPEN:
                await self._changed.wait()
                self._changed.clear()
            await self.pace.room(size)
        finally:
            self.waiting = False
        return self.fate is Fate.OPEN

    def mark_answered(self, answer: bytes) -> None:
        """The reader answered a mark. Any other payload, such as the acknowledgement of a JetStream stream that stores
        all subjects, is ignored."""
        if answer == CONTINUE:
            self._open_marks -= 1
            self._ahead = min(self._ahead + 1, STREAM_MARKS_AHEAD)
            self._changed.set()
        elif answer == STOP:
            self.stop(Fate.STOPPED)

    def stop(self, fate: Fate, error: Exception | None = None) -> None:
        """Write no more; the end carries `error`. A stream that has stopped with an error can still be lost: its reader
        may not have received the error."""
        if self.fate is Fate.OPEN:
            self.fate, self.error = fate, error
            self._changed.set()
            if self.on_stop is not None:
                self.on_stop()
        elif fate is Fate.LOST and self.fate is Fate.STOPPED and self.error is not None:
            self.fate = fate
