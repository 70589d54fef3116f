"""The scheme of CpuUsage and Latency: samples, a limit below which one is good enough, else the lowest (§9.2)."""

from collections import Counter
from dataclasses import dataclass

import pytest

from broker.registry.strategies import Lowest


@dataclass(frozen=True)
class Place:
    node_id: str


A, B, C, D = places = [Place(name) for name in "abcd"]


def lowest(loads: dict[str, float], *, samples: int = 0, low: float = 10) -> Lowest:
    return Lowest(loads.get, samples, low)


def test_c75_the_first_below_the_limit_wins_at_once_even_if_another_is_lower() -> None:
    assert lowest({"a": 50, "b": 9, "c": 1}).choose(places, None) is B


def test_c75_without_one_below_the_limit_the_lowest_wins() -> None:
    assert lowest({"a": 50, "b": 40, "c": 10, "d": 20}).choose(places, None) is C


def test_c75_the_limit_itself_is_not_below_it() -> None:
    assert lowest({"a": 10, "b": 5}).choose(places, None) is B


def test_c75_unknown_loads_do_not_count() -> None:
    assert lowest({"d": 99}).choose(places, None) is D
    assert lowest({"a": 0.0, "b": 0.0}, low=0).choose(places, None) is A


def test_c75_with_no_data_any_is_chosen() -> None:
    assert set(Counter(lowest({}).choose(places, None) for _ in range(500))) == set(places)


@pytest.mark.parametrize("samples", [0, -1, 4, 9])
def test_c75_all_are_looked_at_in_order_when_samples_would_not_be_fewer(samples: int) -> None:
    chosen = {lowest({"a": 11, "b": 12, "c": 13, "d": 11}, samples=samples).choose(places, None) for _ in range(50)}
    assert chosen == {A}


def test_c75_fewer_samples_look_at_random_places() -> None:
    counts = Counter(lowest({"a": 11, "b": 12, "c": 13, "d": 14}, samples=1).choose(places, None) for _ in range(2000))
    assert set(counts) == set(places)
    assert min(counts.values()) > 300
