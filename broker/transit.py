"""The conversation between nodes, without I/O: packets and the time go in, effects come out (moleculer protocol §2-§5).

It speaks both protocol versions at once, to each peer in the peer's own (§2.4). Broadcasts go out in a version only
while a live peer speaks it, since a JS node logs an error for every broadcast in the other version.
"""

import math
from collections.abc import Callable, Iterable
from itertools import takewhile
from typing import Any, NamedTuple

from msgspec import UNSET, Raw

from broker.defaults import NODE_PROBE_AFTER_S, STREAM_BUFFER_BYTES, STREAM_IDLE_TIMEOUT_S, STREAMS_OPEN
from broker.effects import (
    AnswerPing,
    Conflict,
    Dropped,
    Effect,
    NobodyReads,
    Notify,
    Pending,
    PongArrived,
    Publish,
    Reject,
    RunAction,
    RunEvent,
    Settle,
)
from broker.encoding import short
from broker.errors import (
    MoleculerError,
    ProtocolVersionMismatchError,
    QueueIsFullError,
    RequestRejectedError,
    ServiceNotAvailableError,
    ServiceNotFoundError,
    error_to_wire,
)
from broker.packets import (
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
    Ping,
    Pong,
    Protocol,
    Request,
    Response,
)
from broker.reader import StreamReader
from broker.receiving import Receiving
from broker.registry import Change, KnownNode, Registry
from broker.schema import ActionDefinition
from broker.streams import is_part_of_stream
from broker.topics import Topics, is_token
from broker.watch import Watch

PROBE = "probe:"
"""Begins the reply ids of the pings by which it is seen whether a node is still there."""


class Identity(NamedTuple):
    """What a node says of itself in INFO (§3.1)."""

    node_id: str
    instance_id: str
    hostname: str
    ip_list: list[str]
    client: dict[str, Any]
    metadata: dict[str, Any]


class Limits(NamedTuple):
    """The bounds the transit keeps."""

    heartbeat_timeout_s: float
    forget_offline_s: float
    requests_in_work: int
    requests_pending: int
    streams_open: int = STREAMS_OPEN
    stream_buffer_bytes: int = STREAM_BUFFER_BYTES
    stream_idle_s: float = STREAM_IDLE_TIMEOUT_S


class Transit:
    """One node's side of the conversation. Not thread-safe; never waits."""

    def __init__(
        self,
        identity: Identity,
        topics: Topics,
        registry: Registry,
        limits: Limits,
        protocol: Protocol | None = None,
    ) -> None:
        self.identity = identity
        self.topics = topics
        self.registry = registry
        registry.local.introduce(identity.instance_id, identity.hostname, identity.ip_list, identity.client)
        registry.local.metadata, registry.local.sequence = identity.metadata, 1
        self.limits = limits
        self.pending: dict[str, Pending] = {}
        self._watch = Watch()
        self.in_work = 0
        self.ready = False
        self.stopping = False
        self.streams = Receiving(
            identity.node_id, limits.streams_open, limits.stream_buffer_bytes, limits.stream_idle_s
        )
        self._pinned = protocol
        self._active: set[Protocol] = {protocol or PROTOCOLS[0]}
        self._sequence = 1
        self._services_changed = False
        self._handlers: dict[Command, Callable[[Any, float], list[Effect]]] = {
            "REQ": self._on_request,
            "RES": self._on_response,
            "EVENT": self._on_event,
            "DISCOVER": self._on_discover,
            "INFO": self._on_info,
            "DISCONNECT": self._on_disconnect,
            "HEARTBEAT": self._on_heartbeat,
            "PING": self._on_ping,
            "PONG": self._on_pong,
        }

    # What the node asks for

    def discover(self) -> list[Effect]:
        """Ask everybody who they are (§4.1)."""
        return self._broadcast("DISCOVER", lambda ver: Discover(ver=ver, sender=self.identity.node_id))

    def discover_others(self) -> list[Effect]:
        """Nobody answered: ask in the other version too. Not asked at once, as it leaves a line in JS logs (§2.4)."""
        if self._pinned or self.registry.versions():
            return []
        unheard = [ver for ver in PROTOCOLS if ver not in self._active]
        return [self._discover_in(ver) for ver in unheard]

    def service_changed(self) -> None:
        """Note that the next INFO is a new one (§3.4)."""
        self._services_changed = True

    def announce(self) -> list[Effect]:
        """Tell everybody what this node offers."""
        return self._broadcast("INFO", self._info)

    def heartbeat(self, cpu: float | None) -> list[Effect]:
        """Tell everybody that this node lives."""
        self.registry.local.heard_cpu(cpu)
        return self._broadcast("HEARTBEAT", lambda ver: Heartbeat(ver=ver, sender=self.identity.node_id, cpu=cpu))

    def leave(self) -> list[Effect]:
        """Announce that nothing is offered any more; requests that arrive now are still served (§4.2)."""
        self.registry.local.services = []
        self._services_changed = True
        return self.announce()

    def disconnect(self) -> list[Effect]:
        """Say good-bye."""
        return self._broadcast("DISCONNECT", lambda ver: Disconnect(ver=ver, sender=self.identity.node_id))

    def ping(self, node_id: str, ping_id: str, epoch_ms: int) -> list[Effect]:
        """Ask one node for a sign of life."""
        packet = Ping(ver=self.version_of(node_id), sender=self.identity.node_id, time=epoch_ms, id=ping_id)
        return [Publish(self.topics.to_node("PING", node_id), packet)]

    def ping_all(self, ping_id: str, epoch_ms: int) -> list[Effect]:
        """Ask every node for a sign of life."""
        return self._broadcast(
            "PING", lambda ver: Ping(ver=ver, sender=self.identity.node_id, time=epoch_ms, id=ping_id)
        )

    def version_of(self, node_id: str) -> Protocol:
        """The protocol version to use towards a node."""
        node = self.registry.nodes.get(node_id)
        return node.ver if node and not node.local else self._pinned or PROTOCOLS[0]

    def request(self, packet: Request, node_id: str | None, waiter: Any, now: float) -> list[Effect]:
        """Send a call to a node, or with None to whichever NATS chooses (§5.7).

        Raises QueueIsFullError when too many wait for answers already (§5.2).
        """
        size, limit = len(self.pending), self.limits.requests_pending
        if size >= limit:
            raise QueueIsFullError(
                {"action": packet.action, "nodeID": self.identity.node_id, "size": size, "limit": limit}
            )
        self.pending[packet.id] = Pending(packet.id, node_id, packet.action, waiter, now)
        balanced = node_id is None
        subject = self.topics.balanced_request(packet.action) if balanced else self.topics.to_node("REQ", node_id or "")
        return [Publish(subject, packet, reply_id=packet.id)]

    def forget_request(self, request_id: str) -> None:
        """The caller does not wait any more; an answer that comes later is ignored."""
        self.pending.pop(request_id, None)

    def nobody_listens(self, request_id: str, now: float) -> list[Effect]:
        """The NATS server says that no connection listens for this request: its node is gone (§4.3)."""
        if request_id.startswith(PROBE):
            return self._unheard(request_id.removeprefix(PROBE), now)
        pending = self.pending.get(request_id)
        if pending is None:
            return []
        node = self.registry.nodes.get(pending.node_id) if pending.node_id else None
        lost: list[Effect] = []
        if node is not None and node.available:
            # What was sent before was heard, and will not be answered. What was sent after was not heard either: the
            # server says so of each, and then it can go elsewhere.
            earlier = takewhile(lambda other: other is not pending, list(self.pending.values()))
            lost = self._lose(node.id, now, earlier, unexpected=True)
        del self.pending[request_id]
        error = RequestRejectedError({"action": pending.action, "nodeID": pending.node_id})
        return [*lost, Reject(pending, error, undelivered=True)]

    def reader_gone(self, node_id: str, now: float) -> list[Effect]:
        """The NATS server says that no connection listens for a stream to this node."""
        return self._lose(node_id, now, self.pending.values(), unexpected=True)

    def event(self, node_id: str, packet: Event) -> list[Effect]:
        """Send an event to a node."""
        return [Publish(self.topics.to_node("EVENT", node_id), packet)]

    def balanced_event(self, group: str, packet: Event) -> list[Effect]:
        """Send an event to whichever node of a group NATS chooses (§7.1)."""
        return [Publish(self.topics.balanced_event(group, packet.event), packet)]

    def respond(
        self,
        request: Request | Address,
        meta: dict[str, Any] | None,
        data: Raw,
        headers: dict[str, Any] | None = None,
    ) -> list[Effect]:
        """Answer a call with a result, in the version of the call (§2.4)."""
        response = self._response(request, meta, headers or {})
        response.success, response.data = True, data
        return [Publish(self.topics.to_node("RES", request.sender), response)]

    def respond_error(
        self,
        request: Request | Address,
        meta: dict[str, Any] | None,
        error: BaseException,
        headers: dict[str, Any] | None = None,
    ) -> list[Effect]:
        """Answer a call with an error (§6.1). `headers` None: the call was refused before a context existed (§5.3)."""
        response = self._response(request, meta, headers)
        response.success, response.data = False, NULL
        response.error = error_to_wire(error, self.identity.node_id)
        return [Publish(self.topics.to_node("RES", request.sender), response)]

    def refuse_answer(self, address: Address, error: MoleculerError) -> list[Effect]:
        """An answer that cannot be read: who waits for it is told so, and not left to a timeout."""
        pending = self.pending.pop(address.id, None)
        return [Reject(pending, error)] if pending else self.streams.refuse("RES", address, error)

    def refuse_request(self, address: Address, error: MoleculerError) -> list[Effect]:
        """A request that cannot be read, or a chunk of its stream: its caller is told so, and who reads the stream."""
        if not is_token(address.sender):  # no subject could reach it
            return []
        return self.respond_error(address, None, error) + self.streams.refuse("REQ", address, error)

    def tick(self, now: float) -> list[Effect]:
        """Notice nodes that fell silent, forget those long gone (§4.4). Call it about once a second."""
        effects: list[Effect] = []
        for node in list(self.registry.nodes.values()):
            if node.local:
                continue
            if node.available and now - node.last_heartbeat > self.limits.heartbeat_timeout_s:
                effects += self._lose(node.id, now, self.pending.values(), unexpected=True)
            elif node.offline_since is not None and now - node.last_heartbeat > self.limits.forget_offline_s:
                self.registry.forget(node.id)
        self.streams.expire(now)
        return effects + self._look_after(now)

    def resume(self, now: float) -> None:
        """The connection was away, and no heartbeat could arrive: nobody is to blame for that silence."""
        for node in self.registry.nodes.values():
            node.last_heartbeat = max(node.last_heartbeat, now)

    # What peers send

    def receive(self, command: Command, packet: Packet, now: float, reply: str = "") -> list[Effect]:
        """A packet arrived (§2.2). `now` is a monotonic time in seconds; `reply` is where its sender wants to hear how
        far its stream is read."""
        if packet.sender == self.identity.node_id:  # before any version logic (§2.4)
            if command == "INFO" and isinstance(packet, Info) and packet.instance_id != self.identity.instance_id:
                return [Conflict(packet.instance_id)]
            if command not in ("EVENT", "REQ", "RES"):
                return []
        elif packet.ver not in PROTOCOLS or (self._pinned and packet.ver != self._pinned):
            spoken = self._pinned or " and ".join(sorted(PROTOCOLS))
            ver = _described(packet.ver)
            sender = short(packet.sender)
            error = ProtocolVersionMismatchError({"nodeID": sender, "actual": spoken, "received": packet.ver})
            return [Dropped(f"{command} from '{sender}' has protocol version {ver}, not {spoken}; dropped", error)]
        elif packet.sender not in self.registry.nodes and not is_token(packet.sender):  # no subject could reach it
            return [Dropped(f"{command} from {short(packet.sender)!r}, which cannot be the id of a node; dropped")]
        if command in ("REQ", "RES") and isinstance(packet, Request | Response) and self._is_streamed(packet):
            return self._on_stream(packet, now, reply)
        return self._handlers[command](packet, now)

    def _on_request(self, request: Request, now: float) -> list[Effect]:
        return self._begin(request, now, None)[1]

    def _begin(self, request: Request, now: float, stream: StreamReader | None) -> tuple[bool, list[Effect]]:
        """Whether the request is accepted, and what to do: run it, or tell why not (§5.3)."""
        admitted = self._admit(request)
        if isinstance(admitted, MoleculerError):
            return False, self.respond_error(request, request.meta, admitted)
        return True, [RunAction(request, admitted, now, stream)]

    def _admit(self, request: Request) -> ActionDefinition | MoleculerError:
        data = {"action": request.action, "nodeID": self.identity.node_id}
        if self.stopping:
            return ServiceNotAvailableError(data)
        choices = self.registry.actions.get(request.action)
        endpoint = next((member for member in choices.members if member.local), None) if choices else None
        if endpoint is None or endpoint.action is None:
            return ServiceNotFoundError(data)
        if not endpoint.available:
            return ServiceNotAvailableError(data)
        if self.in_work >= self.limits.requests_in_work:
            return QueueIsFullError(data | {"size": self.in_work, "limit": self.limits.requests_in_work})
        return endpoint.action

    def _is_streamed(self, packet: Request | Response) -> bool:
        if is_part_of_stream(packet):
            return True
        if isinstance(packet, Request):
            return self.streams.has_request(packet)
        return self.streams.has_response(packet)

    def _on_stream(self, packet: Request | Response, now: float, reply: str) -> list[Effect]:
        if isinstance(packet, Request):
            return self.streams.request(
                packet,
                reply,
                now,
                begin=lambda opening, reader: self._begin(opening, now, reader),
                refuse=lambda: self.respond_error(packet, packet.meta, self.streams.overfull(packet.action)),
            )
        if packet.id not in self.pending and not self.streams.has_response(packet):
            return []  # nobody waits for it any more
        return self.streams.response(packet, reply, now, lambda request_id: self.pending.pop(request_id, None))

    def _on_response(self, response: Response, now: float) -> list[Effect]:
        pending = self.pending.pop(response.id, None)
        return [Settle(pending, response)] if pending else []

    def _on_event(self, event: Event, now: float) -> list[Effect]:
        if self.stopping:
            return [Dropped(f"event '{short(event.event)}' from '{event.sender}' came while stopping; dropped")]
        groups = event.groups or ()
        listeners = []
        for choices in self.registry.find_listeners(event.event, groups if isinstance(groups, list) else ()):
            if event.broadcast:
                listeners += [member for member in choices.members if member.local]
            elif (listener := choices.choose_on(self.identity.node_id)) is not None:
                listeners.append(listener)
        return [RunEvent(event, listeners)] if listeners else []

    def _on_discover(self, packet: Discover, now: float) -> list[Effect]:
        if packet.sender in self.registry.nodes:
            self._watch.began(packet.sender, now)
        if not self.ready:  # §4.1: not answered while starting
            return []
        return [Publish(self.topics.to_node("INFO", packet.sender), self._info(packet.ver))]

    def _on_info(self, info: Info, now: float) -> list[Effect]:
        known = self.registry.nodes.get(info.sender)
        replaced = known is not None and known.available and known.instance_id != info.instance_id
        changes = self.registry.apply_info(info, now)
        self.registry.nodes[info.sender].ver = info.ver
        lost = self._not_answered(info.sender, self._watch.begun(info.sender)) if replaced else []
        return [*_notices(changes), *self._greet_new_versions(), *lost]

    def _on_disconnect(self, packet: Disconnect, now: float) -> list[Effect]:
        return self._lose(packet.sender, now, self.pending.values(), unexpected=False)

    def _on_heartbeat(self, beat: Heartbeat, now: float) -> list[Effect]:
        node = self.registry.nodes.get(beat.sender)
        if node is None or not node.available or _is_other_process(node, beat):
            packet = Discover(ver=beat.ver, sender=self.identity.node_id)
            return [Publish(self.topics.to_node("DISCOVER", beat.sender), packet)]
        node.ver = beat.ver
        node.last_heartbeat = now
        node.heard_cpu(beat.cpu)
        return []

    def _on_ping(self, ping: Ping, now: float) -> list[Effect]:
        return [AnswerPing(ping, self.topics.to_node("PONG", ping.sender))]

    def _on_pong(self, pong: Pong, now: float) -> list[Effect]:
        return [PongArrived(pong)]

    # Inside

    def _response(
        self, request: Request | Address, meta: dict[str, Any] | None, headers: dict[str, Any] | None
    ) -> Response:
        ver = request.ver if request.ver in PROTOCOLS else PROTOCOLS[0]
        return Response(
            ver=ver,
            sender=self.identity.node_id,
            id=request.id,
            meta=meta or {},
            headers=UNSET if ver == "4" else headers,
        )

    def _look_after(self, now: float) -> list[Effect]:
        """Pings to the nodes that keep somebody here waiting. The answers go to a name that nobody listens to: only
        whether the server knows of somebody who takes the question counts."""
        until = now - NODE_PROBE_AFTER_S
        old = takewhile(lambda pending: pending.since <= until, self.pending.values())
        waited_for = {pending.node_id for pending in old if pending.node_id} | self.streams.waits_for(until)
        asker = f"{self.identity.node_id}~probe"
        effects: list[Effect] = []
        for node_id in self._watch.due([one for one in waited_for if one in self.registry.nodes], now):
            ping = Ping(ver=self.version_of(node_id), sender=asker, time=0, id=asker)
            effects.append(Publish(self.topics.to_node("PING", node_id), ping, reply_id=f"{PROBE}{node_id}"))
        return effects

    def _unheard(self, node_id: str, now: float) -> list[Effect]:
        until = self._watch.unheard(node_id, now)
        if until is None:
            return []
        return self._lose(node_id, now, self.pending.values(), unexpected=True, until=until)

    def _lose(
        self, node_id: str, now: float, waiting: Iterable[Pending], *, unexpected: bool, until: float = math.inf
    ) -> list[Effect]:
        """A node is gone, and so are its answers to those of `waiting` that asked it."""
        self._watch.forget(node_id)
        changes = self.registry.lose_node(node_id, now, unexpected=unexpected)
        return [*_notices(changes), *self._not_answered(node_id, until, waiting)]

    def _not_answered(self, node_id: str, until: float, waiting: Iterable[Pending] | None = None) -> list[Effect]:
        """What a node was asked, and what it was sending or reading, until then, comes to nothing."""
        effects: list[Effect] = []
        asked = self.pending.values() if waiting is None else waiting
        for pending in [one for one in asked if one.node_id == node_id and one.since <= until]:
            del self.pending[pending.id]
            error = RequestRejectedError({"action": pending.action, "nodeID": node_id})
            effects.append(Reject(pending, error))
        effects.append(NobodyReads(node_id, RequestRejectedError({"action": None, "nodeID": node_id}), until))
        return effects + self.streams.lose(node_id, until=until)

    def _info(self, ver: Protocol) -> Info:
        if self._services_changed:
            self._services_changed = False
            self._sequence += 1
            self.registry.local.sequence = self._sequence
        return Info(
            ver=ver,
            sender=self.identity.node_id,
            services=self.registry.local.services,
            ip_list=list(self.identity.ip_list),
            hostname=self.identity.hostname,
            client=dict(self.identity.client),
            config={},
            instance_id=self.identity.instance_id,
            metadata=self.identity.metadata,
            sequence=self._sequence,
        )

    def _broadcast(self, command: Command, packet: Callable[[Protocol], Packet]) -> list[Effect]:
        """Once per version in use (§2.4)."""
        if not self._pinned:
            self._active = self.registry.versions() or self._active
        return [Publish(self.topics.broadcast(command), packet(ver)) for ver in sorted(self._active, reverse=True)]

    def _greet_new_versions(self) -> list[Effect]:
        """The first peer of a version came: find the others of that version, and let them know this node."""
        new = set() if self._pinned else self.registry.versions() - self._active
        self._active |= new
        effects: list[Effect] = []
        for ver in sorted(new):
            effects.append(self._discover_in(ver))
            if self.ready:
                effects.append(Publish(self.topics.broadcast("INFO"), self._info(ver)))
        return effects

    def _discover_in(self, ver: Protocol) -> Publish:
        return Publish(self.topics.broadcast("DISCOVER"), Discover(ver=ver, sender=self.identity.node_id))


def _described(value: Any) -> str:
    """Any value of a peer for a log line."""
    try:
        return short(repr(value))
    except ValueError:  # an integer with more digits than Python prints
        return f"a large {type(value).__name__}"


def _is_other_process(node: KnownNode, beat: Heartbeat) -> bool:
    """Whether a heartbeat tells of another state than the stored one (§4.4); NATS nodes do not send these fields."""
    if beat.sequence is not UNSET and beat.sequence != node.sequence:
        return True
    if beat.instance_id is UNSET:
        return False
    return not (node.instance_id or "").startswith(str(beat.instance_id))


def _notices(changes: Iterable[Change]) -> list[Effect]:
    return [Notify(event, payload) for event, payload in changes]
