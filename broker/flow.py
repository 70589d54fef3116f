"""How far the writer of a stream may be ahead of its reader.

The protocol has no flow control: JS nodes send as fast as they can, until the NATS server drops a reader that is too
slow. Here two things hold a writer back:

- Every node answers a ping when it has received what was sent to it before. So only some MB are on their way to a node
  at once, in all streams together, and an answer that is missing shows that something was lost.
- Nodes like this also tell how far their readers are. Some chunks are published with a reply subject, which JS nodes
  ignore, and the reader answers there when it has read that far, or when it will read no further.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from broker.defaults import (
    NODE_PROBE_AFTER_S,
    STREAM_ERROR_AFTER_OPENING_S,
    STREAM_FLIGHT_BYTES,
    STREAM_IDLE_TIMEOUT_S,
    STREAM_MARK_BYTES,
    STREAM_MARK_CHUNKS,
    STREAM_MARKS_AHEAD,
    STREAM_PING_AGAIN_S,
    STREAM_SETTLED_S,
)
from broker.errors import MoleculerRetryableError
from broker.ids import new_id

FLOW_CONTROL = "streamMarks"
"""The key in the `client` of INFO that tells of a node that answers marks."""

CONTINUE = b"+"
STOP = b"-"


class Pace:
    """What is on its way to one node. `ping` sends a ping with an id; `lost` is called with what went wrong, and the
    monotonic time until which streams may have lost chunks."""

    def __init__(
        self,
        node_id: str,
        ping: Callable[[str], Awaitable[None]],
        lost: Callable[[Exception, float], None],
    ) -> None:
        self.node_id = node_id
        self._ping = ping
        self._lost = lost
        self._open: dict[str, tuple[float, int]] = {}
        """When each ping was sent that is not answered yet, and how many bytes before it, the oldest first."""
        self._bytes = 0
        self._in_flight = 0
        self._asked = 0.0
        self._unlimited = False
        self._changed = asyncio.Event()

    async def sent(self, size: int) -> None:
        """A chunk has gone out."""
        self._bytes += size
        self._in_flight += size
        if self._bytes >= STREAM_MARK_BYTES:
            await self._ask()

    async def room(self) -> None:
        """Return when there is room for another chunk."""
        await self._wait(lambda: self._in_flight < STREAM_FLIGHT_BYTES)

    async def settled(self) -> None:
        """Return when the node has received what was sent until now."""
        ping_id = await self._ask()
        await self._wait(lambda: ping_id not in self._open)

    def answered(self, ping_id: str) -> None:
        """A ping was answered."""
        if ping_id not in self._open:
            return
        asked, oldest = self._open[ping_id][0], next(iter(self._open))
        for older in list(self._open):
            self._in_flight -= self._open.pop(older)[1]
            if older == ping_id:
                break
        self._notify()
        if oldest != ping_id:
            self._lost(
                MoleculerRetryableError(
                    f"A part of the stream to '{self.node_id}' was lost, as that node lost its connection to NATS for "
                    "a moment. Send the stream again.",
                    503,
                    "STREAM_LOST",
                    {"nodeID": self.node_id},
                ),
                asked,
            )

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
            self._give_up(now)
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

    async def _wait(self, done: Callable[[], bool]) -> None:
        while not done():
            await self._changed.wait()

    def _give_up(self, now: float) -> None:
        """A node that answers no pings, as it has no right to, can still be sent a little."""
        if self._in_flight >= STREAM_FLIGHT_BYTES:
            self._lost(
                MoleculerRetryableError(
                    f"The stream to '{self.node_id}' was given up, as that node has answered no ping for "
                    f"{STREAM_IDLE_TIMEOUT_S:.0f} s. Does it run, and may it receive PING and send PONG?",
                    504,
                    "STREAM_STALLED",
                    {"nodeID": self.node_id},
                ),
                now,
            )
        self._forget()

    def _forget(self) -> None:
        self._open.clear()
        self._in_flight = self._bytes = 0
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Flow:
    """The writer's side of one stream of an action's call or answer, opened at the monotonic time `since`.
    `acknowledges` tells whether the reader's node answers marks. Without a `pace` nothing is sent."""

    def __init__(
        self, action: str = "", pace: Pace | None = None, since: float = 0.0, *, acknowledges: bool = False
    ) -> None:
        self.action = action
        self.pace = pace
        self.since = since
        self.stopped = False
        self.error: Exception | None = None
        """Why the writer gave up, for the reader; None when it was the reader that went."""
        self.lost = False
        """Whether the reader may lack chunks, as its node or the connection went away."""
        self.forgotten = False
        """Whether the reader's node has forgotten the stream, so that nothing more is said, not even its end."""
        self.waiting = False
        """Whether the writer waits for the reader or its node."""
        self.on_stop: Callable[[], None] | None = None
        """Called when the writer is stopped, which may be before it began."""
        self.on_lost: Callable[[Exception], None] | None = None
        """Called with the reason when chunks are lost."""
        self.acknowledges = acknowledges
        self._open_marks = 0
        self._ahead = 2  # marks, until the reader has begun to read: what nobody reads shall not take much
        self._bytes = STREAM_MARK_BYTES  # the first chunk carries a mark, so that the reader can stop us from then on
        self._chunks = 0
        self._wake: asyncio.Future[None] | None = None
        self._writing: asyncio.Timeout | None = None
        self._hears_errors_at = 0.0

    @property
    def node_id(self) -> str:
        """The reader's node."""
        return "" if self.pace is None else self.pace.node_id

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """What is done in here is broken off by a stop, wherever it waits: the next item may never come."""
        self._hears_errors_at = asyncio.get_running_loop().time() + STREAM_ERROR_AFTER_OPENING_S
        try:
            async with asyncio.timeout(None) as self._writing:
                yield
        except TimeoutError:
            if not self.stopped or self._writing is None or not self._writing.expired():
                raise
        finally:
            self._writing = None

    def mark(self, size: int) -> bool:
        """Count a chunk that goes out now; True when it must carry a reply subject: for the answer of the reader, and
        that of the server when the reader's node is gone."""
        self._bytes += size
        self._chunks += 1
        if self._bytes < STREAM_MARK_BYTES and self._chunks < STREAM_MARK_CHUNKS:
            return False
        self._bytes = self._chunks = 0
        self._open_marks += self.acknowledges
        return True

    async def room(self) -> None:
        """Return when another chunk may go out, or the reader is gone."""
        self.waiting = True
        try:
            while self._open_marks >= self._ahead and not self.stopped:
                self._wake = asyncio.get_running_loop().create_future()
                await self._wake
            if self.pace is not None:
                await self.pace.room()
        finally:
            self.waiting = False

    async def sent(self, size: int) -> None:
        """A chunk has gone out, in a message of so many bytes."""
        if self.pace is not None:
            await self.pace.sent(size)

    async def settled(self) -> None:
        """Return when the reader's node has received all, or does not say so."""
        if self.pace is not None:
            with suppress(TimeoutError):
                async with self.writing(), asyncio.timeout(STREAM_SETTLED_S):
                    await self.pace.settled()

    async def hears_errors(self) -> None:
        """Return when the reader can be told of an error.

        A JS node that takes in the opening and an error at once has no reader yet to tell: the error is lost there, and
        with it the end, so that its reader would wait for ever.
        """
        if not self.acknowledges:
            await asyncio.sleep(self._hears_errors_at - asyncio.get_running_loop().time())

    def answered(self, answer: bytes) -> None:
        """The reader answered a mark. Anything else that is sent there, such as the acknowledgement of a JetStream
        stream that stores all subjects, is no answer."""
        if answer == CONTINUE:
            self._open_marks -= 1
            self._ahead = min(self._ahead + 1, STREAM_MARKS_AHEAD)
            self._notify()
        elif answer == STOP:
            self.stop()

    def stop(self, error: Exception | None = None) -> None:
        """Write no more: nobody reads, or with `error`, the writer gives up and its reader is told why."""
        if self.stopped:
            return
        self.stopped, self.error = True, error
        self._notify()
        if self._writing is not None:
            self._writing.reschedule(asyncio.get_running_loop().time())
        if self.on_stop is not None:
            self.on_stop()

    def lose(self, error: Exception) -> None:
        """Write no more, as chunks are lost, or the reader's node or the connection is."""
        if self.stopped:
            return
        self.lost = True
        self.stop(error)
        if self.on_lost is not None:
            self.on_lost(error)

    def forget(self) -> None:
        """Write no more, not even the end. A JS node forgets the stream of a request that it answers with an error, or
        whose time is over, and takes what comes then for a new one, which it keeps (§8.4)."""
        self.forgotten = True
        self.stop()

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
