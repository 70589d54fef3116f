"""How far the writer of a stream may be ahead of its reader.

The protocol has no flow control. Between two nodes of this kind it is added without a new packet: some chunks are
published with a reply subject, which JS nodes ignore, and the reader answers there when it has read that far, or when
it will read no further. `broker.streams.pace` holds back what is on its way to nodes of any kind.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from broker.defaults import (
    STREAM_ERROR_AFTER_OPENING_S,
    STREAM_MARK_BYTES,
    STREAM_MARK_CHUNKS,
    STREAM_MARKS_AHEAD,
    STREAM_SETTLED_S,
)
from broker.streams.ordering import CONTINUE, STOP
from broker.streams.pace import Pace

FLOW_CONTROL = "streamMarks"
"""The key in the `client` of INFO that tells of a node that answers marks."""


class Flow:
    """The writer's side of one stream of an action's call or answer, opened at the monotonic time `since`.
    `instance_id` is that of the reader's node, None when it is not known, and `acknowledges` tells whether it answers
    marks. Without a `pace` nothing is sent."""

    def __init__(
        self,
        action: str = "",
        pace: Pace | None = None,
        instance_id: str | None = None,
        since: float = 0.0,
        *,
        acknowledges: bool = False,
    ) -> None:
        self.action = action
        self.pace = pace
        self.instance_id = instance_id
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

    async def room(self, size: int) -> None:
        """Return when a message of this size may go out, or the reader is gone."""
        self.waiting = True
        try:
            while self._open_marks >= self._ahead and not self.stopped:
                self._wake = asyncio.get_running_loop().create_future()
                await self._wake
            if self.pace is not None:
                await self.pace.room(size)
        finally:
            self.waiting = False

    async def sent(self) -> None:
        """The message has gone out."""
        if self.pace is not None:
            await self.pace.sent()

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
        """Write no more, as chunks are lost, or the reader's node or the connection is. Also of a writer that has given
        up the reader may not have learned why."""
        if self.lost or (self.stopped and self.error is None):
            return
        self.lost = True
        if self.stopped:
            return
        self.stop(error)
        if self.on_lost is not None:
            self.on_lost(error)

    def forget(self) -> None:
        """Write no more, not even the end. A JS node forgets the stream of a request that it answers with an error, and
        takes what comes then for a new one, which it keeps (§8.4)."""
        self.forgotten = True
        self.stop()

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
