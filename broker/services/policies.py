"""How calls are retried, cut off, bounded and balanced: settings of the broker, of an action, and of a peer's INFO.

In Python times are seconds and names are Python's. On the wire they are those of Moleculer JS (protocol §3.2, §12).
"""

import contextlib
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from broker import defaults
from broker.errors import BrokerOptionsError
from broker.protocol.javascript import camel

Seconds = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0)]

NAMES = {name.lower(): name for name in ("RoundRobin", "Random", "CpuUsage", "Latency", "Shard")}
"""The strategies. A JS node that reads another name in an INFO drops that INFO, so no other can be set (§3.2)."""


class RetryPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a failed call is made again (§12.2). Waits grow by `factor` from `delay` to `max_delay`."""

    enabled: bool = False
    retries: Count = defaults.RETRIES
    delay: Seconds = defaults.RETRY_DELAY_S
    max_delay: Seconds = defaults.RETRY_MAX_DELAY_S
    factor: float = defaults.RETRY_FACTOR
    check: Any = None  # a function of the error that decides whether to try again; by default its `retryable` does


class CircuitBreakerPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When an endpoint is left alone (§12.3): when, of at least `min_request_count` calls in `window_time`, the share
    `threshold` failed. It is tried again after `half_open_time`."""

    enabled: bool = False
    threshold: Annotated[float, Meta(ge=0, le=1)] = defaults.BREAKER_THRESHOLD
    window_time: Annotated[float, Meta(gt=0)] = defaults.BREAKER_WINDOW_S
    min_request_count: Count = defaults.BREAKER_MIN_REQUESTS
    half_open_time: Seconds = defaults.BREAKER_HALF_OPEN_S
    check: Any = None  # a function of the error that decides whether it is a failure; by default a code from 500 on is


class BulkheadPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many calls of an action, or runs of an event handler, go on at once, and how many wait (§12.5)."""

    enabled: bool = False
    concurrency: Annotated[int, Meta(ge=1)] = defaults.BULKHEAD_CONCURRENCY
    max_queue_size: Count = defaults.BULKHEAD_QUEUE  # 0 for no bound


class StrategyOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of all strategies; each reads its own."""

    sample_count: int | None = None  # CpuUsage (3), Latency (5): how many endpoints to look at; 0 for all
    low_cpu_usage: float = defaults.CPU_USAGE_LOW_PERCENT  # CpuUsage: below this percentage one is taken at once
    low_latency: Seconds = defaults.LATENCY_LOW_S  # Latency: below this one is taken at once
    collect_count: Annotated[int, Meta(ge=1)] = defaults.LATENCY_COLLECT  # Latency: how many pings make the average
    ping_interval: Annotated[float, Meta(gt=0)] = defaults.LATENCY_PING_INTERVAL_S  # Latency: seconds between pings
    shard_key: Any = None  # Shard: a path into the params, `#path` into the meta, or a function of the context
    vnodes: Annotated[int, Meta(ge=1)] = defaults.SHARD_VNODES  # Shard: parts of the ring for each node
    ring_size: Annotated[int, Meta(ge=1)] | None = None  # Shard: hash values of the ring; 2^32 by default


P = TypeVar("P", RetryPolicy, CircuitBreakerPolicy, BulkheadPolicy, StrategyOptions)

_MILLISECONDS = ("delay", "max_delay", "half_open_time", "low_latency")
"""The options that are milliseconds on the wire and seconds here."""

POLICIES: dict[str, Any] = {
    "retry_policy": RetryPolicy,
    "circuit_breaker": CircuitBreakerPolicy,
    "bulkhead": BulkheadPolicy,
}


def merge(policy: P, changes: Mapping[str, Any] | None) -> P:
    """The policy with some settings changed. Raises BrokerOptionsError for one that it does not have or that does not
    fit."""
    if not changes:
        return policy
    try:
        return msgspec.convert({**msgspec.structs.asdict(policy), **changes}, type(policy))
    except msgspec.ValidationError as error:
        option = next((name for name, kind in POLICIES.items() if isinstance(policy, kind)), "strategy_options")
        settings = ", ".join(policy.__struct_fields__)
        raise BrokerOptionsError(
            f"{option} cannot be {dict(changes)}: {error}. The settings of a {type(policy).__name__} are {settings}."
        ) from None


def announced_policies(info: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What an action of a peer's INFO says about calling it. What makes no sense is left out."""
    found: dict[str, dict[str, Any]] = {}
    for name in ("retry_policy", "circuit_breaker"):
        given = info.get(camel(name))
        if isinstance(given, dict):
            changes = from_wire(given, POLICIES[name])
            with contextlib.suppress(BrokerOptionsError):
                merge(POLICIES[name](), changes)
                found[name] = changes
    return found


def announce_policies(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The policies of an own action, or event, in the words of INFO."""
    return {camel(name): to_wire(settings[name]) for name in POLICIES if settings.get(name)}


def from_wire(given: Mapping[str, Any], kind: type[Struct]) -> dict[str, Any]:
    """Options in Python's names and units; those that are not of the `kind`, and `check`, are left out."""
    changes: dict[str, Any] = {}
    for name in kind.__struct_fields__:
        value = given.get(camel(name))
        if value is not None and name != "check":
            is_time = name in _MILLISECONDS and isinstance(value, int | float)
            changes[name] = value / 1000 if is_time else value
    return changes


def to_wire(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options in the names and units of the wire."""
    given = {name: value for name, value in options.items() if value is not None}
    return {camel(name): value * 1000 if name in _MILLISECONDS else value for name, value in given.items()}


def strategy_name(name: str) -> str:
    """The strategy's name as it is spelt. Raises BrokerOptionsError for an unknown one."""
    known = NAMES.get(name.lower()) if isinstance(name, str) else None
    if known is None:
        raise BrokerOptionsError(f"The strategy {name!r} is not known. Known are: {', '.join(NAMES.values())}.")
    return known


def announcement(strategy: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """`strategy` and `strategyOptions` of an action or event, in the words of INFO. Raises BrokerOptionsError."""
    if strategy is None:
        return {}
    merge(StrategyOptions(), options)
    return {"strategy": strategy_name(strategy), "strategyOptions": to_wire(options)}


def without_functions(options: Any) -> Any:
    """The part of an announcement that can travel: a function such as `check` or a shard key cannot."""
    if not isinstance(options, dict):
        return options
    return {name: without_functions(value) for name, value in options.items() if not callable(value)}
