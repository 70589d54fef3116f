"""The streams that come in, by what their packets belong to (moleculer protocol §8.4)."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from msgspec import UNSET

from broker.conversation.effects import AnswerMark, Effect
from broker.errors import (
    InvalidPacketDataError,
    MoleculerError,
    QueueIsFullError,
    RequestRejectedError,
    error_from_wire,
)
from broker.protocol.encoding import UNDECODABLE, reason
from broker.protocol.packets import Address, Id, Request, Response
from broker.streams.buffer import Part, StreamBuffer, StreamMemory
from broker.streams.ordering import CONTINUE, OBJECT_MODE, STOP, STREAM_ERROR, control, sequence_of, without_control

Direction = Literal["REQ", "RES"]

Key = tuple[Direction, str, Id]
"""The direction, the sender and the id: only the sender itself may add to its stream."""


class Arrived(NamedTuple):
    """What follows from a packet of a stream."""

    opening: Request | Response | None
    """The packet that opens the stream, when that is due now: its action is to run, or its call is answered."""
    buffer: StreamBuffer | None
    """The stream that is opened; None when it is one too many."""
    effects: list[Effect]


class IncomingStreams:
    """Every stream on its way to this node.

    At most `limit` streams are open at once; one holds at most `buffer_bytes` that wait to be read, or for a packet
    that is missing, and all together about `total_bytes`. One without a reader is forgotten `idle_s` after its last
    packet.
    """

    def __init__(
        self,
        node_id: str,
        limit: int,
        buffer_bytes: int,
        total_bytes: int,
        idle_s: float,
        decode_chunk: Callable[..., Any],
    ) -> None:
        self.open: dict[Key, StreamBuffer] = {}
        self._node_id = node_id
        self._limit = limit
        self._buffer_bytes = buffer_bytes
        self._memory = StreamMemory(total_bytes)
        self._idle_s = idle_s
        self._decode_chunk = decode_chunk

    def has(self, packet: Request | Response) -> bool:
        """Whether a packet belongs to a stream that is open."""
        return _key(packet) in self.open

    def take(self, packet: Request | Response, reply: str, now: float) -> Arrived:
        """A packet of a stream has come; `reply` is where its writer wants to know how far it is read."""
        key = _key(packet)
        buffer = self.open.get(key)
        if buffer is None:
            if len(self.open) >= self._limit:
                return Arrived(None if sequence_of(packet) else packet, None, [])
            objects = bool(control(packet, OBJECT_MODE))
            buffer = StreamBuffer(packet.sender, self._memory, self._buffer_bytes, now, objects=objects)
            self.open[key] = buffer
        buffer.touched = now
        if buffer.end is not None:
            return Arrived(None, None, self._swallow(key, packet, reply))
        opening, effects = None, list[Effect]()
        value = packet.params if isinstance(packet, Request) else packet.data
        for part in buffer.due(packet, value, reply):
            if part.packet is None:
                effects += self._feed(buffer, part)
            elif sequence_of(part.packet):
                self._finish(key, _error(part.packet))
            else:
                opening, buffer.opened = packet, True
                packet.meta = without_control(packet.meta)
                packet.headers = without_control(packet.headers)
        buffer.check_order()
        self._memory.arrived(len(value))
        return Arrived(opening, buffer, effects)

    def overfull(self, action: str) -> QueueIsFullError:
        """The error for a stream that is one too many."""
        data = {"action": action, "nodeID": self._node_id, "size": len(self.open), "limit": self._limit}
        return QueueIsFullError(data)

    def waits_for(self, until: float) -> set[str]:
        """The nodes from which nothing came since then for a stream that has a reader."""
        buffers = (one for one in self.open.values() if one.touched <= until)
        return {one.node_id for one in buffers if one.opened and one.end is None}

    def lose(self, node_id: str | None, error: MoleculerError | None = None, until: float = math.inf) -> None:
        """A node is gone (None: all are out of reach): what it was sending, until then, breaks off (§4.3)."""
        for key, buffer in list(self.open.items()):
            if node_id in (None, buffer.node_id) and buffer.touched <= until:
                self._finish(key, error or RequestRejectedError(buffer.about))

    def refuse(self, direction: Direction, address: Address, error: MoleculerError) -> None:
        """A packet that cannot be read: the stream that it belongs to is broken. It stays known, so that what its
        writer still sends is not kept for its sake."""
        buffer = self.open.get((direction, address.sender, address.id))
        if buffer is not None:
            buffer.finish(error)

    def expire(self, now: float) -> None:
        """Forget what nobody reads and nobody has added to for long, such as the rest of a refused stream."""
        for key, buffer in list(self.open.items()):
            if (buffer.end is not None or not buffer.opened) and now - buffer.touched > self._idle_s:
                del self.open[key]

    def _feed(self, buffer: StreamBuffer, part: Part) -> list[Effect]:
        if buffer.end is None and part.chunk:
            try:
                chunk = self._decode_chunk(part.chunk, objects=buffer.objects)
            except InvalidPacketDataError as error:
                buffer.finish(error)
            except UNDECODABLE as error:
                buffer.finish(InvalidPacketDataError({"command": "stream", "reason": reason(error)}))
            else:
                if chunk is not None:
                    buffer.feed(chunk, len(chunk) if isinstance(chunk, bytes) else len(part.chunk), part.reply)
                elif part.reply:  # no value, which a stream cannot hold (§8.3)
                    return [AnswerMark(part.reply, CONTINUE)]
        return [AnswerMark(part.reply, STOP)] if part.reply and buffer.end is not None else []

    def _finish(self, key: Key, error: MoleculerError | None) -> None:
        buffer = self.open.pop(key, None)  # a peer may send more than one end
        if buffer is not None:
            buffer.finish(error)

    def _swallow(self, key: Key, packet: Request | Response, reply: str) -> list[Effect]:
        """What comes for a stream that is read no further; a writer that can be told learns it."""
        if packet.stream is True:
            return [AnswerMark(reply, STOP)] if reply else []
        del self.open[key]
        return []


def _key(packet: Request | Response) -> Key:
    return ("REQ" if isinstance(packet, Request) else "RES", packet.sender, packet.id)


def _error(end: Request | Response) -> MoleculerError | None:
    """What broke a stream, told by its last packet."""
    if isinstance(end, Response):
        return None if end.success else error_from_wire(None if end.error is UNSET else end.error, end.sender)
    broken = control(end, STREAM_ERROR)
    return error_from_wire(broken, end.sender) if broken else None
