"""Streams on their way in: to which one a packet belongs, in which order packets are due, and what waits to be read
(protocol §8.4)."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import WeakSet

from msgspec import UNSET, Raw

from broker.defaults import STREAM_MARK_BYTES, STREAM_PART_BYTES, STREAM_SLOWED_BYTES
from broker.errors import (
    InvalidPacketDataError,
    MoleculerError,
    QueueIsFullError,
    RequestRejectedError,
    error_from_wire,
)
from broker.protocol.encoding import UNDECODABLE, reason
from broker.protocol.packets import Address, Id, Request, Response
from broker.streams.packets import OBJECT_MODE, STREAM_ERROR, control, sequence_of, without_control

Key = tuple[Literal["REQ", "RES"], str, Id]
"""The direction, the sender and the id: only the sender itself may add to its stream."""


@dataclass(eq=False)
class StreamBuffer:
    """One stream: its packets in the order of their sequence, and its chunks until they are read, each in a bounded
    number of bytes. Once it has ended for its reader, it holds nothing of what still comes."""

    streams: "IncomingStreams"
    node_id: str
    objects: bool
    touched: float
    action: str = ""
    opened: bool = False
    """Whether its opening packet has come: from then on it has a reader, unless it has ended."""
    end: Exception | None = None
    """What its reader gets behind the last chunk: StopAsyncIteration, or why the stream is broken."""
    reply: str = ""
    """Where its writer learns how far it is read; empty when it does not ask."""
    marks: int = 0
    """How many chunks that wait to be read ask for that."""
    wake: Callable[[], None] | None = None
    """Called when something has come for the reader."""
    _next: int = 0
    _early: dict[int, tuple[Raw, str]] = field(default_factory=dict)
    """Chunks that wait for an earlier packet, and their reply subjects, by their sequence."""
    _early_end: tuple[int, MoleculerError | None] | None = None
    _early_bytes: int = 0
    _chunks: deque[tuple[Any, int, bool]] = field(default_factory=deque)
    _chunk_bytes: int = 0

    def __len__(self) -> int:
        """How many chunks can be read."""
        return len(self._chunks)

    @property
    def waiting(self) -> int:
        """What waits to be read, or for a packet that is missing, in bytes."""
        return self._early_bytes + self._chunk_bytes

    @property
    def is_slowed(self) -> bool:
        """Whether backpressure holds its writer: it asks for acknowledgements, and is no further ahead than they
        allow."""
        return bool(self.reply) and self.waiting <= STREAM_SLOWED_BYTES

    @property
    def about(self) -> dict[str, Any]:
        """The data of the errors of its reader."""
        return {"action": self.action, "nodeID": self.node_id}

    def take(self, packet: Request | Response, value: Raw, reply: str) -> bool:
        """Do what is due now that a packet is here; whether its writer has ended the stream by that. Duplicates are
        dropped, and what is early waits for what is before it."""
        sequence = sequence_of(packet)
        early = sequence > self._next
        if sequence and packet.stream is not True:
            if not early:  # also one of sequence 1, from a writer that has lost chunks (`StreamWriter._end_late`)
                self.finish(_error(packet))
                return True
            self._early_end = self._early_end or (sequence, _error(packet))
        elif sequence < self._next or sequence in self._early:
            return False
        elif sequence:
            self._early[sequence] = (value.copy() if early else value), reply  # without the copy it keeps its message
            self._early_bytes += len(value) + STREAM_PART_BYTES
        else:
            self._next, self.opened = 1, True
        while self._next in self._early:
            chunk, reply = self._early.pop(self._next)
            self._next += 1
            self._early_bytes -= len(chunk) + STREAM_PART_BYTES
            self._decode(chunk, reply)
        if self._early_end is not None and self._early_end[0] == self._next and self.end is None:
            self.finish(self._early_end[1])
            return True
        if self._early_bytes > self.streams.buffer_bytes:
            self._overflow("A packet of a stream is missing, and more than {limit} bytes behind it have come.")
        return False

    def feed(self, chunk: Any, size: int, reply: str) -> None:
        """Let the reader have a chunk. With `reply` the writer wants to know when it is read."""
        if self.end is not None:
            return
        self.reply = reply or self.reply
        size += STREAM_PART_BYTES
        if self._chunk_bytes + size > self.streams.buffer_bytes:
            self._overflow(
                "More than {limit} bytes of a stream wait to be read, so it was given up. Read faster, or let the "
                "writer send less at a time."
            )
            return
        self._chunk_bytes += size
        self.marks += bool(reply)
        self._chunks.append((chunk, size, bool(reply)))
        self._notify()

    def pop(self) -> tuple[Any, bool]:
        """The next chunk, and whether the writer wants to know that it is read."""
        chunk, size, marked = self._chunks.popleft()
        self._chunk_bytes -= size
        self.marks -= marked
        return chunk, marked

    def finish(self, error: Exception | None = None) -> None:
        """The stream has ended, or with `error`, broken. What came before can still be read."""
        self._early.clear()
        self._early_bytes = 0
        if self.end is None:
            self.end = error or StopAsyncIteration()
            self._notify()

    def drop(self, error: Exception | None = None) -> None:
        """Forget what is not read yet; with `error`, fail, also when the writer is done."""
        self._chunks.clear()
        self._chunk_bytes = self.marks = 0
        if error is not None:
            self.end = None
        self.finish(error)

    def _decode(self, raw: Raw, reply: str) -> None:
        try:
            chunk = self.streams.decode_chunk(raw, objects=self.objects) if raw else None
        except InvalidPacketDataError as error:
            self.finish(error)
        except UNDECODABLE as error:
            self.finish(InvalidPacketDataError({"command": "stream", "reason": reason(error)}))
        else:
            if chunk is not None:
                self.feed(chunk, len(chunk) if isinstance(chunk, bytes) else len(raw), reply)

    def _overflow(self, text: str) -> None:
        self.finish(_overflow(text, self.streams.buffer_bytes))

    def _notify(self) -> None:
        if self.wake is not None:
            self.wake()


@dataclass(eq=False)
class IncomingStreams:
    """Every stream on its way to this node."""

    node_id: str
    limit: int
    """How many may be open at once."""
    buffer_bytes: int
    """What may wait of one stream to be read, and as much for a packet that is missing."""
    total_bytes: int
    """About what may wait to be read of all of them together, also of those that have ended."""
    idle_s: float
    """How long a stream without a reader is kept after its last packet."""
    decode_chunk: Callable[..., Any]
    open: dict[Key, StreamBuffer] = field(default_factory=dict)
    is_high: bool = False
    """Whether so much waits that writers shall stay closer to their readers."""
    _buffers: WeakSet[StreamBuffer] = field(default_factory=WeakSet)
    _arrived_bytes: int = 0

    def has(self, packet: Request | Response) -> bool:
        """Whether a packet belongs to a stream that is open."""
        return _key(packet) in self.open

    def take(
        self, packet: Request | Response, reply: str, now: float
    ) -> tuple[Request | Response | None, StreamBuffer | None, bool]:
        """A packet of a stream has come; `reply` is where its writer wants to know how far it is read.

        Returns the packet when it opens its stream, so that its action is to run, or its call is answered; the stream,
        or None when it is one too many; and whether the packet is a chunk of a stream that has ended for its reader.
        """
        key = _key(packet)
        buffer = self.open.get(key)
        if buffer is None:
            if len(self.open) >= self.limit:
                return None if sequence_of(packet) else packet, None, False
            buffer = StreamBuffer(self, packet.sender, bool(control(packet, OBJECT_MODE)), now)
            self.open[key] = buffer
            self._buffers.add(buffer)
        buffer.touched, opened, more = now, buffer.opened, packet.stream is True
        value = packet.params if isinstance(packet, Request) else packet.data
        ended = buffer.take(packet, value, reply) if buffer.end is None else not more
        if ended:
            del self.open[key]
        self._arrived_bytes += len(value)
        if self._arrived_bytes >= STREAM_MARK_BYTES:
            self._arrived_bytes = 0
            self._keep_bound()
        if opened == buffer.opened:
            return None, buffer, more and buffer.end is not None
        packet.meta, packet.headers = without_control(packet.meta), without_control(packet.headers)
        return packet, buffer, False

    def overfull(self, action: str) -> QueueIsFullError:
        """The error for a stream that is one too many."""
        data = {"action": action, "nodeID": self.node_id, "size": len(self.open), "limit": self.limit}
        return QueueIsFullError(data)

    def waits_for(self, until: float) -> set[str]:
        """The nodes from which nothing came since then for a stream that has a reader."""
        buffers = (one for one in self.open.values() if one.touched <= until)
        return {one.node_id for one in buffers if one.opened and one.end is None}

    def lose(self, node_id: str | None, error: MoleculerError | None = None, until: float = math.inf) -> None:
        """A node is gone (None: all are out of reach): what it was sending, until then, breaks off (§4.3)."""
        for key, buffer in list(self.open.items()):
            if node_id in (None, buffer.node_id) and buffer.touched <= until:
                del self.open[key]
                buffer.finish(error or RequestRejectedError(buffer.about))

    def refuse(self, direction: Literal["REQ", "RES"], address: Address, error: MoleculerError) -> None:
        """A packet that cannot be read: the stream that it belongs to is broken. It stays known, so that what its
        writer still sends is not kept for its sake."""
        buffer = self.open.get((direction, address.sender, address.id))
        if buffer is not None:
            buffer.finish(error)

    def expire(self, now: float) -> None:
        """Forget streams without a reader to which nothing was added for long, such as the rest of a refused one."""
        for key, buffer in list(self.open.items()):
            if (buffer.end is not None or not buffer.opened) and now - buffer.touched > self.idle_s:
                del self.open[key]

    def _keep_bound(self) -> None:
        """When too much waits at this node, give up the streams that are furthest ahead: first those whose writers
        cannot be slowed down, and the others when there is twice as much."""
        limit, waiting = self.total_bytes, sum(buffer.waiting for buffer in self._buffers)
        self.is_high = waiting > limit / 2
        for buffer in sorted(self._buffers, key=lambda buffer: (buffer.is_slowed, -buffer.waiting)):
            if waiting <= limit * (2 if buffer.is_slowed else 1):
                return
            waiting -= buffer.waiting
            buffer.drop(
                _overflow(
                    "More than {limit} bytes of streams wait to be read at this node, and most of this one, so it was "
                    "given up. Read faster, or let the writers send less at a time.",
                    limit,
                )
            )


def _key(packet: Request | Response) -> Key:
    return ("REQ" if isinstance(packet, Request) else "RES", packet.sender, packet.id)


def _error(end: Request | Response) -> MoleculerError | None:
    """What broke a stream, according to its last packet."""
    if isinstance(end, Response):
        return None if end.success else error_from_wire(None if end.error is UNSET else end.error, end.sender)
    broken = control(end, STREAM_ERROR)
    return error_from_wire(broken, end.sender) if broken else None


def _overflow(text: str, limit: int) -> MoleculerError:
    return MoleculerError(text.format(limit=limit), 429, "STREAM_OVERFLOW", {"limit": limit})
