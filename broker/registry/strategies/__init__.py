"""How one of several endpoints is chosen: an instance of a strategy for each action and each group of events (§9.2)."""

from collections.abc import Mapping
from typing import Any

from broker import defaults
from broker.errors import BrokerOptionsError
from broker.registry.strategies.base import Cluster, Strategy
from broker.registry.strategies.latencies import Latencies
from broker.registry.strategies.lowest import Lowest
from broker.registry.strategies.round_robin import RoundRobin
from broker.registry.strategies.shard import Shard
from broker.registry.strategies.uniform import Uniform
from broker.services.balancing import NAMES, WIRE, StrategyOptions, read_options, strategy_name
from broker.services.policies import from_wire


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
        changes = from_wire(given, WIRE) if isinstance(given, dict) else {}
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
