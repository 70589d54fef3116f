"""How one of several endpoints is chosen, and which strategy an INFO asks for (protocol §3.2, §9.2)."""

import random
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from broker.errors import BrokerOptionsError
from broker.registry.nodes import Latencies
from broker.registry.strategies import RING_SIZE, Lowest, Ring, RoundRobin, Shard, StrategyMaker, Uniform
from broker.services.policies import (
    NAMES,
    StrategyOptions,
    announcement,
    strategy_name,
    without_functions,
)


@dataclass(frozen=True)
class Place:
    node_id: str


# By name


def maker(name: str = "RoundRobin", **options: Any) -> StrategyMaker:
    return StrategyMaker({}, Latencies(), name, options)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("roundrobin", RoundRobin),
        ("RANDOM", Uniform),
        ("CpuUsage", Lowest),
        ("latency", Lowest),
        ("Shard", Shard),
    ],
)
def test_c75_names_are_known_in_any_case(name: str, kind: type) -> None:
    assert isinstance(maker(name).announced({}), kind)
    assert isinstance(maker().announced({"strategy": name}), kind)


def test_c75_every_list_has_a_strategy_of_its_own() -> None:
    made = maker()
    assert made.announced({}) is not made.announced({})


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BrokerOptionsError, match=r"'Fastest' is not known.*RoundRobin.*Shard"):
        maker("Fastest")
    with pytest.raises(BrokerOptionsError, match="vnodes"):
        maker("Shard", vnodes=0)
    with pytest.raises(BrokerOptionsError, match="unknown field"):
        maker("Shard", vNodes=5)


@pytest.mark.parametrize("info", [{}, {"strategy": None}, {"strategy": "Homemade"}, {"strategy": 5}, {"strategy": {}}])
def test_what_a_peer_asks_for_and_is_not_known_is_the_default(info: dict[str, Any]) -> None:
    assert isinstance(maker("Random").announced(info), Uniform)


@pytest.mark.parametrize("options", [None, 5, [], {"shardKey": 5, "vnodes": "many"}, {"vnodes": -1}, {"other": 1}])
def test_options_of_a_peer_that_make_no_sense_are_left_out(options: Any) -> None:
    assert isinstance(maker().announced({"strategy": "Shard", "strategyOptions": options}), Shard)


def test_options_of_a_peer_are_in_the_words_and_units_of_js() -> None:
    latencies = Latencies()
    made = StrategyMaker({}, latencies, "RoundRobin", {})
    made.announced({"strategy": "Latency", "strategyOptions": {"pingInterval": 3, "lowLatency": 20, "sampleCount": 0}})
    assert (latencies.used, latencies.ping_interval_s) == (True, 3)


def test_c25_only_names_that_js_knows_are_announced() -> None:
    for name in NAMES.values():
        assert announcement(name.upper(), {}) == {"strategy": name, "strategyOptions": {}}
    with pytest.raises(BrokerOptionsError):
        announcement("Homemade", {})
    assert announcement(None, {"vnodes": 1}) == {}
    assert strategy_name("cpuusage") == "CpuUsage"


def test_options_are_announced_in_the_words_of_js_without_functions() -> None:
    announced = announcement("Shard", {"shard_key": lambda ctx: 1, "vnodes": 5, "low_latency": 0.02})
    assert without_functions(announced)["strategyOptions"] == {"vnodes": 5, "lowLatency": 20}
    assert callable(announced["strategyOptions"]["shardKey"])


def test_the_defaults_are_those_of_the_reference() -> None:
    options = StrategyOptions()
    assert (options.vnodes, options.ring_size, options.low_cpu_usage) == (10, None, 10)
    assert (options.low_latency, options.collect_count, options.ping_interval) == (0.01, 5, 10)


# RoundRobin and Random


def test_c75_round_robin_takes_one_after_the_other() -> None:
    strategy = RoundRobin()
    assert "".join(strategy.choose("abc", None) for _ in range(7)) == "abcabca"


def test_c75_round_robin_starts_again_when_the_list_became_shorter() -> None:
    strategy = RoundRobin()
    assert [strategy.choose("abc", None) for _ in range(2)] == ["a", "b"]
    assert strategy.choose("ab", None) == "a"
    assert strategy.choose("abc", None) == "b"


def test_c75_random_chooses_every_endpoint_about_as_often() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - a randomised test prints its seed
    random.seed(seed)
    counts = Counter(Uniform().choose("abc", None) for _ in range(3000))
    assert set(counts) == set("abc")
    assert min(counts.values()) > 700


# CpuUsage and Latency: samples, a limit below which one is good enough, else the lowest


A, B, C, D = abcd = [Place(name) for name in "abcd"]


def lowest(loads: dict[str, float], *, samples: int = 0, low: float = 10) -> Lowest:
    return Lowest(loads.get, samples, low)


def test_c75_the_first_below_the_limit_wins_at_once_even_if_another_is_lower() -> None:
    assert lowest({"a": 50, "b": 9, "c": 1}).choose(abcd, None) is B


def test_c75_without_one_below_the_limit_the_lowest_wins() -> None:
    assert lowest({"a": 50, "b": 40, "c": 10, "d": 20}).choose(abcd, None) is C


def test_c75_the_limit_itself_is_not_below_it() -> None:
    assert lowest({"a": 10, "b": 5}).choose(abcd, None) is B


def test_c75_unknown_loads_do_not_count() -> None:
    assert lowest({"d": 99}).choose(abcd, None) is D
    assert lowest({"a": 0.0, "b": 0.0}, low=0).choose(abcd, None) is A


def test_c75_with_no_data_any_is_chosen() -> None:
    assert set(Counter(lowest({}).choose(abcd, None) for _ in range(500))) == set(abcd)


@pytest.mark.parametrize("samples", [0, -1, 4, 9])
def test_c75_all_are_looked_at_in_order_when_samples_would_not_be_fewer(samples: int) -> None:
    chosen = {lowest({"a": 11, "b": 12, "c": 13, "d": 11}, samples=samples).choose(abcd, None) for _ in range(50)}
    assert chosen == {A}


def test_c75_fewer_samples_look_at_random_abcd() -> None:
    counts = Counter(lowest({"a": 11, "b": 12, "c": 13, "d": 14}, samples=1).choose(abcd, None) for _ in range(2000))
    assert set(counts) == set(abcd)
    assert min(counts.values()) > 300


# Shard: consistent hashing as JS nodes do it, with the vectors of the reference


nodes = [Place("node-b"), Place("node-a"), Place("node-c")]


def ring(*names: str, vnodes: int = 10, size: int | None = None) -> Ring:
    return Ring(names or ("node-b", "node-a", "node-c"), vnodes, size)


def shard(key: Any = "id", ring_size: int | None = None) -> Shard:
    return Shard(StrategyOptions(shard_key=key, ring_size=ring_size))


def call(params: Any = None, meta: Any = None) -> Any:
    return SimpleNamespace(params=params, meta=meta or {})


@pytest.mark.parametrize(
    ("key", "hashed", "node_id"),
    [
        ("1", 3301589560, "node-c"),
        ("2", 3357438605, "node-c"),
        ("3", 3972778110, "node-a"),
        ("7", 2400511071, "node-b"),
        ("10", 3554231400, "node-a"),
        ("abc", 2416005272, "node-b"),
        ("user-42", 1982970887, "node-b"),
    ],
)
def test_c75_shard_vectors(key: str, hashed: int, node_id: str) -> None:
    assert ring().hash_of(key) == hashed
    assert ring().node_of(key) == node_id
    assert shard().choose(nodes, call({"id": key})).node_id == node_id


def test_c75_the_ring_has_the_keys_of_the_reference() -> None:
    assert ring().keys[:3] == [143165576, 286331153, 429496729]
    assert (len(ring().keys), ring().keys[-1]) == (30, RING_SIZE)
    assert sorted(ring().keys) == ring().keys


def test_c75_a_ring_of_a_size_takes_hashes_by_modulo() -> None:
    small = ring(size=100, vnodes=2)
    assert small.hash_of("1") == 60
    assert small.keys == [16, 33, 50, 66, 83, 100]
    assert small.node_of("1") == "node-a"
    assert shard(ring_size=100).choose(nodes, call({"id": "1"})).node_id in {"node-a", "node-b", "node-c"}


def test_nodes_are_sorted_by_code_unit_as_js_sorts() -> None:
    assert Ring(("\ufffd", "\U0001f600", "B", "a"), 1, None)._names == ["B", "a", "\U0001f600", "\ufffd"]


@pytest.mark.parametrize(
    ("key", "params", "meta"),
    [
        ("id", {"id": 7}, {}),
        ("user.id", {"user": {"id": "7"}}, {}),
        ("#user.id", None, {"user": {"id": 7}}),
        (lambda ctx: ctx.meta["n"] - 1, None, {"n": 8}),
        ("id", {"id": 7.0}, {}),
    ],
)
def test_c75_where_the_key_comes_from(key: Any, params: Any, meta: dict[str, Any]) -> None:
    strategy = shard(key)
    assert {strategy.choose(nodes, call(params, meta)).node_id for _ in range(20)} == {"node-b"}


@pytest.mark.parametrize(
    ("key", "params"),
    [("id", {}), ("id", {"id": None}), ("id", None), (None, {"id": 1}), ("#a", {}), ("a.b", {"a": 1})],
)
def test_c75_without_a_key_any_node_is_chosen(key: str | None, params: Any) -> None:
    strategy = shard(key)
    assert {strategy.choose(nodes, call(params)) for _ in range(300)} == set(nodes)
    assert {strategy.choose(nodes, None) for _ in range(300)} == set(nodes)


def test_a_node_that_is_gone_gives_its_keys_to_others_and_takes_them_back() -> None:
    strategy, seven = shard(), call({"id": "7"})
    assert strategy.choose(nodes, seven).node_id == "node-b"
    assert strategy.choose(nodes[1:], seven).node_id in {"node-a", "node-c"}
    assert strategy.choose(nodes, seven).node_id == "node-b"


def test_c75_a_hash_on_the_border_of_two_slices_belongs_to_the_lower_one() -> None:
    """As in JS: the live test of the same name compares both."""
    small = ring("node-a", "node-b", vnodes=10, size=20)
    names = {small.hash_of(key): small.node_of(key) for key in map(str, range(200))}
    assert names == {number: "node-a" if number in (0, *range(1, 20, 2)) else "node-b" for number in range(20)}
