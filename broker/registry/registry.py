"""What is known of the cluster, as data: nodes, their actions, the events they listen to (protocol §3, §4, §9).

No I/O, no clock, no logging: packets go in, changes come out.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from broker.context import Context
from broker.defaults import NAMES_KNOWN, NODES_KNOWN
from broker.errors import ServiceNotAvailableError, ServiceNotFoundError
from broker.protocol.packets import PROTOCOLS, Info, Protocol
from broker.registry.endpoints import Endpoint, EndpointList, EventEndpoint
from broker.registry.nodes import KnownNode, Latencies
from broker.registry.patterns import matches
from broker.registry.strategies import StrategyMaker
from broker.services.schema import ServiceDefinition, full_service_name

Change = tuple[str, dict[str, Any]]
"""A local event to announce: its name and payload (§7.4)."""

REMOTELY_CALLABLE = (None, "published", "public")
"""Visibilities that let other nodes call an action (§9.4)."""

REMEMBERED_EVENT_NAMES = 10_000
REMEMBERED_EVENT_NAME_CHARACTERS = 256
"""Event names whose listeners are remembered; peers choose the names, so the memory for them has a bound."""

_INFO_FIELDS = [(field.name, field.encode_name) for field in msgspec.structs.fields(Info)]


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
        self.local = KnownNode(node_id, local=True, available=True)
        self.started = 0.0
        """When this process started, on the clock of every `now`."""
        self.nodes: dict[str, KnownNode] = {node_id: self.local}
        self.actions: dict[str, EndpointList[Endpoint]] = {}
        self.own: dict[str, Endpoint] = {}
        """This node's endpoints, usable or not, by the names of their actions."""
        self.listeners: dict[tuple[str, str], EndpointList[EventEndpoint]] = {}
        """By pattern and group."""
        self.unresponsive: set[str] = set()
        """Nodes that are connected and answer nothing: chosen only when no other node can be. See `avoid`."""
        self.full: str | None = None
        """What no longer has room, for one log line; whoever logs it sets it to None."""
        self.latencies = Latencies()
        self._strategies = StrategyMaker(self.nodes, self.latencies, strategy, strategy_options or {})
        self._prefer_local, self._now = prefer_local, 0.0
        self._lists_by_event = lru_cache(REMEMBERED_EVENT_NAMES)(self._lists_for)
        self._own_lists_by_event = lru_cache(REMEMBERED_EVENT_NAMES)(self._lists_here)
        self._providers: dict[str, set[str]] = {}
        """The nodes that offer a service, by its full name."""
        self._speakers: dict[Protocol, set[str]] = {ver: set() for ver in PROTOCOLS}
        """The live nodes that take packets of one version alone."""
        self._offline: dict[str, None] = {}
        self._vacant: dict[EndpointList[Any], float] = {}
        """Lists without a member, and since when."""
        self._filled: set[str] = set()

    # Services of this node

    def add_service(self, definition: ServiceDefinition) -> Change:
        """Offer a service of this node."""
        for action in definition.actions.values():
            if action.visibility != "private":
                endpoint = Endpoint(self.local.id, action.name, definition.full_name, action.to_info(), action)
                self._offer(self.local, endpoint, action.balancing)
        for event in definition.events:
            listener = EventEndpoint(self.local.id, event.name, event.group, definition.full_name, event)
            self._offer(self.local, listener, event.balancing)
        others = [info for info in self.local.services if info["fullName"] != definition.full_name]
        self._list_services(self.local, [*others, definition.to_info()])
        return "$services.changed", {"localService": True}

    def remove_service(self, full_name: str) -> Change:
        """Stop offering a service of this node."""
        self._list_services(self.local, [info for info in self.local.services if info["fullName"] != full_name])
        self._withdraw(self.local, [member for member in self.local.offers if member.service == full_name])
        return "$services.changed", {"localService": True}

    def hide_services(self) -> None:
        """Stop listing the services of this node. They can still be called."""
        self._list_services(self.local, [])

    # Other nodes

    def has_room_for(self, node_id: str) -> bool:
        """Whether a node is known or can be: nodes that are gone make room for others."""
        if node_id in self.nodes or len(self.nodes) < NODES_KNOWN:
            return True
        if self._offline:
            self.forget(next(iter(self._offline)))
            return True
        return self._fill(f"{NODES_KNOWN} nodes are known, and others are ignored until some leave")

    def apply_info(self, info: Info, now: float) -> list[Change]:
        """Take in what a node says of itself (§3.4). Services count only when their sequence is new."""
        self._now = now
        known = info.sender in self.nodes
        node = self.nodes.setdefault(info.sender, KnownNode(info.sender))
        node.client, node.metadata, node.ip_list = info.client or {}, info.metadata or {}, info.ip_list or []
        node.hostname = info.hostname
        node.raw_info = {name: getattr(info, field) for field, name in _INFO_FIELDS}
        connected, sequence = not node.available, info.sequence or 1
        renewed = connected or sequence > node.sequence or info.instance_id != node.instance_id
        if renewed:
            node.sequence, node.instance_id = sequence, info.instance_id
            if info.services is not None:
                self._register(node, [service for service in info.services if isinstance(service, dict)])
        if connected:
            node.available, node.offline_since, node.last_heartbeat = True, None, now
            self._offline.pop(node.id, None)
        self.speaks(node, info.ver)
        payload = {"node": node.describe(self.started)}
        change = ("$node.connected", payload | {"reconnected": known}) if connected else ("$node.updated", payload)
        return [change, ("$services.changed", {"localService": False})] if renewed else [change]

    def speaks(self, node: KnownNode, ver: Protocol) -> None:
        """Note the protocol version of a node's last packet. To one that takes both, 5 is spoken: 4 has no headers."""
        node.ver = PROTOCOLS[0] if node.bilingual else ver
        for spoken, nodes in self._speakers.items():
            (nodes.add if spoken == ver and not node.bilingual else nodes.discard)(node.id)

    def avoid(self, node_id: str, *, avoided: bool) -> None:
        """Choose a node only when no other can be; or again like the others."""
        (self.unresponsive.add if avoided else self.unresponsive.discard)(node_id)
        for member in self.nodes[node_id].offers if node_id in self.nodes else ():
            member.offered.changed()

    def lose_node(self, node_id: str, now: float, *, unexpected: bool) -> list[Change]:
        """Withdraw the endpoints of a node that left or fell silent (§4.3)."""
        node = self.nodes.get(node_id)
        if node is None or not node.available or node.local:
            return []
        self._now = now
        self._make_unavailable(node)
        self._offline[node_id] = None
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
        while self._vacant and next(iter(self._vacant.values())) <= until:
            self._forget_name(next(iter(self._vacant)))

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
        if (endpoint := choices.choose(ctx)) is None:
            raise ServiceNotAvailableError({"action": name})
        return endpoint

    def find_listeners(
        self, event: str, groups: Collection[str] | None = None
    ) -> Iterator[EndpointList[EventEndpoint]]:
        """The lists of listeners that an event is meant for; no groups means all (§7.1)."""
        find = self._lists_by_event if len(event) <= REMEMBERED_EVENT_NAME_CHARACTERS else self._lists_for
        for choices in find(event):
            if choices and (not groups or choices.group in groups):
                yield choices

    def find_listeners_here(self, event: str) -> Sequence[tuple[EndpointList[EventEndpoint], Sequence[EventEndpoint]]]:
        """Those of them that this node has listeners in, of all groups, each with these listeners."""
        return (self._own_lists_by_event if len(event) <= REMEMBERED_EVENT_NAME_CHARACTERS else self._lists_here)(event)

    def endpoint_on(self, name: str, node_id: str) -> Endpoint | None:
        """A node's endpoint of an action, usable or not."""
        choices = self.actions.get(name)
        return next(iter(choices.of_node(node_id)), None) if choices is not None else None

    def offered(self, node_id: str, action: str) -> bool:
        """Whether a node offers an action, or did when it was lost."""
        services = self.nodes[node_id].services if node_id in self.nodes else ()
        return any(entry["name"] == action for service in services for entry in entries(service.get("actions")))

    def has_service(self, full_name: str) -> bool:
        """Whether a live node offers the service."""
        return full_name in self._providers

    # Inside

    def _lists_for(self, event: str) -> Sequence[EndpointList[EventEndpoint]]:
        return _matching(event, self.listeners.values())

    def _lists_here(self, event: str) -> Sequence[tuple[EndpointList[EventEndpoint], Sequence[EventEndpoint]]]:
        """Looks at this node's own lists alone: peers cannot make more of these."""
        events = (one for one in self.local.offers if isinstance(one, EventEndpoint))
        own = dict.fromkeys(one.offered for one in events if one.offered is not None)
        return [(choices, choices.of_node(self.local.id)) for choices in _matching(event, own)]

    def _register(self, node: KnownNode, services: list[dict[str, Any]]) -> None:
        """Add what is listed, remove what is not listed any more (§3.4)."""
        before, node.offers = node.offers, {}
        listed = []
        for service in services:
            name, full_name = service.get("name"), service.get("fullName")
            if not isinstance(name, str):
                continue
            if not isinstance(full_name, str) or not full_name:
                full_name = full_service_name(name, service.get("version"))
            listed.append({**service, "fullName": full_name})
            for action in entries(service.get("actions")):
                if action.get("visibility") in REMOTELY_CALLABLE:
                    self._offer(node, Endpoint(node.id, action["name"], full_name, action), action)
            for event in entries(service.get("events")):
                group = str(event.get("group") or name)
                self._offer(node, EventEndpoint(node.id, event["name"], group, full_name), event)
        self._list_services(node, listed)
        self._withdraw(node, [member for member in before if member not in node.offers])

    def _make_unavailable(self, node: KnownNode) -> None:
        node.available = False
        for nodes in self._speakers.values():
            nodes.discard(node.id)
        self.unresponsive.discard(node.id)
        self._withdraw(node, list(node.offers))
        self._list_services(node, node.services, provided=False)

    def _list_services(self, node: KnownNode, services: list[dict[str, Any]], *, provided: bool = True) -> None:
        for info in node.services:
            nodes = self._providers.get(info["fullName"], set())
            nodes.discard(node.id)
            if not nodes:
                self._providers.pop(info["fullName"], None)
        node.services = services
        for info in services if provided else ():
            self._providers.setdefault(info["fullName"], set()).add(node.id)

    def _offer(self, node: KnownNode, member: Endpoint | EventEndpoint, info: Mapping[str, Any]) -> None:
        """Put an endpoint in its list. The first node that announces a name says how one is chosen (§3.2)."""
        lists: dict[Any, EndpointList[Any]] = self.actions
        key: Any = member.name
        if isinstance(member, EventEndpoint):
            lists, key = self.listeners, (member.name, member.group)
        choices = lists.get(key)
        if choices is None:
            if not self._has_room_for_name(node):
                return
            strategy = self._strategies.announced(info)
            choices = lists[key] = EndpointList(
                member.name, strategy, self.unresponsive, member.group, prefer_local=self._prefer_local
            )
            self._lists_by_event.cache_clear()
        self._vacant.pop(choices, None)
        member = choices.put(member)
        node.offers[member] = None
        if node.local and isinstance(member, Endpoint):
            self.own[member.name] = member
        elif node.local:
            self._own_lists_by_event.cache_clear()

    def _withdraw(self, node: KnownNode, members: Iterable[Endpoint | EventEndpoint]) -> None:
        for member in members:
            node.offers.pop(member, None)
            if self.own.get(member.name) is member:
                del self.own[member.name]
            choices: EndpointList[Any] | None = member.offered
            assert choices is not None
            choices.drop(member)
            if not choices:
                self._vacant[choices] = self._now
        if node.local:
            self._own_lists_by_event.cache_clear()

    def _has_room_for_name(self, node: KnownNode) -> bool:
        """Names that no node offers make room for others. This node's own names always have some."""
        if node.local or len(self.actions) + len(self.listeners) < NAMES_KNOWN:
            return True
        if self._vacant:
            self._forget_name(next(iter(self._vacant)))
            return True
        return self._fill(
            f"{NAMES_KNOWN} names of actions and events are known, and others are ignored until some are gone"
        )

    def _forget_name(self, choices: EndpointList[Any]) -> None:
        del self._vacant[choices]
        if self.actions.get(choices.name) is choices:
            del self.actions[choices.name]
        else:
            del self.listeners[choices.name, choices.group]
            self._lists_by_event.cache_clear()

    def _fill(self, what: str) -> bool:
        """Note, once, that there is no room for something."""
        if what not in self._filled:
            self._filled.add(what)
            self.full = what
        return False


def entries(announced: object) -> Iterator[dict[str, Any]]:
    """The usable entries of an `actions` or `events` map; peers may send an empty list or leave it out (§3.2)."""
    if isinstance(announced, dict):
        for entry in announced.values():
            if isinstance(entry, dict) and isinstance(entry.get("name"), str):
                yield entry


def _matching(event: str, lists: Iterable[EndpointList[EventEndpoint]]) -> Sequence[EndpointList[EventEndpoint]]:
    """The lists that an event is for. Internal ones come first: they decide where their groups get it."""
    return sorted((one for one in lists if matches(event, one.name)), key=lambda one: not one.internal)
