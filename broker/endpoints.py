"""Who offers an action or listens to an event: endpoints and the lists that choose among them (protocol §9)."""

from collections.abc import Callable, Collection
from typing import Any, Generic, TypeVar

from broker.schema import ActionDefinition, EventDefinition
from broker.strategy import Strategy


class Endpoint:
    """One action on one node. `action` is set for the own node, `info` is the entry of a peer's INFO."""

    __slots__ = ("action", "available", "info", "local", "name", "node_id", "service")

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


E = TypeVar("E", Endpoint, Listener)


class Choices(Generic[E]):
    """The endpoints of one action, or the listeners of one pattern and group, in order of registration."""

    __slots__ = ("_cursor", "_local_cursor", "members", "name", "strategy")

    def __init__(self, name: str, strategy: Strategy) -> None:
        self.name = name
        self.strategy = strategy
        self.members: list[E] = []
        self._cursor = 0
        self._local_cursor = 0

    def put(self, member: E) -> None:
        """Add, or replace in place: the same service of the same node keeps its turn (§9.3)."""
        for index, other in enumerate(self.members):
            if other.node_id == member.node_id and other.service == member.service:
                self.members[index] = member
                return
        self.members.append(member)

    def drop(self, unwanted: Callable[[E], bool]) -> None:
        self.members = [member for member in self.members if not unwanted(member)]

    def on_node(self, node_id: str) -> E | None:
        """The usable member of exactly that node."""
        return next((m for m in self.members if m.node_id == node_id and m.available), None)

    def choose(self, *, prefer_local: bool = True, without: Collection[str] = ()) -> E | None:
        """The next member by the strategy; the own node's first when there is one (§9.1).

        `without` names nodes that were just found to be gone.
        """
        usable = [m for m in self.members if m.available and m.node_id not in without]
        if len(usable) < 2:
            return usable[0] if usable else None
        if prefer_local or self.name.startswith("$"):
            local = [m for m in usable if m.local]
            if local:
                index, self._local_cursor = self.strategy(local, self._local_cursor)
                return local[index]
        index, self._cursor = self.strategy(usable, self._cursor)
        return usable[index]
