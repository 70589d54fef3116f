"""The least loaded endpoint of a sample: how CpuUsage and Latency choose (moleculer protocol §9.2)."""

import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

E = TypeVar("E")


class Lowest:
    """Looks at `sample_count` endpoints at random, the same one perhaps twice; at all of them, in order, when that is
    not fewer than there are, or 0. The first whose load is below `low` wins at once, else the lowest load seen. When
    no load is known, any endpoint."""

    def __init__(self, load_of: Callable[[str], float | None], *, sample_count: int, low: float) -> None:
        self._load_of = load_of
        self._sample_count = sample_count
        self._low = low

    def choose(self, endpoints: Sequence[E], ctx: Any) -> E:
        best: E | None = None
        lowest = 0.0
        for endpoint in self._sample(endpoints):
            node_id: str = endpoint.node_id  # type: ignore[attr-defined]  # endpoints and listeners have one
            load = self._load_of(node_id)
            if load is None:
                continue
            if load < self._low:
                return endpoint
            if best is None or load < lowest:
                best, lowest = endpoint, load
        return random.choice(endpoints) if best is None else best

    def _sample(self, endpoints: Sequence[E]) -> Sequence[E]:
        if not 0 < self._sample_count < len(endpoints):
            return endpoints
        return random.choices(endpoints, k=self._sample_count)
