"""Streams on their way in, from the wire to their readers: what waits, in which order, and in how many bytes."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakSet

from msgspec import Raw

from broker.defaults import STREAM_MARK_BYTES, STREAM_PART_BYTES, STREAM_SLOWED_BYTES
from broker.errors import MoleculerError
from broker.streams.ordering import Ordered, sequence_of

if TYPE_CHECKING:
    from broker.protocol.packets import Request, Response


class StreamOverflowError(MoleculerError):
    """More of a stream is waiting to be read than this node holds; its writer cannot be slowed down."""

    default_code = 429
    default_type = "STREAM_OVERFLOW"

    @property
    def name(self) -> str:
        return "MoleculerError"


class Part(NamedTuple):
    """What is kept of a packet of a stream: of a chunk nothing else."""

    packet: "Request | Response | None"
    """The opening or the end; None for a chunk."""
    chunk: Any
    reply: str


class StreamBuffer:
    """One stream on its way in. It holds at most `limit_bytes`, and of a stream that has ended for its reader nothing
    of what still comes."""

    __slots__ = (
        *("__weakref__", "_chunks", "_has_end", "_limit", "_ordered", "_size", "action", "end", "marks"),
        *("memory", "node_id", "objects", "opened", "reply", "touched", "wake"),
    )

    def __init__(self, node_id: str, memory: "StreamMemory", limit_bytes: int, now: float, *, objects: bool) -> None:
        self.node_id = node_id
        self.action = ""
        self.objects = objects
        self.memory = memory
        self.opened = False
        """Whether its opening packet has come: from then on it has a reader, unless it has ended."""
        self.touched = now
        self.end: Exception | None = None
        """What its reader gets behind the last chunk: StopAsyncIteration, or why the stream is broken."""
        self.reply = ""
        """Where its writer learns how far it is read; empty when it does not ask."""
        self.marks = 0
        """How many chunks that wait to be read ask for that."""
        self.wake: Callable[[], None] | None = None
        """Called when something has come for a reader that waits."""
        self._limit = limit_bytes
        self._ordered: Ordered[Part] = Ordered()
        self._has_end = False
        """Whether an end has come, and waits for what is before it."""
        self._chunks: deque[tuple[Any, int, bool]] = deque()
        self._size = 0
        memory.add(self)

    def __len__(self) -> int:
        """How many chunks can be read."""
        return len(self._chunks)

    @property
    def waiting(self) -> int:
        """What waits to be read, or for a packet that is missing, in bytes."""
        return self._ordered.size + self._size

    @property
    def is_slowed(self) -> bool:
        """Whether its writer waits for its reader: it asks how far that is, and is no further ahead than it may be."""
        return bool(self.reply) and self.waiting <= STREAM_SLOWED_BYTES

    @property
    def about(self) -> dict[str, Any]:
        """The data of the errors of its reader."""
        return {"action": self.action, "nodeID": self.node_id}

    # From the wire

    def due(self, packet: "Request | Response", value: Raw, reply: str) -> Iterator[Part]:
        """What can be done now that a packet is here. One that is early is kept, in no more bytes than are counted."""
        sequence = sequence_of(packet)
        early = self._ordered.is_early(sequence)
        if sequence and packet.stream is True:
            if early:
                value = value.copy()  # else it keeps its whole message
            return self._ordered.take(sequence, Part(None, value, reply), len(value) + STREAM_PART_BYTES)
        if sequence and not early:
            return iter((Part(packet, None, reply),))  # the end, also one that does not wait for what was lost
        if early and self._has_end:
            return iter(())  # a stream has one end
        self._has_end = early
        return self._ordered.take(sequence, Part(packet, None, reply), STREAM_PART_BYTES)

    def feed(self, chunk: Any, size: int, reply: str) -> None:
        """Let the reader have a chunk. With `reply` the writer wants to know when it is read."""
        if self.end is not None:
            return
        self.reply = reply or self.reply
        size += STREAM_PART_BYTES
        if self._size + size > self._limit:
            self.finish(
                StreamOverflowError(
                    f"More than {self._limit} bytes of a stream wait to be read, so it was given up. Read faster, or "
                    "let the writer send less at a time.",
                    data={"limit": self._limit},
                )
            )
            return
        self._size += size
        self.marks += bool(reply)
        self._chunks.append((chunk, size, bool(reply)))
        self._notify()

    def check_order(self) -> None:
        """Give up a stream that lacks a packet when too much waits behind it."""
        if self._ordered.size > self._limit:
            text = f"A packet of a stream is missing, and more than {self._limit} bytes behind it have come."
            self.finish(StreamOverflowError(text, data={"limit": self._limit}))

    def finish(self, error: Exception | None = None) -> None:
        """The stream has ended, or with `error`, broken. What came before can still be read."""
        self._ordered.clear()
        if self.end is None:
            self.end = error or StopAsyncIteration()
            self._notify()

    def drop(self, error: Exception | None = None) -> None:
        """Forget what is not read yet; with `error`, fail, also when the writer is done."""
        self._chunks.clear()
        self._size = self.marks = 0
        if error is not None:
            self.end = None
        self.finish(error)

    # To the reader

    def pop(self) -> tuple[Any, bool]:
        """The next chunk, and whether the writer wants to know that it is read."""
        chunk, size, marked = self._chunks.popleft()
        self._size -= size
        self.marks -= marked
        return chunk, marked

    def _notify(self) -> None:
        if self.wake is not None:
            self.wake()


class StreamMemory:
    """What waits to be read at this node in all streams together, also in those that have ended: some `limit_bytes`."""

    def __init__(self, limit_bytes: int) -> None:
        self.is_high = False
        """Whether so much waits that writers shall stay closer to their readers."""
        self._limit = limit_bytes
        self._buffers: WeakSet[StreamBuffer] = WeakSet()
        self._arrived = 0

    def add(self, buffer: StreamBuffer) -> None:
        """Watch a stream as long as it is held."""
        self._buffers.add(buffer)

    def arrived(self, size: int) -> None:
        """Count what has come, and look once a MiB how much waits. When it is too much, give up the streams that are
        furthest ahead: first those whose writers cannot be slowed down, and the others when there is twice as much."""
        self._arrived += size
        if self._arrived < STREAM_MARK_BYTES:
            return
        self._arrived = 0
        waiting = sum(buffer.waiting for buffer in self._buffers)
        self.is_high = waiting > self._limit / 2
        if waiting <= self._limit:
            return
        error = StreamOverflowError(
            f"More than {self._limit} bytes of streams wait to be read at this node, and most of this one, "
            "so it was given up. Read faster, or let the writers send less at a time.",
            data={"limit": self._limit},
        )
        for buffer in sorted(self._buffers, key=lambda buffer: (buffer.is_slowed, -buffer.waiting)):
            if waiting <= self._limit * (2 if buffer.is_slowed else 1):
                break
            waiting -= buffer.waiting
            buffer.drop(error)
