"""Which nodes offer an action or listen to an event: endpoints, and the lists that choose among them (protocol §9)."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Optional, TypeVar

from broker.context import Context, Next
from broker.registry.strategies import Strategy
from broker.services.schema import ActionDefinition, EventDefinition


@dataclass(slots=True, eq=False)
class Endpoint:
    """One action on one node. `action` is set for the own node, `info` is the entry of a peer's INFO."""

    group: ClassVar[str] = ""

    node_id: str
    name: str
    service: str
    info: dict[str, Any]
    action: ActionDefinition | None = None
    chain: Next | None = None
    """What a call to it goes through, made by the first one."""
    subject: str = ""
    """Where requests to it are published, set by the first one."""
    offered: Optional["EndpointList[Endpoint]"] = None
    """The list that it is in; None when it is offered no more."""
    available: bool = True
    """False while its circuit breaker keeps calls away."""
    circuit: Any = None
    """The state of its circuit breaker, made by the first call where there is one."""
    local: bool = field(init=False)
    timeout_s: float | None = field(init=False)
    """The action's own default timeout; a peer announces it in milliseconds (§5.5)."""

    def __post_init__(self) -> None:
        self.renew(self)

    def set_available(self, *, available: bool) -> None:
        """Let calls come, or keep them away."""
        self.available = available
        if self.offered is not None:
            self.offered.changed()

    def renew(self, other: "Endpoint") -> None:
        """Take over what may have changed when the service was announced again."""
        self.info, self.action, self.local, self.chain = other.info, other.action, other.action is not None, None
        if other.action is not None:
            self.timeout_s = other.action.timeout_s
        else:
            ms = other.info.get("timeout")
            self.timeout_s = ms / 1000 if isinstance(ms, int | float) and not isinstance(ms, bool) else None


@dataclass(slots=True, eq=False)
class EventEndpoint:
    """One event handler on one node. `event` is set for the own node."""

    available: ClassVar[bool] = True

    node_id: str
    name: str
    group: str
    service: str
    event: EventDefinition | None = None
    offered: Optional["EndpointList[EventEndpoint]"] = None
    """The list that it is in; None when it is offered no more."""

    @property
    def local(self) -> bool:
        return self.event is not None

    def renew(self, other: "EventEndpoint") -> None:
        """Take over what may have changed when the service was announced again."""
        self.event = other.event


E = TypeVar("E", Endpoint, EventEndpoint)


class EndpointList(Generic[E]):
    """The endpoints of one action, or the listeners of one pattern and `group`, by node in order of registration.

    Members on the nodes in `last_resort` are chosen when there is no other, and with `prefer_local` those of the own
    node first (§9.1). Which can be chosen is worked out after each change, not for each call.
    """

    __slots__ = ("_by_node", "_eligible", "group", "internal", "last_resort", "name", "prefer_local", "strategy")

    def __init__(
        self,
        name: str,
        strategy: Strategy,
        last_resort: Collection[str] = (),
        group: str = "",
        *,
        prefer_local: bool = True,
    ) -> None:
        self.name, self.group, self.strategy = name, group, strategy
        self.last_resort, self.prefer_local = last_resort, prefer_local
        self.internal = name.startswith("$")
        """Whether only the own node's members are chosen while it has some (§9.1)."""
        self._by_node: dict[str, dict[str, E]] = {}
        """The members by node and service."""
        self._eligible: Sequence[E] | None = None
        """What the strategy chooses among; None after a change."""

    def __bool__(self) -> bool:
        return bool(self._by_node)

    @property
    def members(self) -> Sequence[E]:
        """All of them, usable or not."""
        return [member for members in self._by_node.values() for member in members.values()]

    def put(self, member: E) -> E:
        """Add, or renew: the same service of the same node keeps its turn, and the state of its breaker (§9.3). Returns
        the member that is in the list."""
        known = self._by_node.setdefault(member.node_id, {}).setdefault(member.service, member)
        if known is member:
            member.offered = self
            self.changed()
        else:
            known.renew(member)
        return known

    def drop(self, member: E) -> None:
        """Take out a member."""
        members = self._by_node[member.node_id]
        del members[member.service]
        if not members:
            del self._by_node[member.node_id]
        member.offered = None
        self.changed()

    def changed(self) -> None:
        """Look at the members again before the next choice."""
        self._eligible = None

    def of_node(self, node_id: str) -> Sequence[E]:
        """The members of one node, usable or not."""
        return list(self._by_node.get(node_id, {}).values())

    def on_node(self, node_id: str) -> E | None:
        """The usable member of exactly that node."""
        return next((member for member in self.of_node(node_id) if member.available), None)

    def choose_on(self, node_id: str, ctx: Context | None = None) -> E | None:
        """The next usable member of one node by the strategy: several services of a node may share a group (§7.1)."""
        usable = [member for member in self.of_node(node_id) if member.available]
        return self.strategy.choose(usable, ctx) if len(usable) > 1 else next(iter(usable), None)

    def choose(self, ctx: Context | None = None) -> E | None:
        """The next usable member by the strategy, for the call or event of `ctx`."""
        eligible = self._find_eligible() if self._eligible is None else self._eligible
        if len(eligible) < 2:
            return eligible[0] if eligible else None
        return self.strategy.choose(eligible, ctx)

    def _find_eligible(self) -> Sequence[E]:
        members = self.members
        if self.internal:
            members = [member for member in members if member.local] or members
        members = [member for member in members if member.available]
        members = [member for member in members if member.node_id not in self.last_resort] or members
        if self.prefer_local:
            members = [member for member in members if member.local] or members
        self._eligible = members
        return members
