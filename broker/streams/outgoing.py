"""The streams that this node sends: their packets, what others say of them, and what their readers must still learn
(protocol §8.1, §8.2)."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import cache, partial
from typing import Any, Protocol
from weakref import WeakValueDictionary

import msgspec
from msgspec import UNSET, Raw

from broker.context import Context
from broker.defaults import FORGET_OFFLINE_S, STREAM_PING_AGAIN_S, STREAM_TIMEOUT_MARGIN_S
from broker.errors import (
    MoleculerClientError,
    MoleculerError,
    PayloadTooLargeError,
    RequestRejectedError,
    RequestTimeoutError,
    error_to_wire,
    publish_denied,
)
from broker.ids import new_id
from broker.protocol.codecs.json import Codec
from broker.protocol.packets import NULL, PROTOCOLS, Command, Packet, Ping, Pong, Request, Response
from broker.protocol.topics import Topics
from broker.registry.registry import Registry
from broker.streams.flow import FLOW_CONTROL, Flow, Pace, Route
from broker.streams.packets import OBJECT_MODE, STREAM_ERROR, has_inbox
from broker.streams.source import Source
from broker.streams.writer import MakePacket, StreamWriter, Tasks

logger = logging.getLogger("broker")

PACE = "pace:"
"""Begins the ids of the pings behind chunks."""


class Wire(Protocol):
    """What is needed of the transport."""

    @property
    def max_payload(self) -> int | None: ...

    @property
    def has_inbox(self) -> bool: ...


class _Owed:
    """Ends of streams whose readers may lack chunks. Sent again and again, until the node answers the ping behind them.
    Another instance of it has no such readers."""

    def __init__(self, instance_id: str | None) -> None:
        self.instance_id = instance_id
        self.ends: list[tuple[str, Packet]] = []
        self.ping_id = ""
        self.since = self.due = 0.0
        self.wait_s = STREAM_PING_AGAIN_S


class OutgoingStreams:
    """`publish` sends a packet to a subject, perhaps with a reply id, and raises MoleculerError when it cannot."""

    def __init__(
        self,
        node_id: str,
        topics: Topics,
        registry: Registry,
        codec: Codec,
        wire: Wire | None,
        publish: Callable[[str, Packet, str | None], Awaitable[None]],
        tasks: Tasks,
    ) -> None:
        self.node_id = node_id
        self.codec = codec
        self.publish = publish
        self.tasks = tasks
        self._topics = topics
        self._registry = registry
        self._wire = wire
        self._flows: dict[str, Flow] = {}
        """By the prefix of their marks."""
        self._paces: WeakValueDictionary[str, Pace] = WeakValueDictionary()
        self._owed: dict[str, _Owed] = {}

    def __len__(self) -> int:
        return len(self._flows)

    @property
    def max_payload(self) -> int | None:
        """The most bytes of a message."""
        return None if self._wire is None else self._wire.max_payload

    # Streams begin and end

    def along_with(self, request: Request, node_id: str, source: Source, *, has_params: bool) -> StreamWriter:
        """Make `request` the opening packet of a stream from `source`.

        Raises MoleculerClientError when params cannot travel too: towards a node of protocol 4 the stream takes their
        place (§8.1).
        """
        in_meta = request.ver == "4"
        if in_meta and has_params:
            raise MoleculerClientError(
                f"'{node_id}' speaks protocol 4 (Moleculer 0.14), in which a stream replaces the params. Send them in "
                "meta instead.",
                400,
                "STREAM_REPLACES_PARAMS",
            )
        flags = {OBJECT_MODE: True} if source.objects else {}
        node = self._registry.nodes.get(node_id)
        marks = node is not None and bool(node.client.get(FLOW_CONTROL))
        request.stream, request.sequence = True, 0
        if request.timeout and not marks:
            request.timeout += STREAM_TIMEOUT_MARGIN_S * 1000
        if in_meta:
            request.params, request.meta = NULL, {**(request.meta or {}), **flags}
        headers = flags if in_meta else {**(request.headers or {}), **flags}
        if not in_meta:
            request.headers = headers

        def packet(sequence: int, more: bool, chunk: Raw, error: BaseException | None) -> Request:
            broken = {} if error is None else {STREAM_ERROR: error_to_wire(error, self.node_id)}
            return msgspec.structs.replace(
                request,
                params=chunk,
                meta={**flags, **broken} if in_meta else {},
                headers=UNSET if in_meta else {**(flags if _is_too_much(error) else headers), **broken},
                stream=more,
                sequence=sequence,
            )

        return self._open("REQ", request, node_id, source, packet, marks=marks)

    async def answer(
        self, request: Request, reply: str, ctx: Context, items: Any, deadline: float | None
    ) -> StreamWriter:
        """Open the stream that answers a request. Raises what its source raises before, RequestTimeoutError when the
        deadline passes, and errors of the transport."""
        source = Source(items)
        try:
            async with asyncio.timeout_at(deadline) as in_time:
                await source.begin(self.tasks.start_handler)
            writer = self._answer(request, reply, ctx, source)
            await writer.open()
        except BaseException as error:
            source.drop()
            if isinstance(error, TimeoutError) and in_time.expired():
                raise RequestTimeoutError({"action": request.action, "nodeID": request.sender}) from None
            raise
        writer.go_on()
        return writer

    def _answer(self, request: Request, reply: str, ctx: Context, source: Source) -> StreamWriter:

        @cache  # meta and headers are those of the moment in which the stream opens
        def places() -> tuple[dict[str, Any], Any]:
            flags = {OBJECT_MODE: True} if source.objects else {}
            if request.ver == "4":
                return {**ctx.meta, **flags}, UNSET
            return ctx.meta, {**ctx.response_headers, **flags}

        def packet(sequence: int, more: bool, chunk: Raw, error: BaseException | None) -> Response:
            meta, headers = ({}, UNSET) if _is_too_much(error) else places()
            return Response(
                ver=request.ver,
                sender=self.node_id,
                id=request.id,
                meta=meta,
                headers=headers,
                success=error is None,
                data=chunk,
                error=UNSET if error is None else error_to_wire(error, self.node_id),
                stream=more,
                sequence=sequence,
            )

        return self._open("RES", request, request.sender, source, packet, marks=has_inbox(request, reply))

    def _open(
        self, command: Command, request: Request, node_id: str, source: Source, packet: MakePacket, *, marks: bool
    ) -> StreamWriter:
        pace = self._paces.get(node_id)
        if pace is None:
            ver = request.ver if request.ver in PROTOCOLS else PROTOCOLS[0]
            pace = Pace(node_id, partial(self._ping, node_id, ver), partial(self.lose, node_id))
            self._paces[node_id] = pace
        node = self._registry.nodes.get(node_id)
        route = Route(
            request.action,
            self._topics.to_node(command, node_id),
            f"{command}-{request.id}",
            pace,
            None if node is None else node.instance_id,
            asyncio.get_running_loop().time(),
            acknowledges=marks and self._wire is not None and self._wire.has_inbox,
        )
        writer = self._flows[route.mark] = StreamWriter(self, source, route, packet)
        return writer

    def close(self, flow: Flow) -> None:
        """A stream is over."""
        if self._flows.get(flow.route.mark) is flow:
            del self._flows[flow.route.mark]

    def owe(self, flow: Flow, ends: list[Packet]) -> None:
        """A stream broke off, and its reader may lack chunks, or cannot be told now."""
        node_id, instance_id = flow.route.node_id, flow.route.instance_id
        owed = self._owed.get(node_id)
        if owed is None or owed.instance_id != instance_id:
            owed = self._owed[node_id] = _Owed(instance_id)
        owed.ends += [(flow.route.subject, end) for end in ends]
        owed.ping_id, owed.due = new_id(), 0.0

    # What comes from outside

    def marked(self, reply_id: str, answer: bytes) -> None:
        """An answer came to a chunk."""
        flow = self._flow(reply_id)
        if flow is not None:
            flow.mark_answered(answer)

    def reader_of(self, reply_id: str) -> str | None:
        """The node to which a chunk went; None when it was none, or of a stream that is over."""
        flow = self._flow(reply_id)
        return None if flow is None else flow.route.node_id

    def pong(self, pong: Pong) -> bool:
        """A ping was answered. Whether it was one of these."""
        if not isinstance(pong.id, str) or not pong.id.startswith(PACE):
            return False
        ping_id = pong.id.removeprefix(PACE)
        owed, pace = self._owed.get(pong.sender), self._paces.get(pong.sender)
        if owed is not None and owed.ping_id == ping_id:
            del self._owed[pong.sender]
        elif pace is not None:
            pace.answered(ping_id)
        return True

    def lose(self, node_id: str, error: Exception, until: float) -> None:
        """The streams to a node that were opened until then may lack chunks."""
        for flow in self._until(node_id, until):
            flow.lose(error)

    def gone(self, node_id: str, until: float) -> None:
        """A node is gone, or another process has its id since then."""
        for flow in self._until(node_id, until):
            flow.lose(RequestRejectedError({"action": flow.route.action, "nodeID": node_id}))

    def lose_all(self, error: Exception) -> None:
        """The connection is gone."""
        for flow in list(self._flows.values()):
            flow.lose(error)

    def denied(self, subject: str) -> None:
        """The NATS user of this node may not publish to a subject."""
        for pace in list(self._paces.values()):
            if self._topics.to_node("PING", pace.node_id) == subject:
                pace.stop_asking()
        for flow in list(self._flows.values()):
            if flow.route.subject == subject:
                flow.stop(publish_denied(subject))

    def waited_for(self, now: float) -> set[str]:
        """The nodes that writers wait for, or that may have lost a part of a stream."""
        late = {node_id for node_id, pace in self._paces.items() if pace.is_late(now)}
        return late.union(flow.route.node_id for flow in self._flows.values() if flow.waiting)

    async def tick(self, now: float) -> None:
        """Ask nodes how far they have received, and tell readers whose nodes are there that their streams have broken
        off. Call it about once a second, while there is a connection."""
        for pace in list(self._paces.values()):
            await pace.tick(now)
        for node_id, owed in list(self._owed.items()):
            await self._pay(node_id, owed, now)

    # Inside

    def _until(self, node_id: str, until: float) -> list[Flow]:
        return [one for one in self._flows.values() if one.route.node_id == node_id and one.route.since <= until]

    def _flow(self, reply_id: str) -> Flow | None:
        return self._flows.get(reply_id.partition(":")[0])

    async def _pay(self, node_id: str, owed: _Owed, now: float) -> None:
        node = self._registry.nodes.get(node_id)
        owed.since = owed.since or now
        replaced = node is not None and owed.instance_id not in (None, node.instance_id)
        if replaced or now - owed.since > FORGET_OFFLINE_S:
            del self._owed[node_id]
        elif now >= owed.due and (node is None or node.available):
            owed.due, owed.wait_s = now + owed.wait_s, owed.wait_s * 2
            for subject, end in owed.ends:
                await self._try(subject, end)
            await self._ping(node_id, owed.ends[0][1].ver, owed.ping_id)

    async def _ping(self, node_id: str, ver: Any, ping_id: str) -> None:
        ping = Ping(ver=ver, sender=self.node_id, time=0, id=f"{PACE}{ping_id}")
        await self._try(self._topics.to_node("PING", node_id), ping)

    async def _try(self, subject: str, packet: Packet) -> None:
        try:
            await self.publish(subject, packet, None)
        except MoleculerError as error:
            logger.debug("Could not send %s: %s", subject, error)


def _is_too_much(error: BaseException | None) -> bool:
    """Whether the end of a stream must do without what a user put into its envelope, or it could not be sent."""
    return isinstance(error, PayloadTooLargeError)
