"""How one of several endpoints is chosen: an instance of a strategy for each action and each group of events (§9.2)."""

import bisect
import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from broker import defaults
from broker.errors import BrokerOptionsError
from broker.protocol.javascript import MISSING, dig, text
from broker.registry.nodes import KnownNode, Latencies
from broker.services.policies import NAMES, StrategyOptions, from_wire, merge, strategy_name

E = TypeVar("E")

LoadOf = Callable[[str], float | None]
"""How loaded a node is, by its id; None when that is not known."""

RING_SIZE = 2**32


class Strategy(Protocol):
    """Each action name, and each pattern and group of events, has an instance of its own."""

    def choose(self, endpoints: Sequence[E], ctx: Any) -> E:
        """One of the usable endpoints, of which there is at least one. `ctx` is the context of the call or event."""


class RoundRobin:
    """One endpoint after the other. Starts again when the list has become shorter than its place in it."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, endpoints: Sequence[E], ctx: Any) -> E:
        index = self._next if self._next < len(endpoints) else 0
        self._next = index + 1
        return endpoints[index]


class Uniform:
    """Any endpoint, with equal chances: `Random` in the words of Moleculer."""

    def choose(self, endpoints: Sequence[E], ctx: Any) -> E:
        return random.choice(endpoints)


class Lowest:
    """The least loaded endpoint of a sample: CpuUsage and Latency. Looks at `sample_count` endpoints at random, the
    same one perhaps twice; at all of them, in order, when that is not fewer than there are, or 0. The first whose load
    is below `low` wins at once, else the lowest load seen. When no load is known, any endpoint."""

    def __init__(self, load_of: LoadOf, sample_count: int, low: float) -> None:
        self._load_of, self._sample_count, self._low = load_of, sample_count, low

    def choose(self, endpoints: Sequence[E], ctx: Any) -> E:
        sample = endpoints
        if 0 < self._sample_count < len(endpoints):
            sample = random.choices(endpoints, k=self._sample_count)
        best: E | None = None
        lowest = 0.0
        for endpoint in sample:
            load = self._load_of(endpoint.node_id)  # type: ignore[attr-defined]  # endpoints and listeners have one
            if load is None:
                continue
            if load < self._low:
                return endpoint
            if best is None or load < lowest:
                best, lowest = endpoint, load
        return random.choice(endpoints) if best is None else best


class Ring:
    """Consistent hashing: which node has the hash values up to each key. JS nodes compute the same ring, so callers in
    both languages send a shard key to the same node."""

    def __init__(self, node_ids: Sequence[str], vnodes: int, size: int | None) -> None:
        self.node_ids = tuple(node_ids)
        self._names = sorted(node_ids, key=lambda name: name.encode("utf-16-be"))  # as JS sorts: by code unit
        self._size = size
        total, whole = len(node_ids) * vnodes, size or RING_SIZE
        self.keys = [int(whole / total * number) for number in range(1, total)] + [whole]

    def hash_of(self, key: str) -> int:
        value = int(hashlib.md5(key.encode(), usedforsecurity=False).hexdigest()[:8], 16)
        return value % self._size if self._size else value

    def node_of(self, key: str) -> str:
        return self._names[bisect.bisect_left(self.keys, self.hash_of(key)) % len(self._names)]


class Shard:
    """The node that a key of the call or event belongs to; any node without a key. The ring is that of the nodes that
    are usable: while a breaker keeps one out, its keys go to others."""

    def __init__(self, options: StrategyOptions) -> None:
        self._options = options
        self._ring: Ring | None = None

    def choose(self, endpoints: Sequence[E], ctx: Any) -> E:
        key = self._key(ctx)
        if key is None or key is MISSING:
            return random.choice(endpoints)
        node_ids = tuple(endpoint.node_id for endpoint in endpoints)  # type: ignore[attr-defined]  # both kinds have one
        if self._ring is None or self._ring.node_ids != node_ids:
            self._ring = Ring(node_ids, self._options.vnodes, self._options.ring_size)
        return endpoints[node_ids.index(self._ring.node_of(text(key)))]

    def _key(self, ctx: Any) -> Any:
        key = self._options.shard_key
        if not key or ctx is None:
            return None
        if callable(key):
            return key(ctx)
        return dig(ctx.meta, key[1:]) if key.startswith("#") else dig(ctx.params, key)


class StrategyMaker:
    """Makes the strategies of one node; `name` and `options` are those of the broker."""

    def __init__(
        self, nodes: Mapping[str, KnownNode], latencies: Latencies, name: str, options: Mapping[str, Any]
    ) -> None:
        self._nodes, self._latencies = nodes, latencies
        self._default = strategy_name(name), merge(StrategyOptions(), options)

    def announced(self, info: Mapping[str, Any]) -> Strategy:
        """The strategy that an action or event of an INFO asks for. That of the broker when it asks for none that is
        known, and the default options when those it gives do not fit."""
        asked, given = info.get("strategy"), info.get("strategyOptions")
        name = NAMES.get(asked.lower()) if isinstance(asked, str) else None
        if name is None:
            return self._make(*self._default)
        try:
            changes = from_wire(given, StrategyOptions) if isinstance(given, dict) else {}
            return self._make(name, merge(StrategyOptions(), changes))
        except BrokerOptionsError:
            return self._make(name, StrategyOptions())

    def _make(self, name: str, options: StrategyOptions) -> Strategy:
        samples = options.sample_count
        match name:
            case "Random":
                return Uniform()
            case "CpuUsage":
                samples = defaults.CPU_USAGE_SAMPLES if samples is None else samples
                return Lowest(lambda node_id: self._nodes[node_id].cpu, samples, options.low_cpu_usage)
            case "Latency":
                self._latencies.use(collect_count=options.collect_count, ping_interval_s=options.ping_interval)
                samples = defaults.LATENCY_SAMPLES if samples is None else samples
                average, nodes = self._latencies.average, self._nodes
                return Lowest(lambda node_id: average(nodes[node_id].hostname), samples, options.low_latency)
            case "Shard":
                return Shard(options)
        return RoundRobin()
