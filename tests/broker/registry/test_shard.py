"""Consistent hashing as JS nodes do it: the vectors of the reference (protocol §9.2)."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from broker.registry.strategies import RING_SIZE, Ring, Shard
from broker.services.policies import StrategyOptions


@dataclass(frozen=True)
class Place:
    node_id: str


places = [Place("node-b"), Place("node-a"), Place("node-c")]


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
    assert shard().choose(places, call({"id": key})).node_id == node_id


def test_c75_the_ring_has_the_keys_of_the_reference() -> None:
    assert ring().keys[:3] == [143165576, 286331153, 429496729]
    assert (len(ring().keys), ring().keys[-1]) == (30, RING_SIZE)
    assert sorted(ring().keys) == ring().keys


def test_c75_a_ring_of_a_size_takes_hashes_by_modulo() -> None:
    small = ring(size=100, vnodes=2)
    assert small.hash_of("1") == 60
    assert small.keys == [16, 33, 50, 66, 83, 100]
    assert small.node_of("1") == "node-a"
    assert shard(ring_size=100).choose(places, call({"id": "1"})).node_id in {"node-a", "node-b", "node-c"}


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
    assert {strategy.choose(places, call(params, meta)).node_id for _ in range(20)} == {"node-b"}


@pytest.mark.parametrize(
    ("key", "params"),
    [("id", {}), ("id", {"id": None}), ("id", None), (None, {"id": 1}), ("#a", {}), ("a.b", {"a": 1})],
)
def test_c75_without_a_key_any_node_is_chosen(key: str | None, params: Any) -> None:
    strategy = shard(key)
    assert {strategy.choose(places, call(params)) for _ in range(300)} == set(places)
    assert {strategy.choose(places, None) for _ in range(300)} == set(places)


def test_a_node_that_is_gone_gives_its_keys_to_others_and_takes_them_back() -> None:
    strategy, seven = shard(), call({"id": "7"})
    assert strategy.choose(places, seven).node_id == "node-b"
    assert strategy.choose(places[1:], seven).node_id in {"node-a", "node-c"}
    assert strategy.choose(places, seven).node_id == "node-b"


def test_c75_a_hash_on_the_border_of_two_slices_belongs_to_the_lower_one() -> None:
    """As in JS: the live test of the same name compares both."""
    small = ring("node-a", "node-b", vnodes=10, size=20)
    names = {small.hash_of(key): small.node_of(key) for key in map(str, range(200))}
    assert names == {number: "node-a" if number in (0, *range(1, 20, 2)) else "node-b" for number in range(20)}
