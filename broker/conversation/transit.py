"""The conversation between nodes, without I/O: packets and the time go in, effects come out (moleculer protocol §2-§5).

It speaks both protocol versions at once, to each peer in the peer's own (§2.4).
"""

from collections.abc import Collection
from typing import Any, NamedTuple

from msgspec import UNSET, UnsetType

from broker.conversation.effects import (
    AnswerMark,
    Conflict,
    Effect,
    Log,
    PongArrived,
    Publish,
    Reject,
    RunAction,
    RunEvent,
    Settle,
)
from broker.conversation.liveness import PROBE
from broker.conversation.peer_exchange import PeerExchange
from broker.conversation.presence import Presence
from broker.conversation.presence_packets import Identity, PresencePackets
from broker.conversation.requests import PendingRequests, notices
from broker.defaults import (
    FORGET_OFFLINE_S,
    HEARTBEAT_TIMEOUT_S,
    REQUESTS_ASKED,
    REQUESTS_IN_WORK,
    REQUESTS_PENDING,
    STREAM_BUFFER_BYTES,
    STREAM_IDLE_TIMEOUT_S,
    STREAMS_BUFFER_BYTES,
    STREAMS_OPEN,
)
from broker.errors import (
    MoleculerError,
    ProtocolVersionMismatchError,
    QueueIsFullError,
    ServiceNotAvailableError,
    ServiceNotFoundError,
    error_to_wire,
)
from broker.protocol.codecs.json import Codec
from broker.protocol.encoding import short
from broker.protocol.packets import (
    NULL,
    PROTOCOLS,
    Address,
    Command,
    Disconnect,
    Discover,
    Event,
    Heartbeat,
    Info,
    Packet,
    Peers,
    Ping,
    Pong,
    Protocol,
    Request,
    Response,
)
from broker.protocol.topics import Topics, is_token
from broker.registry.endpoints import EventEndpoint
from broker.registry.registry import Registry
from broker.services.schema import ActionDefinition
from broker.streams.incoming import IncomingStreams, StreamBuffer
from broker.streams.packets import STOP, is_part_of_stream


class Limits(NamedTuple):
    """The bounds the transit keeps."""

    heartbeat_timeout_s: float = HEARTBEAT_TIMEOUT_S
    requests_in_work: int = REQUESTS_IN_WORK
    requests_pending: int = REQUESTS_PENDING
    streams_open: int = STREAMS_OPEN
    stream_buffer_bytes: int = STREAM_BUFFER_BYTES
    streams_buffer_bytes: int = STREAMS_BUFFER_BYTES
    stream_idle_s: float = STREAM_IDLE_TIMEOUT_S


class Transit:
    """One node's side of the conversation. Not thread-safe; never waits."""

    def __init__(
        self,
        identity: Identity,
        topics: Topics,
        registry: Registry,
        limits: Limits,
        codec: Codec,
        protocol: Protocol | None = None,
        *,
        visitor: bool = False,
    ) -> None:
        self.identity = identity
        self.topics = topics
        self.registry = registry
        self.limits = limits
        self.in_work: set[RunAction] = set()
        """Requests of other nodes. Added here when they are accepted; their answer takes them out."""
        self.ready = False
        self.stopping = False
        self.streams = IncomingStreams(
            identity.node_id,
            limits.streams_open,
            limits.stream_buffer_bytes,
            limits.streams_buffer_bytes,
            limits.stream_idle_s,
            codec.decode_chunk,
        )
        self.packets = PresencePackets(identity, topics)
        self.peers = PeerExchange(self.packets, registry, protocol)
        self.presence = Presence(self.packets, registry, self.peers, protocol, visitor=visitor)
        version_for, pending = self.presence.version_for, limits.requests_pending
        self.requests = PendingRequests(self.packets, registry, self.streams, version_for, protocol, pending)
        """What this node has asked."""
        self._spoken: tuple[Protocol, ...] = (protocol,) if protocol else PROTOCOLS

    # What the node asks for

    def response(
        self, request: Request | Address, meta: dict[str, Any] | None, headers: dict[str, Any] | None
    ) -> Response:
        """The answer to a call, in the version of the call (§2.4); the result is put into it later."""
        ver = request.ver if request.ver in PROTOCOLS else PROTOCOLS[0]
        return Response(
            ver=ver,
            sender=self.identity.node_id,
            id=request.id,
            success=True,
            data=NULL,
            meta=meta or {},
            headers=UNSET if ver == "4" else headers,
        )

    def respond_error(
        self,
        request: Request | Address,
        meta: dict[str, Any] | None,
        error: BaseException,
        headers: dict[str, Any] | None = None,
    ) -> Publish:
        """Answer a call with an error (§6.1). `headers` None: the call was refused before a context existed (§5.3)."""
        response = self.response(request, meta, headers)
        response.success, response.error = False, error_to_wire(error, self.identity.node_id)
        return Publish(self.topics.to_node("RES", request.sender), response)

    def refuse_answer(self, address: Address, error: MoleculerError) -> list[Effect]:
        """An answer that cannot be read: its call is rejected at once, or its stream ended."""
        if not self.requests.is_asked(address.id, address.sender):
            return []
        pending = self.requests.take(address.id)
        if pending is not None:
            return [Reject(pending, error)]
        self.streams.refuse("RES", address, error)
        return []

    def refuse_request(self, address: Address, error: MoleculerError) -> list[Effect]:
        """A request that cannot be read, or a chunk of its stream: caller and reader get the error."""
        if not is_token(address.sender):  # no subject could reach it
            return []
        self.streams.refuse("REQ", address, error)
        return [self.respond_error(address, None, error)]

    def tick(self, now: float, readers: Collection[str] = ()) -> list[Effect]:
        """Lose nodes whose last heartbeat is older than the timeout, forget those silent for 10 minutes (§4.4), and
        probe those that are waited for: `readers` are the nodes that writers of streams wait for. Call it several times
        a second."""
        effects: list[Effect] = []
        for node in list(self.registry.nodes.values()):
            if node.local:
                continue
            if self.requests.may_answer(node) and now - node.last_heartbeat > self.limits.heartbeat_timeout_s:
                effects += self.requests.lose(node.id, now, unexpected=True)
            elif node.offline_since is not None and now - node.last_heartbeat > FORGET_OFFLINE_S:
                self.registry.forget(node.id)
        self.registry.forget_vacant(now - FORGET_OFFLINE_S)
        self.streams.expire(now)
        if self.registry.full:
            effects.append(Log(self.registry.full))
            self.registry.full = None
        if self.peers.searching:
            effects += [*self.peers.look_around(now), *self.presence.discover_others()]
        return effects + self.requests.look_after(now, readers)

    def resume(self, now: float) -> None:
        """No heartbeat could arrive until now, as the connection was lost or the event loop blocked."""
        for node in self.registry.nodes.values():
            node.last_heartbeat = max(node.last_heartbeat, now)
        self.requests.liveness.resume(now)

    # What peers send

    def accepted(self, request: Request, now: float, reply: str) -> RunAction | None:
        """The run of an action that a request asks for, as nearly every request does. None when it must be refused, or
        something about it is unusual: such a packet is for `receive`."""
        sender, registry = request.sender, self.registry
        endpoint = registry.own.get(request.action)
        if (
            (endpoint is None or endpoint.action is None or not endpoint.available)
            or (request.stream or request.sequence or self.streams.open)
            or (request.ver not in self._spoken or sender not in registry.nodes or sender in registry.unresponsive)
            or (self.stopping or len(self.in_work) >= self.limits.requests_in_work)
        ):
            return None
        job = RunAction(request, endpoint.action, now, None, reply)
        self.in_work.add(job)
        return job

    def receive(self, command: Command, packet: Packet, now: float, reply: str = "") -> list[Effect]:
        """A packet arrived (§2.2). `now` is a monotonic time in seconds; `reply` is where its sender wants to know how
        far its stream is read."""
        sender = packet.sender
        if sender == self.identity.node_id:  # before any version logic (§2.4)
            if isinstance(packet, Info) and packet.instance_id != self.identity.instance_id:
                return [Conflict()]
            if not isinstance(packet, Event | Request | Response):
                return []
        elif packet.ver not in self._spoken:
            return [self._wrong_version(command, packet)]
        elif sender not in self.registry.nodes and not is_token(sender):  # no subject could reach it
            return [Log(f"{command} from {short(sender)!r}, which cannot be the id of a node; dropped")]
        if sender in self.registry.unresponsive:
            return [*self.requests.responds(sender), *self.receive(command, packet, now, reply)]
        if isinstance(packet, Event):
            return self._on_event(packet)
        if not isinstance(packet, Request | Response):
            return self._on_presence(packet, now)
        if isinstance(packet, Response) and not self.requests.is_asked(packet.id, sender):
            return [Log(f"RES from '{sender}' answers a request to another node; dropped")]
        if (packet.stream or packet.sequence or self.streams.open) and (
            is_part_of_stream(packet) or self.streams.has(packet)
        ):
            return self._on_stream(packet, now, reply)
        if isinstance(packet, Request):
            return self._begin(packet, now, None, reply)
        pending = self.requests.take(packet.id)
        return [Settle(pending, packet)] if pending else []

    def _wrong_version(self, command: Command, packet: Packet) -> Log:
        sender, spoken = short(packet.sender), " and ".join(sorted(self._spoken))
        try:
            received = short(repr(packet.ver))
        except ValueError:  # an integer with more digits than Python prints
            received = f"a large {type(packet.ver).__name__}"
        error = ProtocolVersionMismatchError({"nodeID": sender, "actual": spoken, "received": packet.ver})
        return Log(f"{command} from '{sender}' has protocol version {received}, not {spoken}; dropped", error=error)

    # Requests, answers and events

    def _begin(self, request: Request, now: float, stream: StreamBuffer | None, reply: str) -> list[Effect]:
        """Run a request, or answer why not (§5.3)."""
        admitted = self._admit(request)
        if isinstance(admitted, MoleculerError):
            if stream is not None:
                stream.drop()
            return [self.respond_error(request, request.meta, admitted)]
        job = RunAction(request, admitted, now, stream, reply)
        self.in_work.add(job)
        return [job]

    def _admit(self, request: Request) -> ActionDefinition | MoleculerError:
        data = {"action": request.action, "nodeID": self.identity.node_id}
        if self.stopping:
            return ServiceNotAvailableError(data)
        endpoint = self.registry.own.get(request.action)
        if endpoint is None or endpoint.action is None:
            return ServiceNotFoundError(data)
        if not endpoint.available:
            return ServiceNotAvailableError(data)
        if len(self.in_work) >= self.limits.requests_in_work:
            return QueueIsFullError(data | {"size": len(self.in_work), "limit": self.limits.requests_in_work})
        return endpoint.action

    def _on_stream(self, packet: Request | Response, now: float, reply: str) -> list[Effect]:
        refusal: list[Effect] = [AnswerMark(reply, STOP)] if reply else []
        if isinstance(packet, Response) and packet.id not in self.requests.pending and not self.streams.has(packet):
            return refusal  # its call has ended
        opening, stream, unread = self.streams.take(packet, reply, now)
        if opening is None:
            return refusal if unread else []
        if isinstance(opening, Response):
            return self._settle(opening, stream)
        if stream is None:
            return [self.respond_error(opening, opening.meta, self.streams.overfull(opening.action))]
        stream.action = opening.action
        return self._begin(opening, now, stream, reply)

    def _settle(self, opening: Response, stream: StreamBuffer | None) -> list[Effect]:
        """A call is answered with a stream."""
        pending = self.requests.take(opening.id)
        if pending is None:
            if stream is not None:
                stream.drop()
            return []
        if stream is None:
            return [Reject(pending, self.streams.overfull(pending.action))]
        stream.action = pending.action
        return [Settle(pending, opening, stream)]

    def _on_event(self, event: Event) -> list[Effect]:
        if self.stopping:
            return [Log(f"event '{short(event.event)}' from '{event.sender}' came while stopping; dropped")]
        groups = event.groups if isinstance(event.groups, list) else None
        listeners: list[EventEndpoint] = []
        for choices, members in self.registry.find_listeners_here(event.event):
            if groups and choices.group not in groups:
                continue
            if event.broadcast or len(members) == 1:
                listeners += members
            elif (listener := choices.choose_on(self.identity.node_id)) is not None:
                listeners.append(listener)
        return [RunEvent(event, listeners)] if listeners else []

    # Presence

    def _on_presence(self, packet: Packet, now: float) -> list[Effect]:
        match packet:
            case Heartbeat():
                return self._on_heartbeat(packet, now)
            case Info():
                return self._on_info(packet, now)
            case Ping():
                return [self._pong(packet)]
            case Pong(id=str(ping_id)) if ping_id.startswith(PROBE):
                requests, sender = self.requests, packet.sender
                return [*requests.responds(sender), *requests.still_in_work(sender, packet.requests)]
            case Pong():
                return [PongArrived(packet)]
            case Discover():
                return self._on_discover(packet, now)
            case Disconnect():
                return self.requests.lose(packet.sender, now, unexpected=False)
            case Peers():
                return self.peers.on_peers(packet)
        return []

    def _on_discover(self, packet: Discover, now: float) -> list[Effect]:
        self.requests.began(packet.sender, now)
        self.peers.starts(packet.sender, packet.ver, now)
        self.presence.asked_in(packet.ver, packet.sender)
        if not self.ready or self.presence.hidden:  # §4.1: not answered while starting
            return []
        return [self.presence.info(packet.ver, packet.sender)]

    def _on_info(self, info: Info, now: float) -> list[Effect]:
        if not self.registry.has_room_for(info.sender):
            return []
        known = self.registry.nodes.get(info.sender)
        replaced = known is not None and known.instance_id != info.instance_id
        new = known is None or not known.available
        changes = self.registry.apply_info(info, now)
        lost = self.requests.introduced(info.sender, replaced=replaced)
        greetings = self.presence.met(info.sender, new=new, ready=self.ready)
        return [*notices(changes), *greetings, *lost]

    def _on_heartbeat(self, beat: Heartbeat, now: float) -> list[Effect]:
        node = self.registry.nodes.get(beat.sender)
        if node is None or not node.available:
            if self.peers.only not in (None, beat.sender):
                return []
            return [self.packets.discover(beat.ver, beat.sender)]
        self.registry.speaks(node, beat.ver)
        node.last_heartbeat = now
        node.note_cpu(beat.cpu)
        return []

    def _pong(self, ping: Ping) -> Publish:
        """The answer to a ping, with the requests in work that it asks for. The node fills in the wall clock's time."""
        in_work: dict[str, bool] | UnsetType = UNSET
        if isinstance(ping.requests, list):
            jobs = (job.request for job in self.in_work if not job.answering)
            known = {request.id for request in jobs if request.sender == ping.sender}
            in_work = {one: one in known for one in ping.requests[:REQUESTS_ASKED] if isinstance(one, str)}
        pong = Pong(ver=ping.ver, sender=self.identity.node_id, time=ping.time, id=ping.id, requests=in_work)
        return Publish(self.topics.to_node("PONG", ping.sender), pong)
