"""Endpoints are chosen as the reference says (protocol §9.2)."""

import random

import pytest

from broker.errors import BrokerOptionsError
from broker.strategy import round_robin, strategy_named, uniform


def test_c75_round_robin_takes_one_after_the_other() -> None:
    chosen, cursor = [], 0
    for _ in range(7):
        index, cursor = round_robin("abc", cursor)
        chosen.append("abc"[index])
    assert "".join(chosen) == "abcabca"


def test_c75_round_robin_starts_again_when_the_list_became_shorter() -> None:
    assert round_robin("ab", 2) == (0, 1)
    assert round_robin("abc", 2) == (2, 3)


def test_random_chooses_every_endpoint_about_as_often() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - a randomised test tells its seed
    random.seed(seed)
    counts = [0, 0, 0]
    for _ in range(3000):
        index, cursor = uniform("abc", 5)
        counts[index] += 1
        assert cursor == 5
    assert min(counts) > 700


def test_names_are_known_in_any_case() -> None:
    assert strategy_named("roundrobin") is strategy_named("RoundRobin") is round_robin
    assert strategy_named("RANDOM") is uniform


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BrokerOptionsError, match=r"'Fastest' is not known.*RoundRobin"):
        strategy_named("Fastest")
