"""What is known of the cluster, as data: nodes, their actions, the events they listen to (protocol §3, §4, §9).

No I/O, no clock, no logging: packets go in, changes come out.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from broker.context import Context
from broker.defaults import NAMES_KNOWN, NODES_KNOWN
from broker.errors import ServiceNotAvailableError, ServiceNotFoundError
from broker.protocol.packets import PROTOCOLS, Info, Protocol
from broker.registry.endpoints import Endpoint, EndpointList, EventEndpoint
from broker.registry.patterns import matches
from broker.registry.strategies import Latencies, StrategyMaker
from broker.services.schema import ServiceDefinition, full_service_name

T = TypeVar("T")

Change = tuple[str, dict[str, Any]]
"""A local event to announce: its name and payload (§7.4)."""

SPOKEN = "protocols"
"""The key in the `client` of INFO under which nodes like this list the protocol versions that they take."""

CALLABLE_FROM_AFAR = (None, "published", "public")
"""Visibilities that let other nodes call an action (§9.4)."""

REMEMBERED_EVENT_NAMES = 10_000
REMEMBERED_EVENT_NAME_CHARACTERS = 256
"""Event names whose listeners are remembered; names are chosen by peers, so the memory for them has a bound."""


_INFO_FIELDS = [(field.name, field.encode_name) for field in msgspec.structs.fields(Info)]


class KnownNode:
    """One node of the cluster, gone or there."""

    def __init__(self, node_id: str, *, local: bool = False) -> None:
        self.id = node_id
        self.local = local
        self.available = False
        self.ver: Protocol = "5"
        self.needed: Protocol | None = None
        """The version in which a broadcast must go out for it."""
        self.instance_id: str | None = None
        self.sequence = 0
        self.services: list[dict[str, Any]] = []
        self.client: dict[str, Any] = {}
        self.metadata: dict[str, Any] = {}
        self.ip_list: list[Any] = []
        self.hostname: str | None = None
        self.cpu: float | None = None
        self.cpu_sequence: int | None = None
        self.last_heartbeat = 0.0
        self.offline_since: float | None = None
        self.raw_info: dict[str, Any] | None = None
        """The last INFO, as it came."""
        self.offers: set[Endpoint | EventEndpoint] = set()
        """What can be chosen of it now."""

    def introduce(self, instance_id: str, hostname: str, ip_list: list[str], client: dict[str, Any]) -> None:
        """Take in what this node says of itself."""
        self.instance_id, self.hostname, self.ip_list, self.client = instance_id, hostname, ip_list, client

    @property
    def bilingual(self) -> bool:
        """Whether it is a node like this, which takes packets of both versions."""
        spoken = self.client.get(SPOKEN)
        return isinstance(spoken, list) and all(ver in spoken for ver in PROTOCOLS)

    def heard_cpu(self, percent: float | None) -> None:
        """How busy the node is, by its heartbeat."""
        if percent is not None:
            self.cpu, self.cpu_sequence = percent, (self.cpu_sequence or 0) + 1 if self.local else 1

    def describe(self, started: float) -> dict[str, Any]:
        """The node as tools show it (§7.4, §10). Times are whole seconds since `started`."""
        offline_since = self.offline_since
        return {
            "id": self.id,
            "instanceID": self.instance_id,
            "available": self.available,
            "local": self.local,
            "lastHeartbeatTime": round(max(0.0, self.last_heartbeat - started)),
            "config": {},
            "client": self.client,
            "metadata": self.metadata,
            "ipList": self.ip_list,
            **({"port": None} if self.local else {}),  # another node announces its own
            "hostname": self.hostname,
            "udpAddress": None,
            "cpu": self.cpu,
            "cpuSeq": self.cpu_sequence,
            "seq": self.sequence,
            "offlineSince": None if offline_since is None else round(max(0.0, offline_since - started)),
            "services": self.services,
            "rawInfo": self.raw_info,
        }


class Registry:
    """Nodes, actions and events of the cluster, this node's own included."""

    def __init__(
        self,
        node_id: str,
        *,
        strategy: str = "RoundRobin",
        strategy_options: Mapping[str, Any] | None = None,
        prefer_local: bool = True,
    ) -> None:
        self.local = KnownNode(node_id, local=True)
        self.local.available = True
        self.started = 0.0
        """When this process started, on the clock of every `now`."""
        self.nodes: dict[str, KnownNode] = {node_id: self.local}
        self.actions: dict[str, EndpointList[Endpoint]] = {}
        self.own: dict[str, Endpoint] = {}
        """This node's endpoints, usable or not, by the names of their actions."""
        self.listeners: dict[tuple[str, str], EndpointList[EventEndpoint]] = {}
        self.unresponsive: set[str] = set()
        """Nodes that are connected and answer nothing: chosen only when no other node can be. See `avoid`."""
        self.full: str | None = None
        """What no longer has room, for one log line; whoever logs it sets it to None."""
        self.latencies = Latencies()
        self._strategies = StrategyMaker(self, self.latencies, strategy, strategy_options or {})
        self._prefer_local = prefer_local
        self._heard_by: dict[str, Sequence[EndpointList[EventEndpoint]]] = {}
        self._heard_here: dict[str, Sequence[tuple[EndpointList[EventEndpoint], Sequence[EventEndpoint]]]] = {}
        self._lists_here: Sequence[EndpointList[EventEndpoint]] | None = None
        """The lists with listeners of this node. Peers cannot lengthen them."""
        self._providers: dict[str, set[str]] = {}
        self._speakers: Counter[Protocol] = Counter()
        self._offline: dict[str, None] = {}
        self._vacant: dict[EndpointList[Any], float] = {}
        self._filled: set[str] = set()
        self._now = 0.0

    # Services of this node

    def add_service(self, definition: ServiceDefinition) -> Change:
        """Offer a service of this node."""
        for action in definition.actions.values():
            if action.visibility != "private":
                endpoint = Endpoint(self.local.id, action.name, definition.full_name, action.to_info(), action)
                self._offer_action(self.local, endpoint, action.balancing)
        for event in definition.events:
            listener = EventEndpoint(self.local.id, event.name, event.group, definition.full_name, event)
            self._offer_listener(self.local, listener, event.balancing)
        others = [info for info in self.local.services if info["fullName"] != definition.full_name]
        self._list_services(self.local, [*others, definition.to_info()])
        return "$services.changed", {"localService": True}

    def remove_service(self, full_name: str) -> Change:
        """Offer a service of this node no more."""
        self._list_services(self.local, [info for info in self.local.services if info["fullName"] != full_name])
        self._withdraw(self.local, [member for member in self.local.offers if member.service == full_name])
        self._own_listeners_changed()
        return "$services.changed", {"localService": True}

    def hide_services(self) -> None:
        """List no service of this node any more. They can still be called."""
        self._list_services(self.local, [])

    # Other nodes

    def has_room_for(self, node_id: str) -> bool:
        """Whether a node is known or can be: nodes that are gone make room for others."""
        if node_id in self.nodes or len(self.nodes) < NODES_KNOWN:
            return True
        if self._offline:
            self.forget(next(iter(self._offline)))
            return True
        self._fill(f"{NODES_KNOWN} nodes are known, and others are ignored until some leave")
        return False

    def apply_info(self, info: Info, now: float) -> list[Change]:
        """Take in what a node says of itself (§3.4). Services count only when their sequence is new."""
        self._now = now
        node = self.nodes.get(info.sender)
        known = node is not None
        if node is None:
            node = self.nodes[info.sender] = KnownNode(info.sender)
        was_available = node.available
        self._describe_node(node, info)
        sequence = info.sequence or 1
        changes: list[Change] = []
        renewed = not was_available or sequence > node.sequence or info.instance_id != node.instance_id
        if renewed:
            node.sequence, node.instance_id = sequence, info.instance_id
            if info.services is not None:
                self._register(node, [service for service in info.services if isinstance(service, dict)])
        if not was_available:
            node.available, node.offline_since, node.last_heartbeat = True, None, now
            self._offline.pop(node.id, None)
            changes.append(("$node.connected", {"node": node.describe(self.started), "reconnected": known}))
        else:
            changes.append(("$node.updated", {"node": node.describe(self.started)}))
        self.speaks(node, info.ver)
        if renewed:
            changes.append(("$services.changed", {"localService": False}))
        return changes

    def speaks(self, node: KnownNode, ver: Protocol) -> None:
        """The protocol version of a node's last packet. To one that takes both, 5 is spoken: 4 has no headers."""
        node.ver = PROTOCOLS[0] if node.bilingual else ver
        self._count_needed(node)

    def avoid(self, node_id: str, *, avoided: bool) -> None:
        """Choose a node only when no other can be; or again like the others."""
        if avoided:
            self.unresponsive.add(node_id)
        else:
            self.unresponsive.discard(node_id)
        for member in self.nodes[node_id].offers if node_id in self.nodes else ():
            if member.offered is not None:
                member.offered.changed()

    def lose_node(self, node_id: str, now: float, *, unexpected: bool) -> list[Change]:
        """A node left or fell silent: nothing on it can be chosen any more (§4.3)."""
        node = self.nodes.get(node_id)
        if node is None or not node.available or node.local:
            return []
        self._now = now
        self._make_unavailable(node)
        node.offline_since = now
        node.sequence += 1
        return [
            ("$node.disconnected", {"node": node.describe(self.started), "unexpected": unexpected}),
            ("$services.changed", {"localService": False}),
        ]

    def forget(self, node_id: str) -> None:
        """Remove a node that has been gone for long (§4.4)."""
        node = self.nodes.pop(node_id, None)
        self._offline.pop(node_id, None)
        if node is not None and node.available:
            self._make_unavailable(node)

    def forget_vacant(self, until: float) -> None:
        """Forget the names that no node has offered since a monotonic time."""
        while self._vacant:
            choices, since = next(iter(self._vacant.items()))
            if since > until:
                return
            self._forget_name(choices)

    # Looking up

    def versions(self) -> set[Protocol]:
        """The protocol versions that live peers need (§2.4): one that takes both needs none."""
        return {ver for ver, nodes in self._speakers.items() if nodes}

    def find_action(self, name: str, node_id: str | None = None, ctx: Context | None = None) -> Endpoint:
        """The endpoint to call, for the call of `ctx`.

        Raises ServiceNotFoundError for a name never seen, or not on `node_id`; ServiceNotAvailableError when no
        node offers it now (§5.2).
        """
        choices = self.actions.get(name)
        if node_id is not None:
            endpoint = choices.on_node(node_id) if choices else None
            if endpoint is None:
                raise ServiceNotFoundError({"action": name, "nodeID": node_id})
            return endpoint
        if choices is None:
            raise ServiceNotFoundError({"action": name})
        endpoint = choices.choose(self._prefer_local, ctx)
        if endpoint is None:
            raise ServiceNotAvailableError({"action": name})
        return endpoint

    def find_listeners(
        self, event: str, groups: Collection[str] | None = None
    ) -> Iterator[EndpointList[EventEndpoint]]:
        """The lists of listeners that an event is meant for; no groups means all (§7.1)."""
        found = self._heard_by.get(event)
        if found is None:
            found = _hearing(event, self.listeners.values())
            _remember(self._heard_by, event, found)
        for choices in found:
            if len(choices) and (not groups or choices.group in groups):
                yield choices

    def find_listeners_here(self, event: str) -> Sequence[tuple[EndpointList[EventEndpoint], Sequence[EventEndpoint]]]:
        """Those of them that this node has listeners in, of all groups, each with these listeners."""
        found = self._heard_here.get(event)
        if found is None:
            if self._lists_here is None:
                self._lists_here = [choices for choices in self.listeners.values() if choices.of_node(self.local.id)]
            found = [(choices, choices.of_node(self.local.id)) for choices in _hearing(event, self._lists_here)]
            _remember(self._heard_here, event, found)
        return found

    def endpoint_on(self, name: str, node_id: str) -> Endpoint | None:
        """A node's endpoint of an action, usable or not."""
        choices = self.actions.get(name)
        return next(iter(choices.of_node(node_id)), None) if choices is not None else None

    def choose_listener(self, choices: EndpointList[EventEndpoint], ctx: Context | None = None) -> EventEndpoint | None:
        """One listener of a list, by the strategy, for the event of `ctx`."""
        return choices.choose(prefer_local=self._prefer_local, ctx=ctx)

    def cpu_of(self, node_id: str) -> float | None:
        """How busy a node said it is, in percent."""
        node = self.nodes.get(node_id)
        return node.cpu if node else None

    def latency_of(self, node_id: str) -> float | None:
        """How long a node's host takes to answer a ping, in seconds, as far as known."""
        node = self.nodes.get(node_id)
        return self.latencies.average(node.hostname) if node else None

    def offered(self, node_id: str, action: str) -> bool:
        """Whether a node offers an action, or did when it was lost."""
        node = self.nodes.get(node_id)
        services = node.services if node else ()
        return any(entry["name"] == action for service in services for entry in entries(service.get("actions")))

    def has_service(self, full_name: str) -> bool:
        """Whether a live node offers the service."""
        return full_name in self._providers

    # Inside

    def _describe_node(self, node: KnownNode, info: Info) -> None:
        node.client = info.client or {}
        node.metadata = info.metadata or {}
        node.ip_list = info.ip_list or []
        node.hostname = info.hostname
        node.raw_info = {name: getattr(info, field) for field, name in _INFO_FIELDS}

    def _register(self, node: KnownNode, services: list[dict[str, Any]]) -> None:
        """Add what is listed, remove what is not listed any more (§3.4)."""
        before, node.offers = node.offers, set()
        listed = []
        for service in services:
            name = service.get("name")
            if not isinstance(name, str):
                continue
            full_name = service.get("fullName")
            if not isinstance(full_name, str) or not full_name:
                full_name = full_service_name(name, service.get("version"))
            listed.append({**service, "fullName": full_name})
            for action in entries(service.get("actions")):
                if action.get("visibility") in CALLABLE_FROM_AFAR:
                    self._offer_action(node, Endpoint(node.id, action["name"], full_name, action), action)
            for event in entries(service.get("events")):
                group = str(event.get("group") or name)
                self._offer_listener(node, EventEndpoint(node.id, event["name"], group, full_name), event)
        self._list_services(node, listed)
        self._withdraw(node, before - node.offers)

    def _make_unavailable(self, node: KnownNode) -> None:
        node.available = False
        self._count_needed(node)
        self.unresponsive.discard(node.id)
        self._withdraw(node, list(node.offers))
        self._list_services(node, node.services, provided=False)
        if node.id in self.nodes:
            self._offline[node.id] = None

    def _count_needed(self, node: KnownNode) -> None:
        needed = node.ver if node.available and not node.bilingual else None
        if node.needed is not None:
            self._speakers[node.needed] -= 1
        if needed is not None:
            self._speakers[needed] += 1
        node.needed = needed

    def _list_services(self, node: KnownNode, services: list[dict[str, Any]], *, provided: bool = True) -> None:
        for info in node.services:
            nodes = self._providers.get(info["fullName"], set())
            nodes.discard(node.id)
            if not nodes:
                self._providers.pop(info["fullName"], None)
        node.services = services
        for info in services if provided else ():
            self._providers.setdefault(info["fullName"], set()).add(node.id)

    def _offer_action(self, node: KnownNode, endpoint: Endpoint, info: Mapping[str, Any]) -> None:
        """Who announces an action first says how its endpoints are chosen (§3.2)."""
        choices = self.actions.get(endpoint.name)
        if choices is None:
            if not self._has_room_for_name(node):
                return
            strategy = self._strategies.announced(info)
            choices = self.actions[endpoint.name] = EndpointList(endpoint.name, strategy, self.unresponsive)
        self._vacant.pop(choices, None)
        member = choices.put(endpoint)
        node.offers.add(member)
        if node.local:
            self.own[endpoint.name] = member

    def _offer_listener(self, node: KnownNode, listener: EventEndpoint, info: Mapping[str, Any]) -> None:
        key = listener.name, listener.group
        choices = self.listeners.get(key)
        if choices is None:
            if not self._has_room_for_name(node):
                return
            strategy = self._strategies.announced(info)
            choices = self.listeners[key] = EndpointList(listener.name, strategy, self.unresponsive, listener.group)
            self._heard_otherwise(listener.name)
        self._vacant.pop(choices, None)
        node.offers.add(choices.put(listener))
        if node.local:
            self._own_listeners_changed()

    def _withdraw(self, node: KnownNode, members: Iterable[Endpoint | EventEndpoint]) -> None:
        for member in members:
            node.offers.discard(member)
            if self.own.get(member.name) is member:
                del self.own[member.name]
            choices: EndpointList[Any] | None = member.offered
            if choices is not None:
                choices.drop(member)
                if not choices:
                    self._vacant[choices] = self._now

    def _has_room_for_name(self, node: KnownNode) -> bool:
        """Names that no node offers make room for others. This node's own names always have some."""
        if node.local or len(self.actions) + len(self.listeners) < NAMES_KNOWN:
            return True
        if self._vacant:
            self._forget_name(next(iter(self._vacant)))
            return True
        self._fill(f"{NAMES_KNOWN} names of actions and events are known, and others are ignored until some are gone")
        return False

    def _forget_name(self, choices: EndpointList[Any]) -> None:
        del self._vacant[choices]
        if self.actions.get(choices.name) is choices:
            del self.actions[choices.name]
        else:
            del self.listeners[choices.name, choices.group]
            self._heard_otherwise(choices.name)

    def _heard_otherwise(self, pattern: str) -> None:
        """The lists of listeners for the events that a pattern matches have changed."""
        if "*" in pattern or "?" in pattern:
            self._heard_by.clear()
        else:
            self._heard_by.pop(pattern, None)

    def _own_listeners_changed(self) -> None:
        self._lists_here = None
        self._heard_here.clear()

    def _fill(self, what: str) -> None:
        if what not in self._filled:
            self._filled.add(what)
            self.full = what


def entries(announced: object) -> Iterator[dict[str, Any]]:
    """The usable entries of an `actions` or `events` map; peers may send an empty list or leave it out (§3.2)."""
    if isinstance(announced, dict):
        for entry in announced.values():
            if isinstance(entry, dict) and isinstance(entry.get("name"), str):
                yield entry


def _hearing(event: str, lists: Iterable[EndpointList[EventEndpoint]]) -> Sequence[EndpointList[EventEndpoint]]:
    """Which of the lists receive an event. Internal ones come first: they decide where their groups get it."""
    return sorted((one for one in lists if matches(event, one.name)), key=lambda one: not one.internal)


def _remember(known: dict[str, T], event: str, found: T) -> None:
    if len(known) >= REMEMBERED_EVENT_NAMES:
        known.clear()
    if len(event) <= REMEMBERED_EVENT_NAME_CHARACTERS:
        known[event] = found
