"""Streams on the wire: packets put in order, bytes cut into chunks, the streams that are under way (protocol §8)."""

import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from msgspec import UNSET

from broker.defaults import STREAM_SLOWED_BYTES

if TYPE_CHECKING:
    from broker.protocol.packets import Request, Response
    from broker.streams.reader import StreamReader

T = TypeVar("T")

OBJECT_MODE = "$streamObjectMode"
"""The key of meta (protocol 4) or headers (protocol 5) that marks a stream of values instead of bytes (§8.1)."""

STREAM_ERROR = "$streamError"
"""The key under which the last packet of a broken request stream carries its error (§8.1)."""


class Ordered(Generic[T]):
    """Packets of one stream in any order in, in the order of their sequence out (§8.4).

    Duplicates are dropped. `size` is what still waits for an earlier packet, in bytes.
    """

    __slots__ = ("_next", "_waiting", "size")

    def __init__(self) -> None:
        self._next = 0
        self._waiting: dict[int, tuple[T, int]] = {}
        self.size = 0

    def is_early(self, sequence: int) -> bool:
        """Whether a packet of this sequence would have to wait for another."""
        return sequence > self._next

    def take(self, sequence: int, packet: T, size: int) -> Iterator[T]:
        """The packets that are due now."""
        if sequence < self._next or sequence in self._waiting:
            return
        self._waiting[sequence] = packet, size
        self.size += size
        while self._next in self._waiting:
            due, due_size = self._waiting.pop(self._next)
            self._next += 1
            self.size -= due_size
            yield due


def split(data: bytes, size: int) -> Iterator[bytes]:
    """Bytes in chunks of at most `size`; the bytes themselves when they fit."""
    if len(data) <= size:
        yield data
        return
    view = memoryview(data)
    for start in range(0, len(data), size):
        yield bytes(view[start : start + size])


class Part(NamedTuple):
    """What is kept of a packet of a stream: of a chunk nothing else."""

    packet: "Request | Response | None"
    """The opening or the end; None for a chunk."""
    chunk: Any
    reply: str


class Incoming:
    """One stream on its way in. `reader` is None when what it belongs to was refused: the rest is swallowed, as it is
    when the stream is `broken`, or its reader was dropped."""

    __slots__ = ("_reader", "action", "broken", "has_end", "node_id", "objects", "ordered", "touched")

    def __init__(self, node_id: str, *, objects: bool, now: float) -> None:
        self.node_id = node_id
        self.action = ""
        self.objects = objects
        self.ordered: Ordered[Part] = Ordered()
        self.has_end = False
        """Whether an end has come, and waits for what is before it."""
        self._reader: weakref.ref[StreamReader] | None = None
        self.touched = now
        self.broken = False

    @property
    def reader(self) -> "StreamReader | None":
        """Who reads it holds the reader: when nobody does, the rest is swallowed as well."""
        return self._reader() if self._reader is not None else None

    @property
    def waiting(self) -> int:
        """What waits to be read, or for a packet that is missing, in bytes."""
        reader = self.reader
        return self.ordered.size + (reader.waiting if reader is not None else 0)

    @property
    def is_slowed(self) -> bool:
        """Whether its writer waits for its reader: it asks how far that is, and is no further ahead than it may be."""
        reader = self.reader
        return reader is not None and bool(reader.reply) and self.waiting <= STREAM_SLOWED_BYTES

    @property
    def about(self) -> dict[str, Any]:
        """What the errors of its reader tell."""
        return {"action": self.action, "nodeID": self.node_id}

    def read_by(self, reader: "StreamReader") -> None:
        """The stream was accepted."""
        self._reader = weakref.ref(reader)


def has_inbox(request: "Request", reply: str) -> bool:
    """Whether a request came from a node like this, perhaps one that has not introduced itself yet. JS nodes publish
    without a reply subject, and what others put there does not end with the id of the request."""
    return bool(reply and request.id) and reply.endswith(str(request.id))


def is_part_of_stream(packet: "Request | Response") -> bool:
    """Whether a packet is one of several. The end of a stream says `stream: false`, but its sequence is above 0."""
    return packet.stream is True or bool(packet.sequence is not UNSET and packet.sequence)


def control(packet: "Request | Response", key: str) -> Any:
    """A stream's control value: peers of protocol 4 put it into meta, those of 5 into headers (§8.1)."""
    headers = packet.headers if packet.headers is not UNSET else None
    for place in (headers, packet.meta):
        if place and key in place:
            return place[key]
    return None


def without_control(place: "dict[str, Any] | None") -> "dict[str, Any] | None":
    """Meta or headers as the user set them."""
    if place and (OBJECT_MODE in place or STREAM_ERROR in place):
        return {key: value for key, value in place.items() if key not in (OBJECT_MODE, STREAM_ERROR)}
    return place
