"""How callers are to choose among the endpoints of an action or event: the strategy it announces (protocol §9.2).

`RoundRobin`, `Random`, `CpuUsage`, `Latency`, `Shard`. A JS node that reads another name in an INFO drops that INFO, so
no other name can be set (§3.2).
"""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from broker import defaults
from broker.errors import BrokerOptionsError
from broker.services.policies import to_wire

NAMES = {name.lower(): name for name in ("RoundRobin", "Random", "CpuUsage", "Latency", "Shard")}

Seconds = Annotated[float, Meta(ge=0)]


class StrategyOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of all strategies; each reads its own."""

    sample_count: int | None = None
    """CpuUsage (3), Latency (5): how many endpoints to look at; 0 for all."""
    low_cpu_usage: float = defaults.CPU_USAGE_LOW_PERCENT
    """CpuUsage: an endpoint below this is taken at once. Percent."""
    low_latency: Seconds = defaults.LATENCY_LOW_S
    """Latency: an endpoint below this is taken at once. Seconds."""
    collect_count: Annotated[int, Meta(ge=1)] = defaults.LATENCY_COLLECT
    """Latency: the times of how many pings make the average."""
    ping_interval: Annotated[float, Meta(gt=0)] = defaults.LATENCY_PING_INTERVAL_S
    """Latency: seconds between pings."""
    shard_key: Any = None
    """Shard: a path into the params, `#path` into the meta, or a function of the context."""
    vnodes: Annotated[int, Meta(ge=1)] = defaults.SHARD_VNODES
    """Shard: parts of the ring for each node."""
    ring_size: Annotated[int, Meta(ge=1)] | None = None
    """Shard: hash values of the ring; 2^32 by default."""


def strategy_name(name: str) -> str:
    """The strategy's name as it is spelt. Raises BrokerOptionsError for an unknown one."""
    try:
        return NAMES[name.lower()]
    except (KeyError, AttributeError):
        raise BrokerOptionsError(
            f"The strategy {name!r} is not known. Known are: {', '.join(NAMES.values())}."
        ) from None


def read_options(options: Mapping[str, Any]) -> StrategyOptions:
    """Raises BrokerOptionsError for an option that no strategy has, or that does not fit."""
    try:
        return msgspec.convert(dict(options), StrategyOptions)
    except msgspec.ValidationError as error:
        raise BrokerOptionsError(f"The strategy options do not fit: {error}.") from None


def announcement(strategy: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """`strategy` and `strategyOptions` as an action or event announces them. Raises BrokerOptionsError."""
    if strategy is None:
        return {}
    read_options(options)
    return {"strategy": strategy_name(strategy), "strategyOptions": to_wire(options)}


def for_info(announced: Mapping[str, Any]) -> dict[str, Any]:
    """The part of it that can travel: a function as the shard key cannot."""
    options = {key: value for key, value in announced.get("strategyOptions", {}).items() if not callable(value)}
    return {**announced, "strategyOptions": options} if announced else {}
