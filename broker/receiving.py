"""The streams that come in: their packets put in order and turned into effects (moleculer protocol §8.4)."""

from collections.abc import Callable
from typing import Any, Literal

from msgspec import UNSET, Raw

from broker.effects import Effect, EndStream, FeedStream, Pending, Settle
from broker.errors import MoleculerError, RequestRejectedError, RequestTimeoutError, error_from_wire
from broker.packets import Address, Request, Response
from broker.reader import StreamOverflowError, StreamReader
from broker.streams import OBJECT_MODE, STREAM_ERROR, Incoming, Ordered, control, without_control

Direction = Literal["REQ", "RES"]

Key = tuple[Direction, str, str]
"""The direction, the sender and the id: only the sender itself may add to its stream."""

Begin = Callable[[Request, StreamReader], tuple[bool, list[Effect]]]


class Receiving:
    """Every stream on its way to this node.

    At most `limit` streams are open at once; one holds at most `buffer_bytes` that wait to be read, or for a packet
    that is missing; a reader waits at most `idle_s` for the next chunk.
    """

    def __init__(self, limit: int, buffer_bytes: int, idle_s: float) -> None:
        self._limit = limit
        self._buffer_bytes = buffer_bytes
        self._idle_s = idle_s
        self._streams: dict[Key, Incoming] = {}

    def has_request(self, request: Request) -> bool:
        return ("REQ", request.sender, request.id) in self._streams

    def has_response(self, response: Response) -> bool:
        return ("RES", response.sender, response.id) in self._streams

    def request(self, request: Request, reply: str, now: float, begin: Begin) -> list[Effect]:
        """A packet of a request stream. `begin` runs the action, or refuses it, when the opening packet is due."""
        key: Key = ("REQ", request.sender, request.id)
        stream = self._open(key, request, now)
        if stream is None:
            return []
        if stream.broken:
            return self._swallow(key, stream, more=request.stream is True, reply=reply)
        effects: list[Effect] = []
        for packet, packet_reply in stream.ordered.take(_sequence(request), (request, reply), len(request.params)):
            if packet.sequence == 0 or packet.sequence is UNSET:
                reader = self._new_reader(request.sender)
                packet.meta, packet.headers = _clean(packet.meta), _clean(packet.headers)
                accepted, begun = begin(packet, reader)
                stream.reader = reader if accepted else None
                effects += begun
            elif packet.stream is True:
                effects += _fed(stream, packet.params, packet_reply)
            else:
                broken = control(packet, STREAM_ERROR)
                effects += self._end(key, error_from_wire(broken, request.sender) if broken else None)
        return effects + self._overflown(key, stream)

    def response(
        self, response: Response, reply: str, now: float, take_pending: Callable[[str], Pending | None]
    ) -> list[Effect]:
        """A packet of a response stream. `take_pending` gives the request it answers when the opening packet is due."""
        key: Key = ("RES", response.sender, response.id)
        stream = self._open(key, response, now)
        if stream is None:
            return []
        if stream.broken:
            return self._swallow(key, stream, more=response.stream is True, reply=reply)
        effects: list[Effect] = []
        for packet, packet_reply in stream.ordered.take(_sequence(response), (response, reply), len(response.data)):
            if packet.sequence == 0 or packet.sequence is UNSET:
                pending = take_pending(response.id)
                if pending is not None:
                    stream.reader = self._new_reader(response.sender)
                    packet.meta = _clean(packet.meta)
                    effects.append(Settle(pending, packet, stream.reader))
            elif packet.stream is True:
                effects += _fed(stream, packet.data, packet_reply)
            else:
                failed = not packet.success
                error = None if packet.error is UNSET else packet.error
                effects += self._end(key, error_from_wire(error, response.sender) if failed else None)
        return effects + self._overflown(key, stream)

    def lose(self, node_id: str | None, error: Callable[[str], MoleculerError] | None = None) -> list[Effect]:
        """A node is gone (None: all are out of reach): what it was sending breaks off (§4.3)."""
        effects: list[Effect] = []
        for key, stream in list(self._streams.items()):
            if node_id is None or stream.node_id == node_id:
                make = error or (lambda sender: RequestRejectedError({"action": None, "nodeID": sender}))
                effects += self._end(key, make(stream.node_id))
        return effects

    def refuse(self, direction: Direction, address: Address, error: MoleculerError) -> list[Effect]:
        """A packet that cannot be read: when it belongs to a stream, its reader is told so."""
        return self._break((direction, address.sender, address.id), error)

    def expire(self, now: float) -> None:
        """Forget what nobody reads and nobody has added to for long, such as the rest of a refused stream."""
        for key, stream in list(self._streams.items()):
            abandoned = stream.broken or stream.reader is None or stream.reader.ended
            if abandoned and now - stream.touched > self._idle_s:
                del self._streams[key]

    def _new_reader(self, node_id: str) -> StreamReader:
        def idle() -> MoleculerError:
            return RequestTimeoutError({"action": "stream", "nodeID": node_id})

        return StreamReader(limit_bytes=self._buffer_bytes, idle_timeout_s=self._idle_s, describe_idle=idle)

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
        return [EndStream(stream.reader, error)] if stream is not None and stream.reader is not None else []

    def _break(self, key: Key, error: MoleculerError) -> list[Effect]:
        """End a stream from here. It stays known, so that what its writer still sends is not kept for its sake."""
        stream = self._streams.get(key)
        if stream is None or stream.broken:
            return []
        stream.broken, stream.ordered = True, Ordered()
        return [EndStream(stream.reader, error)] if stream.reader is not None else []

    def _swallow(self, key: Key, stream: Incoming, *, more: bool, reply: str) -> list[Effect]:
        if not more:
            del self._streams[key]
        elif stream.reader is not None and reply:  # a reader that has ended tells the writer to stop
            return [FeedStream(stream.reader, Raw(), stream.objects, reply)]
        return []

    def _overflown(self, key: Key, stream: Incoming) -> list[Effect]:
        if stream.ordered.size <= self._buffer_bytes or key not in self._streams:
            return []
        error = StreamOverflowError(
            f"A packet of a stream is missing, and more than {self._buffer_bytes} bytes behind it have come.",
            data={"limit": self._buffer_bytes},
        )
        return self._break(key, error)


def _sequence(packet: Request | Response) -> int:
    return packet.sequence if isinstance(packet.sequence, int) else 0


def _fed(stream: Incoming, chunk: Any, reply: str) -> list[Effect]:
    if stream.reader is None or not chunk:
        return []
    return [FeedStream(stream.reader, chunk, stream.objects, reply)]


def _clean(place: Any) -> Any:
    return place if place is UNSET else without_control(place)
