"""The streams that this node sends: their packets, and what comes from outside to their writers (protocol §8)."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol
from weakref import WeakValueDictionary

from msgspec import UNSET, Raw
from msgspec.structs import replace

from broker.context import Context
from broker.defaults import STREAM_CHUNK_BYTES
from broker.errors import MoleculerError, PayloadTooLargeError, RequestRejectedError, error_to_wire, publish_denied
from broker.protocol.codecs.json import Codec
from broker.protocol.packets import NULL, PROTOCOLS, Command, Packet, Ping, Pong, Request, Response
from broker.protocol.topics import Topics
from broker.registry.registry import Registry
from broker.streams.flow import FLOW_CONTROL, PACE, Fate, Flow, Pace
from broker.streams.packets import OBJECT_MODE, STREAM_ERROR

BYTES = (bytes, bytearray, memoryview)


class Envelope(NamedTuple):
    """What the packets of a stream that goes out are made of."""

    rest: Request | Response
    bare: Request | Response
    """The same without the user's meta and headers: for an error that says that something is too large."""

    def packet(
        self, sequence: int, more: bool, chunk: Raw = NULL, error: BaseException | None = None
    ) -> Request | Response:
        """One of them: whether more follow, the chunk, and what broke the stream."""
        base = self.bare if isinstance(error, PayloadTooLargeError) else self.rest
        wire_error = None if error is None else error_to_wire(error, base.sender)
        if isinstance(base, Response):
            failure = {} if error is None else {"success": False, "error": wire_error}
            return replace(base, data=chunk, stream=more, sequence=sequence, **failure)
        packet = replace(base, params=chunk, stream=more, sequence=sequence)
        if error is not None:
            place = "meta" if base.ver == "4" else "headers"
            setattr(packet, place, {**getattr(base, place), STREAM_ERROR: wire_error})
        return packet


def open_request(request: Request, *, objects: bool) -> Envelope:
    """Make a request the opening packet of a stream: in protocol 4 the stream takes the place of its params."""
    flags = {OBJECT_MODE: True} if objects else {}
    request.stream, request.sequence = True, 0
    if request.ver == "4":
        request.params, request.meta = NULL, {**(request.meta or {}), **flags}
        rest = replace(request, meta=flags, headers=UNSET)
        return Envelope(rest, rest)
    request.headers = {**(request.headers or {}), **flags}
    rest = replace(request, meta={})
    return Envelope(rest, replace(rest, headers=flags))


def open_answer(request: Request, node_id: str, ctx: Context, *, objects: bool) -> Envelope:
    """The packets of an answer, with the meta and headers of the moment in which it opens."""
    flags = {OBJECT_MODE: True} if objects else {}
    bare = Response(ver=request.ver, sender=node_id, id=request.id, meta={}, success=True)
    if request.ver == "4":
        return Envelope(replace(bare, meta={**ctx.meta, **flags}), bare)
    return Envelope(replace(bare, meta=dict(ctx.meta), headers={**ctx.response_headers, **flags}), bare)


def chunks_of(item: Any, codec: Codec, room: int | None, *, of_bytes: bool) -> list[Raw]:
    """The chunks of an item of a stream: bytes are cut to fit into what a packet has room for, values are not.

    Raises TypeError for what the stream cannot hold, PayloadTooLargeError for a value that does not fit.
    """
    if item is None:
        raise TypeError("A stream cannot hold None: in JavaScript that is the end of a stream.")
    if of_bytes:
        if not isinstance(item, BYTES):
            raise TypeError(f"The stream began with bytes and goes on with {type(item).__name__}.")
        limit = STREAM_CHUNK_BYTES if room is None else min(STREAM_CHUNK_BYTES, codec.chunk_limit(room))
        data = bytes(item)
        return [codec.encode_value(data[start : start + limit]) for start in range(0, len(data) or 1, limit)]
    raw = codec.encode_value(item)
    if room is not None and len(raw) > room and codec.size(raw) > room:
        raise PayloadTooLargeError(
            f"A value of a stream has {len(raw)} bytes, and the NATS server leaves room for {room} (max_payload). "
            "Send smaller values, or bytes, which are cut to fit.",
            {"size": len(raw), "limit": room},
        )
    return [raw]


class Wire(Protocol):
    """What is needed of the transport."""

    @property
    def has_inbox(self) -> bool: ...

    @property
    def max_payload(self) -> int | None: ...


class Tasks(Protocol):
    """Starts tasks of a node."""

    def start_handler(self, work: Coroutine[Any, Any, None]) -> bool: ...

    def start_in_background(self, work: Coroutine[Any, Any, None]) -> None: ...


@dataclass(eq=False)
class OutgoingStreams:
    """All of a node."""

    node_id: str
    topics: Topics
    registry: Registry
    codec: Codec
    wire: Wire | None
    publish: Callable[[str, Packet, str | None], Awaitable[None]]
    """Sends a packet to a subject, perhaps with a reply id, or raises MoleculerError."""
    tasks: Tasks
    _flows: dict[str, Flow] = field(default_factory=dict)
    _paces: WeakValueDictionary[str, Pace] = field(default_factory=WeakValueDictionary)

    def __len__(self) -> int:
        return len(self._flows)

    def open(self, command: Command, request: Request, node_id: str, reply: str = "") -> Flow:
        """A stream to a node begins, with a request, or as the answer to one that came with the reply subject."""
        node = self.registry.nodes.get(node_id)
        if command == "REQ":
            marks = node is not None and bool(node.client.get(FLOW_CONTROL))
        else:  # only Python nodes publish calls with a reply subject of their id
            marks = bool(reply and request.id) and reply.endswith(str(request.id))
        pace = self._paces.get(node_id)
        if pace is None:
            ver = request.ver if request.ver in PROTOCOLS else PROTOCOLS[0]
            pace = Pace(node_id, partial(self._ping, node_id, ver), partial(self.lose, node_id))
            self._paces[node_id] = pace
        key = f"{command}-{request.id}"
        flow = self._flows[key] = Flow(
            request.action,
            self.topics.to_node(command, node_id),
            key,
            pace,
            None if node is None else node.instance_id,
            asyncio.get_running_loop().time(),
            acknowledges=marks and self.wire is not None and self.wire.has_inbox,
        )
        return flow

    def close(self, flow: Flow) -> None:
        """A stream is over."""
        if self._flows.get(flow.key) is flow:
            del self._flows[flow.key]

    def marked(self, reply_id: str, answer: bytes) -> None:
        """An answer came to a chunk."""
        flow = self._flow(reply_id)
        if flow is not None:
            flow.mark_answered(answer)

    def reader_of(self, reply_id: str) -> str | None:
        """The node to which a chunk went; None when it was none, or of a stream that is over."""
        flow = self._flow(reply_id)
        return None if flow is None else flow.pace.node_id

    def pong(self, pong: Pong) -> bool:
        """A ping was answered. Whether it was one of these."""
        is_ours = isinstance(pong.id, str) and pong.id.startswith(PACE)
        if is_ours and (pace := self._paces.get(pong.sender)) is not None:
            pace.answered(pong.id)
        return is_ours

    def lose(self, node_id: str | None, error: Exception | None = None, until: float = math.inf) -> None:
        """The streams to a node (None: to all) that were opened until then may lack chunks."""
        for flow in list(self._flows.values()):
            reader = flow.pace.node_id
            if node_id in (None, reader) and flow.since <= until:
                flow.stop(Fate.LOST, error or RequestRejectedError({"action": flow.action, "nodeID": reader}))

    def gone(self, node_id: str | None, error: Exception | None = None, until: float = math.inf) -> None:
        """A node is gone, or another process has its id since then; with None, all are out of reach."""
        self.lose(node_id, error, until)
        for pace in list(self._paces.values()):
            if node_id in (None, pace.node_id):
                pace.forget()

    def denied(self, subject: str) -> None:
        """The NATS user of this node may not publish to a subject."""
        for pace in list(self._paces.values()):
            if self.topics.to_node("PING", pace.node_id) == subject:
                pace.stop_asking()
        for flow in list(self._flows.values()):
            if flow.subject == subject:
                flow.stop(Fate.STOPPED, publish_denied(subject))

    def waited_for(self, now: float) -> set[str]:
        """The nodes that writers wait for, or that may have lost a part of a stream."""
        late = {node_id for node_id, pace in self._paces.items() if pace.is_late(now)}
        return late.union(flow.pace.node_id for flow in self._flows.values() if flow.waiting)

    async def tick(self, now: float) -> None:
        """Ask nodes how far they have received. Call it several times a second, while there is a connection."""
        for pace in list(self._paces.values()):
            await pace.tick(now)

    def _flow(self, reply_id: str) -> Flow | None:
        return self._flows.get(reply_id.partition(":")[0])

    async def _ping(self, node_id: str, ver: Any, ping_id: str) -> None:
        ping = Ping(ver=ver, sender=self.node_id, time=0, id=ping_id)
        with suppress(MoleculerError):
            await self.publish(self.topics.to_node("PING", node_id), ping, None)
