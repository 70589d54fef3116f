"""What the packets of a stream say, and the order in which they are due (protocol §8)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from msgspec import UNSET

if TYPE_CHECKING:
    from broker.protocol.packets import Request, Response

T = TypeVar("T")

OBJECT_MODE = "$streamObjectMode"
"""The key of meta (protocol 4) or headers (protocol 5) that marks a stream of values instead of bytes (§8.1)."""

STREAM_ERROR = "$streamError"
"""The key under which the last packet of a broken request stream carries its error (§8.1)."""

CONTINUE = b"+"
"""The answer of a reader to a marked chunk that it has read (§8.3)."""

STOP = b"-"
"""The answer of a reader that reads no further."""


class Ordered(Generic[T]):
    """Packets of one stream in any order in, in the order of their sequence out (§8.4).

    Duplicates are dropped. `size` is what still waits for an earlier packet, in bytes.
    """

    __slots__ = ("_next", "_waiting", "size")

    def __init__(self) -> None:
        self._next = 0
        self._waiting: dict[int, tuple[T, int]] = {}
        self.size = 0

    def __len__(self) -> int:
        return len(self._waiting)

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

    def clear(self) -> None:
        """Forget what waits."""
        self._waiting.clear()
        self.size = 0


def has_inbox(request: "Request", reply: str) -> bool:
    """Whether a request came from a node like this, perhaps one that has not introduced itself yet. JS nodes publish
    without a reply subject, and what others put there does not end with the id of the request."""
    return bool(reply and request.id) and reply.endswith(str(request.id))


def is_part_of_stream(packet: "Request | Response") -> bool:
    """Whether a packet is one of several. The end of a stream says `stream: false`, but its sequence is above 0."""
    return packet.stream is True or bool(packet.sequence is not UNSET and packet.sequence)


def sequence_of(packet: "Request | Response") -> int:
    """The place of a packet in its stream; 0 for the one that opens it."""
    return packet.sequence if isinstance(packet.sequence, int) else 0


def control(packet: "Request | Response", key: str) -> Any:
    """A stream's control value: peers of protocol 4 put it into meta, those of 5 into headers (§8.1)."""
    headers = packet.headers if packet.headers is not UNSET else None
    for place in (headers, packet.meta):
        if place and key in place:
            return place[key]
    return None


def without_control(place: Any) -> Any:
    """Meta or headers as the user set them."""
    if isinstance(place, dict) and (OBJECT_MODE in place or STREAM_ERROR in place):
        return {key: value for key, value in place.items() if key not in (OBJECT_MODE, STREAM_ERROR)}
    return place
