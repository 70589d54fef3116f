"""Who offers an action or listens to an event: endpoints and the lists that choose among them (protocol §9)."""

from collections.abc import Callable, Collection
from typing import Any, Generic, TypeVar

from broker.context import Context
from broker.middleware import Next
from broker.schema import ActionDefinition, EventDefinition
from broker.strategies.base import Strategy


class Endpoint:
    """One action on one node. `action` is set for the own node, `info` is the entry of a peer's INFO."""

    __slots__ = ("action", "asked_chain", "available", "chain", "info", "local", "name", "node_id", "service")

    def __init__(
        self, node_id: str, name: str, service: str, info: dict[str, Any], action: ActionDefinition | None = None
    ) -> None:
        self.node_id = node_id
        self.name = name
        self.service = service
        self.info = info
        self.action = action
        self.local = action is not None
        self.available = True
        """False while its circuit breaker keeps calls away."""
        self.chain: Next | None = None
        """What a call to it goes through, made by the first one."""
        self.asked_chain: Next | None = None
        """The same for calls that bring options of their own."""

    def renew(self, other: "Endpoint") -> None:
        """The service was announced again: take over what may have changed."""
        self.info, self.action, self.local = other.info, other.action, other.local
        self.chain = self.asked_chain = None

    @property
    def timeout_s(self) -> float | None:
        """The action's own default timeout; a peer announces it in milliseconds (§5.5)."""
        if self.action is not None:
            return self.action.timeout_s
        timeout = self.info.get("timeout")
        return timeout / 1000 if isinstance(timeout, int | float) and not isinstance(timeout, bool) else None


class Listener:
    """One event handler on one node. `event` is set for the own node."""

    __slots__ = ("available", "event", "group", "local", "name", "node_id", "service")

    def __init__(self, node_id: str, name: str, group: str, service: str, event: EventDefinition | None = None) -> None:
        self.node_id = node_id
        self.name = name
        self.group = group
        self.service = service
        self.event = event
        self.local = event is not None
        self.available = True

    def renew(self, other: "Listener") -> None:
        """The service was announced again: take over what may have changed."""
        self.event, self.local = other.event, other.local


E = TypeVar("E", Endpoint, Listener)


class Choices(Generic[E]):
    """The endpoints of one action, or the listeners of one pattern and group, in order of registration.

    Members on the nodes in `last_resort` are chosen when there is no other.
    """

    __slots__ = ("internal", "last_resort", "members", "name", "strategy")

    def __init__(self, name: str, strategy: Strategy, last_resort: Collection[str] = ()) -> None:
        self.name = name
        self.internal = name.startswith("$")
        """Whether only the own node's members are chosen while it has some (§9.1)."""
        self.strategy = strategy
        self.last_resort = last_resort
        self.members: list[E] = []

    def put(self, member: E) -> None:
        """Add, or renew: the same service of the same node keeps its turn, and the state of its breaker (§9.3)."""
        for other in self.members:
            if other.node_id == member.node_id and other.service == member.service:
                other.renew(member)
                return
        self.members.append(member)

    def drop(self, unwanted: Callable[[E], bool]) -> None:
        self.members = [member for member in self.members if not unwanted(member)]

    def on_node(self, node_id: str) -> E | None:
        """The usable member of exactly that node."""
        return next((m for m in self.members if m.node_id == node_id and m.available), None)

    def choose_on(self, node_id: str, ctx: Context | None = None) -> E | None:
        """The next usable member of one node by the strategy: several services of a node may share a group (§7.1)."""
        usable = [m for m in self.members if m.node_id == node_id and m.available]
        if len(usable) < 2:
            return usable[0] if usable else None
        return self.strategy.choose(usable, ctx)

    def choose(
        self, *, prefer_local: bool = True, without: Collection[str] = (), ctx: Context | None = None
    ) -> E | None:
        """The next member by the strategy; the own node's first when there is one (§9.1).

        `without` names nodes that were just found to be gone. `ctx` is what the choice is for, as far as it is known.
        """
        members = ([m for m in self.members if m.local] if self.internal else None) or self.members
        usable = [m for m in members if m.available and m.node_id not in without]
        if self.last_resort:
            usable = [m for m in usable if m.node_id not in self.last_resort] or usable
        if len(usable) < 2:
            return usable[0] if usable else None
        if prefer_local:
            local = [m for m in usable if m.local]
            if local:
                return self.strategy.choose(local, ctx)
        return self.strategy.choose(usable, ctx)
