"""The streams that come in: their packets put in order and turned into effects (moleculer protocol §8.4)."""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, cast
from weakref import WeakKeyDictionary

from msgspec import UNSET, Raw

from broker.conversation.effects import Effect, EndStream, FeedStream, Pending, Reject, Settle, StopWriter
from broker.defaults import STREAM_MARK_BYTES, STREAM_PART_BYTES
from broker.errors import (
    MoleculerError,
    QueueIsFullError,
    RequestRejectedError,
    RequestTimeoutError,
    error_from_wire,
)
from broker.protocol.packets import Address, Id, Request, Response
from broker.streams.ordering import OBJECT_MODE, STREAM_ERROR, Incoming, Ordered, Part, control, without_control
from broker.streams.reader import StreamOverflowError, StreamReader

Direction = Literal["REQ", "RES"]

Key = tuple[Direction, str, Id]
"""The direction, the sender and the id: only the sender itself may add to its stream."""

Begin = Callable[[Request, StreamReader], tuple[bool, list[Effect]]]

Refuse = Callable[[], list[Effect]]


class Receiving:
    """Every stream on its way to this node.

    At most `limit` streams are open at once; one holds at most `buffer_bytes` that wait to be read, or for a packet
    that is missing, and all together about `total_bytes`; a reader waits at most `idle_s` for the next chunk.
    """

    def __init__(self, node_id: str, limit: int, buffer_bytes: int, total_bytes: int, idle_s: float) -> None:
        self._node_id = node_id
        self._limit = limit
        self._buffer_bytes = buffer_bytes
        self._total_bytes = total_bytes
        self._idle_s = idle_s
        self._streams: dict[Key, Incoming] = {}
        self._unread: WeakKeyDictionary[StreamReader, Incoming] = WeakKeyDictionary()
        """Also of streams that have ended, and are not read to their end."""
        self._arrived = 0
        self._loaded = False

    def has_request(self, request: Request) -> bool:
        return ("REQ", request.sender, request.id) in self._streams

    def has_response(self, response: Response) -> bool:
        return ("RES", response.sender, response.id) in self._streams

    def request(self, request: Request, reply: str, now: float, begin: Begin, refuse: Refuse) -> list[Effect]:
        """A packet of a request stream. `begin` runs the action, or refuses it, when the opening packet is due;
        `refuse` answers that too many streams are open."""
        key: Key = ("REQ", request.sender, request.id)
        stream = self._open(key, request, now)
        if stream is None:
            return [] if _sequence(request) else refuse()
        if stream.broken:
            return self._swallow(key, stream, more=request.stream is True, reply=reply)
        effects: list[Effect] = []
        for part in _due(stream, request, request.params, reply):
            if part.packet is None:
                effects += _fed(stream, part.chunk, part.reply)
            elif not _sequence(part.packet):
                stream.action = request.action
                reader = self._new_reader(stream)
                request.meta, request.headers = _clean(request.meta), _clean(request.headers)
                accepted, begun = begin(request, reader)
                if accepted:
                    stream.read_by(reader)
                effects += begun
            else:
                broken = control(part.packet, STREAM_ERROR)
                effects += self._end(key, error_from_wire(broken, request.sender) if broken else None)
        return effects + self._overflown(key, stream) + self._relieved(request.params)

    def response(
        self, response: Response, reply: str, now: float, take_pending: Callable[[Id], Pending | None]
    ) -> list[Effect]:
        """A packet of a response stream. `take_pending` gives the request it answers when the opening packet is due."""
        key: Key = ("RES", response.sender, response.id)
        stream = self._open(key, response, now)
        if stream is None:
            refused = None if _sequence(response) else take_pending(response.id)
            return [] if refused is None else [Reject(refused, self.overfull(refused.action))]
        if stream.broken:
            return self._swallow(key, stream, more=response.stream is True, reply=reply)
        effects: list[Effect] = []
        for part in _due(stream, response, response.data, reply):
            if part.packet is None:
                effects += _fed(stream, part.chunk, part.reply)
            elif not _sequence(part.packet):
                pending = take_pending(response.id)
                if pending is not None:
                    stream.action = pending.action
                    reader = self._new_reader(stream)
                    stream.read_by(reader)
                    response.meta = _clean(response.meta)
                    effects.append(Settle(pending, response, reader))
            else:
                end = cast(Response, part.packet)
                error = None if end.error is UNSET else end.error
                effects += self._end(key, None if end.success else error_from_wire(error, response.sender))
        return effects + self._overflown(key, stream) + self._relieved(response.data)

    def overfull(self, action: str) -> QueueIsFullError:
        """The error for a stream that is one too many."""
        data = {"action": action, "nodeID": self._node_id, "size": len(self._streams), "limit": self._limit}
        return QueueIsFullError(data)

    def waits_for(self, until: float) -> set[str]:
        """The nodes from which nothing came since then for a stream that somebody reads."""
        return {
            stream.node_id
            for stream in self._streams.values()
            if stream.touched <= until and not stream.broken and stream.reader is not None and not stream.reader.ended
        }

    def lose(self, node_id: str | None, error: MoleculerError | None = None, until: float = math.inf) -> list[Effect]:
        """A node is gone (None: all are out of reach): what it was sending, until then, breaks off (§4.3)."""
        effects: list[Effect] = []
        for key, stream in list(self._streams.items()):
            if node_id in (None, stream.node_id) and stream.touched <= until:
                effects += self._end(key, error or RequestRejectedError(stream.about))
        return effects

    def refuse(self, direction: Direction, address: Address, error: MoleculerError) -> list[Effect]:
        """A packet that cannot be read: when it belongs to a stream, its reader is told so."""
        return self._break((direction, address.sender, address.id), error)

    def expire(self, now: float) -> None:
        """Forget what nobody reads and nobody has added to for long, such as the rest of a refused stream."""
        for key, stream in list(self._streams.items()):
            reader = stream.reader
            abandoned = stream.broken or reader is None or reader.ended
            if abandoned and now - stream.touched > self._idle_s:
                del self._streams[key]

    def _new_reader(self, stream: Incoming) -> StreamReader:
        def idle() -> MoleculerError:
            return RequestTimeoutError(stream.about)

        reader = StreamReader(
            limit_bytes=self._buffer_bytes,
            idle_timeout_s=self._idle_s,
            describe_idle=idle,
            is_loaded=lambda: self._loaded,
        )
        self._unread[reader] = stream
        return reader

    def _open(self, key: Key, packet: Request | Response, now: float) -> Incoming | None:
        stream = self._streams.get(key)
        if stream is None:
            if len(self._streams) >= self._limit:
                return None
            objects = bool(control(packet, OBJECT_MODE))
            stream = self._streams[key] = Incoming(packet.sender, objects=objects, now=now)
        stream.touched = now
        return stream

    def _end(self, key: Key, error: MoleculerError | None) -> list[Effect]:
        stream = self._streams.pop(key, None)  # a peer may send more than one end
        return _ended(stream, error) if stream is not None else []

    def _break(self, key: Key, error: MoleculerError) -> list[Effect]:
        """End a stream from here. It stays known, so that what its writer still sends is not kept for its sake."""
        stream = self._streams.get(key)
        if stream is None or stream.broken:
            return []
        stream.broken, stream.ordered = True, Ordered()
        return _ended(stream, error)

    def _swallow(self, key: Key, stream: Incoming, *, more: bool, reply: str) -> list[Effect]:
        if not more:
            del self._streams[key]
            return []
        return _stopped(reply)

    def _overflown(self, key: Key, stream: Incoming) -> list[Effect]:
        if stream.ordered.size <= self._buffer_bytes or key not in self._streams:
            return []
        error = StreamOverflowError(
            f"A packet of a stream is missing, and more than {self._buffer_bytes} bytes behind it have come.",
            data={"limit": self._buffer_bytes},
        )
        return self._break(key, error)

    def _relieved(self, chunk: Raw) -> list[Effect]:
        """When too much waits in all streams together, give up those that are furthest ahead: first those whose writers
        cannot be slowed down, and the others when there is twice as much. Looked for once a MiB."""
        self._arrived += len(chunk)
        if self._arrived < STREAM_MARK_BYTES:
            return []
        self._arrived = 0
        held = {*self._streams.values(), *self._unread.values()}
        waiting = sum(stream.waiting for stream in held)
        self._loaded = waiting > self._total_bytes / 2
        effects: list[Effect] = []
        if waiting > self._total_bytes:
            error = StreamOverflowError(
                f"More than {self._total_bytes} bytes of streams wait to be read at this node, and most of this one, "
                "so it was given up. Read faster, or let the writers send less at a time.",
                data={"limit": self._total_bytes},
            )
            for stream in sorted(held, key=lambda stream: (stream.is_slowed, -stream.waiting)):
                if waiting <= self._total_bytes * (2 if stream.is_slowed else 1):
                    break
                waiting -= stream.waiting
                stream.broken, stream.ordered = True, Ordered()
                effects += _ended(stream, error, drop=True)
        return effects


def _sequence(packet: Request | Response) -> int:
    return packet.sequence if isinstance(packet.sequence, int) else 0


def _due(stream: Incoming, packet: Request | Response, value: Any, reply: str) -> Iterator[Part]:
    """What can be done now that a packet is here. One that is early is kept, in no more bytes than are counted."""
    sequence = _sequence(packet)
    early = stream.ordered.is_early(sequence)
    if sequence and packet.stream is True:
        if early and isinstance(value, Raw):
            value = value.copy()  # else it keeps its whole message
        return stream.ordered.take(sequence, Part(None, value, reply), len(value) + STREAM_PART_BYTES)
    if sequence and not early:
        return iter((Part(packet, None, reply),))  # the end, also one that does not wait for what was lost
    if early and stream.has_end:
        return iter(())  # a stream has one end
    stream.has_end = early
    return stream.ordered.take(sequence, Part(packet, None, reply), STREAM_PART_BYTES)


def _fed(stream: Incoming, chunk: Any, reply: str) -> list[Effect]:
    reader = stream.reader
    if reader is None or reader.ended:
        return _stopped(reply)
    return [FeedStream(reader, chunk, stream.objects, reply)] if chunk else []


def _stopped(reply: str) -> list[Effect]:
    """A writer that can be told hears that nobody reads."""
    return [StopWriter(reply)] if reply else []


def _ended(stream: Incoming, error: MoleculerError | None, *, drop: bool = False) -> list[Effect]:
    reader = stream.reader
    return [EndStream(reader, error, drop)] if reader is not None else []


def _clean(place: Any) -> Any:
    return place if place is UNSET else without_control(place)
