"""How one of several endpoints is chosen: an instance of a strategy for each action and each group of events (§9.2)."""

import bisect
import hashlib
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from broker import defaults
from broker.errors import BrokerOptionsError
from broker.protocol.javascript import MISSING, dig, text
from broker.services.policies import NAMES, StrategyOptions, from_wire, read_options, strategy_name

E = TypeVar("E")

ShardKey = str | Callable[[Any], Any]
"""A path into the params, `#path` into the meta, or a function of the context."""

RING_SIZE = 2**32


class Strategy(Protocol):
    """Each action name, and each pattern and group of events, has an instance of its own."""

    def choose(self, endpoints: Sequence[E], ctx: Any) -> E:
        """One of the usable endpoints, of which there is at least one. `ctx` is the context of the call or event."""


class Cluster(Protocol):
    """What strategies may know of the nodes."""

    def cpu_of(self, node_id: str) -> float | None:
        """How busy a node said it is, in percent; None when it did not say."""

    def latency_of(self, node_id: str) -> float | None:
        """How long the host of a node takes to answer a ping, in seconds; None when it is not known."""


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


class Latencies:
    """The last elapsed times of each host, and their average. One for all strategies of a node.

    `on_use` is called when the first strategy needs it: from then on hosts have to be pinged.
    """

    def __init__(self) -> None:
        self.used = False
        self.on_use: Callable[[], None] = lambda: None
        self.ping_interval_s = 0.0
        self._collect = 0
        self._times: dict[str, deque[float]] = {}
        self._averages: dict[str, float] = {}

    def use(self, *, collect_count: int, ping_interval_s: float) -> None:
        """A strategy starts to ask; the first one's options count."""
        if not self.used:
            self.used, self._collect, self.ping_interval_s = True, collect_count, ping_interval_s
            self.on_use()

    def record(self, host: str, elapsed_s: float) -> None:
        """A ping was answered."""
        if not self.used:
            return
        times = self._times.setdefault(host, deque(maxlen=self._collect))
        times.append(elapsed_s)
        self._averages[host] = sum(times) / len(times)

    def average(self, host: str | None) -> float | None:
        return self._averages.get(host) if host is not None else None

    def forget(self, host: str) -> None:
        """The last node of a host is gone."""
        self._times.pop(host, None)
        self._averages.pop(host, None)


class Ring:
    """Hash values, and which node has those up to each: consistent hashing. JS nodes compute the same ring, so callers
    in both languages send a key to the same node."""

    def __init__(self, node_ids: Sequence[str], vnodes: int, size: int | None) -> None:
        self.node_ids = tuple(node_ids)
        names = sorted(node_ids, key=lambda name: name.encode("utf-16-be"))  # as JS sorts: by code unit
        total = len(names) * vnodes
        whole = size or RING_SIZE
        self.keys = [int(whole / total * number) for number in range(1, total + 1)]
        self.keys[-1] = whole
        self._names = names
        self._size = size

    def hash_of(self, key: str) -> int:
        value = int(hashlib.md5(key.encode(), usedforsecurity=False).hexdigest()[:8], 16)
        return value % self._size if self._size else value

    def node_of(self, key: str) -> str:
        index = bisect.bisect_left(self.keys, self.hash_of(key))
        return self._names[index % len(self._names)]


class Shard:
    """A call without a key goes to any node. The ring is that of the nodes that are usable: while a breaker keeps one
    out, its keys go to others."""

    def __init__(self, *, shard_key: ShardKey | None, vnodes: int, ring_size: int | None) -> None:
        self._shard_key = shard_key
        self._vnodes = vnodes
        self._ring_size = ring_size
        self._ring: Ring | None = None

    def choose(self, endpoints: Sequence[E], ctx: Any) -> E:
        key = self._key(ctx)
        if key is None or key is MISSING:
            return random.choice(endpoints)
        node_ids = tuple(endpoint.node_id for endpoint in endpoints)  # type: ignore[attr-defined]  # both kinds have one
        if self._ring is None or self._ring.node_ids != node_ids:
            self._ring = Ring(node_ids, self._vnodes, self._ring_size)
        return endpoints[node_ids.index(self._ring.node_of(text(key)))]

    def _key(self, ctx: Any) -> Any:
        if not self._shard_key or ctx is None:
            return None
        if callable(self._shard_key):
            return self._shard_key(ctx)
        if self._shard_key.startswith("#"):
            return dig(ctx.meta, self._shard_key[1:])
        return dig(ctx.params, self._shard_key)


class StrategyMaker:
    """Makes strategies of one node."""

    def __init__(self, cluster: Cluster, latencies: Latencies, name: str, options: Mapping[str, Any]) -> None:
        self._cluster = cluster
        self._latencies = latencies
        self._default = (strategy_name(name), read_options(options))

    def default(self) -> Strategy:
        """The strategy of the broker's options."""
        return self._make(*self._default)

    def announced(self, info: Mapping[str, Any]) -> Strategy:
        """The one that an action or event of an INFO asks for, else the default; so too when it makes no sense."""
        name = info.get("strategy")
        name = NAMES.get(name.lower()) if isinstance(name, str) else None
        if name is None:
            return self.default()
        given = info.get("strategyOptions")
        changes = from_wire(given, StrategyOptions) if isinstance(given, dict) else {}
        try:
            options = read_options(changes)
        except BrokerOptionsError:
            options = StrategyOptions()
        return self._make(name, options)

    def _make(self, name: str, options: StrategyOptions) -> Strategy:
        match name:
            case "Random":
                return Uniform()
            case "CpuUsage":
                count = defaults.CPU_USAGE_SAMPLES if options.sample_count is None else options.sample_count
                return Lowest(self._cluster.cpu_of, sample_count=count, low=options.low_cpu_usage)
            case "Latency":
                self._latencies.use(collect_count=options.collect_count, ping_interval_s=options.ping_interval)
                count = defaults.LATENCY_SAMPLES if options.sample_count is None else options.sample_count
                return Lowest(self._cluster.latency_of, sample_count=count, low=options.low_latency)
            case "Shard":
                return Shard(shard_key=options.shard_key, vnodes=options.vnodes, ring_size=options.ring_size)
        return RoundRobin()
