"""Who offers an action or listens to an event: endpoints and the lists that choose among them (protocol §9)."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Generic, TypeVar

from broker.context import Context, Next
from broker.registry.strategies import Strategy
from broker.services.schema import ActionDefinition, EventDefinition


class Endpoint:
    """One action on one node. `action` is set for the own node, `info` is the entry of a peer's INFO."""

    __slots__ = (
        "action",
        "available",
        "chain",
        "info",
        "local",
        "name",
        "node_id",
        "offered",
        "service",
        "subject",
        "timeout_s",
    )

    def __init__(
        self, node_id: str, name: str, service: str, info: dict[str, Any], action: ActionDefinition | None = None
    ) -> None:
        self.node_id = node_id
        self.name = name
        self.service = service
        self.info = info
        self.action = action
        self.local = action is not None
        self.chain: Next | None = None
        """What a call to it goes through, made by the first one."""
        self.subject = ""
        """Where requests to it are published, filled in by the first one."""
        self.offered: EndpointList[Endpoint] | None = None
        """The list that it is in."""
        self.timeout_s = _timeout_s(info, action)
        """The action's own default timeout; a peer announces it in milliseconds (§5.5)."""
        self.available = True
        """False while its circuit breaker keeps calls away."""

    def set_available(self, *, available: bool) -> None:
        """Let calls come, or keep them away."""
        self.available = available
        if self.offered is not None:
            self.offered.changed()

    def renew(self, other: "Endpoint") -> None:
        """The service was announced again: take over what may have changed."""
        self.info, self.action, self.local = other.info, other.action, other.local
        self.chain = None
        self.timeout_s = _timeout_s(other.info, other.action)


def _timeout_s(info: Mapping[str, Any], action: ActionDefinition | None) -> float | None:
    if action is not None:
        return action.timeout_s
    timeout = info.get("timeout")
    return timeout / 1000 if isinstance(timeout, int | float) and not isinstance(timeout, bool) else None


class EventEndpoint:
    """One event handler on one node. `event` is set for the own node."""

    __slots__ = ("event", "group", "local", "name", "node_id", "offered", "service")

    available = True

    def __init__(self, node_id: str, name: str, group: str, service: str, event: EventDefinition | None = None) -> None:
        self.node_id = node_id
        self.name = name
        self.group = group
        self.service = service
        self.event = event
        self.local = event is not None
        self.offered: EndpointList[EventEndpoint] | None = None
        """The list that it is in."""

    def renew(self, other: "EventEndpoint") -> None:
        """The service was announced again: take over what may have changed."""
        self.event, self.local = other.event, other.local


E = TypeVar("E", Endpoint, EventEndpoint)


class EndpointList(Generic[E]):
    """The endpoints of one action, or the listeners of one pattern and group, in order of registration.

    Members on the nodes in `last_resort` are chosen when there is no other. Which members can be chosen is worked out
    after each change, not for each call.
    """

    __slots__ = (
        "_by_node",
        "_by_service",
        "_members",
        "_usable",
        "_usable_here",
        "group",
        "internal",
        "last_resort",
        "name",
        "strategy",
    )

    def __init__(self, name: str, strategy: Strategy, last_resort: Collection[str] = (), group: str = "") -> None:
        self.name = name
        self.group = group
        """Of listeners; actions have none."""
        self.internal = name.startswith("$")
        """Whether only the own node's members are chosen while it has some (§9.1)."""
        self.strategy = strategy
        self.last_resort = last_resort
        self._by_service: dict[tuple[str, str], E] = {}
        self._by_node: dict[str, list[E]] = {}
        self._members: list[E] | None = None
        self._usable: list[E] | None = None
        self._usable_here: list[E] = []

    def __len__(self) -> int:
        return len(self._by_service)

    @property
    def members(self) -> Sequence[E]:
        """All of them, usable or not."""
        if self._members is None:
            self._members = list(self._by_service.values())
        return self._members

    def put(self, member: E) -> E:
        """Add, or renew: the same service of the same node keeps its turn, and the state of its breaker (§9.3). Returns
        the member that is in the list."""
        key = member.node_id, member.service
        known = self._by_service.get(key)
        if known is not None:
            known.renew(member)
            return known
        self._by_service[key] = member
        self._by_node.setdefault(member.node_id, []).append(member)
        member.offered = self
        self.changed()
        return member

    def drop(self, member: E) -> None:
        """Take out what was put in."""
        del self._by_service[member.node_id, member.service]
        others = self._by_node[member.node_id]
        others.remove(member)
        if not others:
            del self._by_node[member.node_id]
        self.changed()

    def changed(self) -> None:
        """Look at the members again before the next choice."""
        self._members = self._usable = None

    def of_node(self, node_id: str) -> Sequence[E]:
        """The members of one node, usable or not."""
        return self._by_node.get(node_id, ())

    def on_node(self, node_id: str) -> E | None:
        """The usable member of exactly that node."""
        return next((m for m in self.of_node(node_id) if m.available), None)

    def choose_on(self, node_id: str, ctx: Context | None = None) -> E | None:
        """The next usable member of one node by the strategy: several services of a node may share a group (§7.1)."""
        usable = [m for m in self.of_node(node_id) if m.available]
        if len(usable) < 2:
            return usable[0] if usable else None
        return self.strategy.choose(usable, ctx)

    def choose(self, prefer_local: bool = True, ctx: Context | None = None) -> E | None:
        """The next member by the strategy; the own node's first when there is one (§9.1). `ctx` is what the choice is
        for, as far as it is known."""
        usable = self._look() if self._usable is None else self._usable
        if len(usable) < 2:
            return usable[0] if usable else None
        if prefer_local and self._usable_here:
            return self.strategy.choose(self._usable_here, ctx)
        return self.strategy.choose(usable, ctx)

    def _look(self) -> list[E]:
        members = ([m for m in self.members if m.local] if self.internal else None) or self.members
        usable = [m for m in members if m.available]
        usable = [m for m in usable if m.node_id not in self.last_resort] or usable
        self._usable, self._usable_here = usable, [m for m in usable if m.local]
        return usable
