"""What is known of the cluster, as data: nodes, the actions they offer, the events they hear (protocol §3, §4, §9).

No I/O, no clock, no logging: packets go in, changes come out.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import msgspec

from broker.context import Context
from broker.endpoints import Choices, Endpoint, Listener
from broker.errors import ServiceNotAvailableError, ServiceNotFoundError
from broker.packets import Info, Protocol
from broker.patterns import matches
from broker.schema import ServiceDefinition, full_service_name
from broker.strategies import StrategyMaker
from broker.strategies.latencies import Latencies

Change = tuple[str, dict[str, Any]]
"""A local event to announce: its name and payload (§7.4)."""

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

    def introduce(self, instance_id: str, hostname: str, ip_list: list[str], client: dict[str, Any]) -> None:
        """Take in what this node says of itself."""
        self.instance_id, self.hostname, self.ip_list, self.client = instance_id, hostname, ip_list, client

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
            **({"port": None} if self.local else {}),  # another node would have told its own
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
        self.actions: dict[str, Choices[Endpoint]] = {}
        self.listeners: dict[tuple[str, str], Choices[Listener]] = {}
        self.unresponsive: set[str] = set()
        """Nodes that are connected and answer nothing: chosen only when no other node can be."""
        self.latencies = Latencies()
        self._strategies = StrategyMaker(self, self.latencies, strategy, strategy_options or {})
        self._prefer_local = prefer_local
        self._heard_by: dict[str, list[Choices[Listener]]] = {}

    # Services of this node

    def add_service(self, definition: ServiceDefinition) -> Change:
        """Offer a service of this node."""
        for action in definition.actions.values():
            if action.visibility != "private":
                endpoint = Endpoint(self.local.id, action.name, definition.full_name, action.to_info(), action)
                self._action(action.name, action.balancing).put(endpoint)
        for event in definition.events:
            self._listener(event.name, event.group, event.balancing).put(
                Listener(self.local.id, event.name, event.group, definition.full_name, event)
            )
        self.local.services = [
            *(info for info in self.local.services if info["fullName"] != definition.full_name),
            definition.to_info(),
        ]
        return "$services.changed", {"localService": True}

    def remove_service(self, full_name: str) -> Change:
        """Offer a service of this node no more."""
        self.local.services = [info for info in self.local.services if info["fullName"] != full_name]
        self._drop(self.local.id, lambda service, _name: service == full_name)
        return "$services.changed", {"localService": True}

    # Other nodes

    def apply_info(self, info: Info, now: float) -> list[Change]:
        """Take in what a node says of itself (§3.4). Services count only when their sequence is new."""
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
            changes.append(("$node.connected", {"node": node.describe(self.started), "reconnected": known}))
        else:
            changes.append(("$node.updated", {"node": node.describe(self.started)}))
        if renewed:
            changes.append(("$services.changed", {"localService": False}))
        return changes

    def lose_node(self, node_id: str, now: float, *, unexpected: bool) -> list[Change]:
        """A node left or fell silent: nothing on it can be chosen any more (§4.3)."""
        node = self.nodes.get(node_id)
        if node is None or not node.available or node.local:
            return []
        node.available, node.offline_since = False, now
        node.sequence += 1
        self.unresponsive.discard(node_id)
        self._drop(node_id, lambda _service, _name: True)
        return [
            ("$node.disconnected", {"node": node.describe(self.started), "unexpected": unexpected}),
            ("$services.changed", {"localService": False}),
        ]

    def forget(self, node_id: str) -> None:
        """Remove a node that has been gone for long (§4.4), and the groups that nobody is in any more: whoever listens
        for a while, as `broker listen` does, has a group of its own."""
        self.nodes.pop(node_id, None)
        self.listeners = {key: choices for key, choices in self.listeners.items() if choices.members}
        self._heard_by.clear()

    # Looking up

    def versions(self) -> set[Protocol]:
        """The protocol versions that live peers speak (§2.4)."""
        return {node.ver for node in self.nodes.values() if node.available and not node.local}

    def find_action(
        self, name: str, node_id: str | None = None, without: Collection[str] = (), ctx: Context | None = None
    ) -> Endpoint:
        """The endpoint to call, for the call of `ctx`.

        Raises ServiceNotFoundError for a name never seen, or not on `node_id`; ServiceNotAvailableError when nobody
        offers it now (§5.2).
        """
        choices = self.actions.get(name)
        if node_id is not None:
            endpoint = choices.on_node(node_id) if choices else None
            if endpoint is None:
                raise ServiceNotFoundError({"action": name, "nodeID": node_id})
            return endpoint
        if choices is None:
            raise ServiceNotFoundError({"action": name})
        endpoint = choices.choose(prefer_local=self._prefer_local, without=without, ctx=ctx)
        if endpoint is None:
            raise ServiceNotAvailableError({"action": name})
        return endpoint

    def find_listeners(self, event: str, groups: Collection[str] | None = None) -> Iterator[Choices[Listener]]:
        """The lists of listeners that an event is meant for; no groups means all (§7.1)."""
        heard_by = self._heard_by.get(event)
        if heard_by is None:
            heard_by = [choices for (pattern, _group), choices in self.listeners.items() if matches(event, pattern)]
            heard_by.sort(key=lambda choices: not choices.internal)  # they decide where their groups get the event
            if len(self._heard_by) >= REMEMBERED_EVENT_NAMES:
                self._heard_by.clear()
            if len(event) <= REMEMBERED_EVENT_NAME_CHARACTERS:
                self._heard_by[event] = heard_by
        for choices in heard_by:
            if choices.members and (not groups or choices.members[0].group in groups):
                yield choices

    def local_endpoint(self, name: str) -> Endpoint | None:
        """This node's own endpoint of an action, usable or not."""
        choices = self.actions.get(name)
        return next((member for member in choices.members if member.local), None) if choices else None

    def endpoint_on(self, name: str, node_id: str) -> Endpoint | None:
        """A node's endpoint of an action, usable or not."""
        choices = self.actions.get(name)
        return next((member for member in choices.members if member.node_id == node_id), None) if choices else None

    def choose_listener(self, choices: Choices[Listener], ctx: Context | None = None) -> Listener | None:
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

    def has_service(self, full_name: str) -> bool:
        """Whether a live node offers the service."""
        return any(
            info.get("fullName") == full_name
            for node in self.nodes.values()
            if node.available
            for info in node.services
        )

    # Inside

    def _describe_node(self, node: KnownNode, info: Info) -> None:
        node.client = info.client or {}
        node.metadata = info.metadata or {}
        node.ip_list = info.ip_list or []
        node.hostname = info.hostname
        node.raw_info = {name: getattr(info, field) for field, name in _INFO_FIELDS}

    def _register(self, node: KnownNode, services: list[dict[str, Any]]) -> None:
        """Add what is listed, remove what is not listed any more (§3.4)."""
        node.services = []
        listed: set[tuple[str, str]] = set()
        for service in services:
            name = service.get("name")
            if not isinstance(name, str):
                continue
            full_name = service.get("fullName")
            if not isinstance(full_name, str) or not full_name:
                full_name = full_service_name(name, service.get("version"))
            node.services.append({**service, "fullName": full_name})
            for action in _entries(service.get("actions")):
                if action.get("visibility") in CALLABLE_FROM_AFAR:
                    listed.add((full_name, action["name"]))
                    self._action(action["name"], action).put(Endpoint(node.id, action["name"], full_name, action))
            for event in _entries(service.get("events")):
                group = event.get("group") or name
                listed.add((full_name, event["name"]))
                listener = Listener(node.id, event["name"], str(group), full_name)
                self._listener(event["name"], str(group), event).put(listener)
        self._drop(node.id, lambda service, name: (service, name) not in listed)

    def _action(self, name: str, info: Mapping[str, Any]) -> Choices[Endpoint]:
        """The endpoints of an action. Who announces it first says how they are chosen (§3.2)."""
        if name not in self.actions:
            self.actions[name] = Choices(name, self._strategies.announced(info), self.unresponsive)
        return self.actions[name]

    def _listener(self, pattern: str, group: str, info: Mapping[str, Any]) -> Choices[Listener]:
        self._heard_by.clear()
        if (pattern, group) not in self.listeners:
            self.listeners[pattern, group] = Choices(pattern, self._strategies.announced(info), self.unresponsive)
        return self.listeners[pattern, group]

    def _drop(self, node_id: str, unwanted: Any) -> None:
        for endpoints in self.actions.values():
            endpoints.drop(lambda member: member.node_id == node_id and unwanted(member.service, member.name))
        for listeners in self.listeners.values():
            listeners.drop(lambda member: member.node_id == node_id and unwanted(member.service, member.name))
        self._heard_by.clear()


def _entries(entries: object) -> Iterator[dict[str, Any]]:
    """The usable entries of an `actions` or `events` map; peers may send an empty list or leave it out (§3.2)."""
    if isinstance(entries, dict):
        for entry in entries.values():
            if isinstance(entry, dict) and isinstance(entry.get("name"), str):
                yield entry
