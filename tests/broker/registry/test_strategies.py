"""Strategies are known by their Moleculer names; what an INFO asks for is done if it makes sense (§3.2, §9.2)."""

from typing import Any

import pytest

from broker.errors import BrokerOptionsError
from broker.registry.nodes import Latencies
from broker.registry.strategies import Lowest, RoundRobin, Shard, StrategyMaker, Uniform
from broker.services.policies import NAMES, announcement, read_options, strategy_name, without_functions


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
    options = read_options({})
    assert (options.vnodes, options.ring_size, options.low_cpu_usage) == (10, None, 10)
    assert (options.low_latency, options.collect_count, options.ping_interval) == (0.01, 5, 10)
