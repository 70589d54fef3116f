"""What a strategy is: it chooses one of several endpoints (moleculer protocol §9.2)."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

E = TypeVar("E")


class Strategy(Protocol):
    """Each action name, and each pattern and group of events, has an instance of its own."""

    def choose(self, endpoints: Sequence[E], ctx: Any) -> E:
        """One of the usable endpoints, which are never none. `ctx` is the context of the call or event."""
        ...


class Cluster(Protocol):
    """What strategies may know of the nodes."""

    def cpu_of(self, node_id: str) -> float | None:
        """How busy a node said it is, in percent; None when it did not say."""
        ...

    def latency_of(self, node_id: str) -> float | None:
        """How long the host of a node takes to answer a ping, in seconds; None when nobody knows."""
        ...
