"""How far the writer of a stream may be ahead of its reader.

The protocol has no flow control: JS nodes send as fast as they can. Between two nodes of this kind it is added without
a new packet: some chunks are published with a reply subject, which JS nodes ignore, and the reader answers there when
it has read that far, or when it will read no further.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from broker.defaults import (
    STREAM_ERROR_AFTER_OPENING_S,
    STREAM_MARK_BYTES,
    STREAM_MARK_CHUNKS,
    STREAM_MARKS_AHEAD,
)

FLOW_CONTROL = "streamMarks"
"""The key in the `client` of INFO that tells of a node that answers marks."""

CONTINUE = b"+"
STOP = b"-"


class Flow:
    """The writer's side of one stream, opened at the monotonic time `since`. `acknowledges` tells whether the reader's
    node, `node_id`, answers marks."""

    def __init__(self, node_id: str = "", since: float = 0.0, *, acknowledges: bool) -> None:
        self.node_id = node_id
        self.since = since
        self.stopped = False
        self.error: Exception | None = None
        """Why the writer gave up, for the reader; None when it was the reader that went."""
        self.forgotten = False
        """Whether the reader's node has forgotten the stream, so that nothing more is said, not even its end."""
        self.on_stop: Callable[[], None] | None = None
        """Called when the writer is stopped, which may be before it began."""
        self.acknowledges = acknowledges
        self._open_marks = 0
        self._bytes = STREAM_MARK_BYTES  # the first chunk carries a mark, so that the reader can stop us from then on
        self._chunks = 0
        self._wake: asyncio.Future[None] | None = None
        self._writing: asyncio.Timeout | None = None
        self._hears_errors_at = 0.0

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
        """Count a chunk that goes out now; True when it must carry a reply subject."""
        if not self.acknowledges:
            return False
        self._bytes += size
        self._chunks += 1
        if self._bytes < STREAM_MARK_BYTES and self._chunks < STREAM_MARK_CHUNKS:
            return False
        self._bytes = self._chunks = 0
        self._open_marks += 1
        return True

    async def room(self) -> None:
        """Return when the reader is near enough, or gone."""
        while self._open_marks >= STREAM_MARKS_AHEAD and not self.stopped:
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake

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

    def forget(self) -> None:
        """Write no more, not even the end. A JS node forgets the stream of a request that it answers with an error, or
        whose time is over, and takes what comes then for a new one, which it keeps (§8.4)."""
        self.forgotten = True
        self.stop()

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
