"""How far the writer of a stream may be ahead of its reader.

The protocol has no flow control: JS nodes send as fast as they can. Between two nodes of this kind it is added without
a new packet: some chunks are published with a reply subject, which JS nodes ignore, and the reader answers there when
it has read that far, or when it will read no further.
"""

import asyncio

from broker.defaults import STREAM_MARK_BYTES, STREAM_MARK_CHUNKS, STREAM_MARKS_AHEAD

FLOW_CONTROL = "streamMarks"
"""The key in the `client` of INFO that tells of a node that answers marks."""

CONTINUE = b"+"
STOP = b"-"


class Flow:
    """The writer's side of one stream. `acknowledges` tells whether the reader's node answers marks at all."""

    def __init__(self, *, acknowledges: bool) -> None:
        self.stopped = False
        self._acknowledges = acknowledges
        self._open_marks = 0
        self._bytes = STREAM_MARK_BYTES  # the first chunk carries a mark, so that the reader can stop us from then on
        self._chunks = 0
        self._wake: asyncio.Future[None] | None = None

    def mark(self, size: int) -> bool:
        """Count a chunk that goes out now; True when it must carry a reply subject."""
        if not self._acknowledges:
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

    def answered(self, answer: bytes) -> None:
        """The reader answered a mark."""
        self._open_marks -= 1
        if answer != CONTINUE:
            self.stopped = True
        self._notify()

    def stop(self) -> None:
        """Nobody reads any more."""
        self.stopped = True
        self._notify()

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
