"""What the memory cacher keeps, and for how long (protocol §12.7)."""

from typing import Any

import anyio
import pytest

from broker.errors import BrokerOptionsError
from broker.middlewares.cacher import MISS, MemoryCacher, make_cacher
from tests.support.targets import Timers

pytestmark = pytest.mark.anyio


def timed(**options: Any) -> tuple[MemoryCacher, Timers]:
    timers = Timers()
    return MemoryCacher(clock=lambda: timers.now, **options), timers


def test_what_is_set_is_found_until_it_is_deleted() -> None:
    cacher, timers = timed()
    cacher.set("a", None)
    timers.advance(10**6)
    assert cacher.get("a") is None
    assert cacher.get("b") is MISS
    cacher.delete("a", "never")
    assert cacher.get("a") is MISS


def test_each_entry_has_its_time() -> None:
    cacher, timers = timed(ttl=10)
    cacher.set("default", 1)
    cacher.set("own", 2, 5)
    cacher.set("without end", 3, 0)
    timers.advance(5)
    assert [cacher.get(key) for key in ("default", "own", "without end")] == [1, MISS, 3]
    timers.advance(5)
    assert [cacher.get(key) for key in ("default", "without end")] == [MISS, 3]


def test_what_is_not_asked_for_any_more_is_removed_in_time() -> None:
    cacher, timers = timed(ttl=10)
    for number in range(1000):
        cacher.set(str(number), number)
    timers.advance(31)
    cacher.set("new", 1)
    assert cacher.keys() == ["new"]


def test_with_a_bound_what_was_not_used_for_longest_makes_room() -> None:
    cacher = MemoryCacher(max=3)
    for key in "abc":
        cacher.set(key, key)
    assert cacher.get("a") == "a"
    cacher.set("b", "again")
    cacher.set("d", "d")
    assert cacher.get("c") is MISS
    for number in range(1000):
        cacher.set(str(number), number)
    assert cacher.keys() == ["997", "998", "999"]


def test_it_says_how_long_something_is_still_kept() -> None:
    cacher, timers = timed(ttl=10)
    cacher.set("a", 1)
    cacher.set("without end", 1, 0)
    timers.advance(4)
    cacher.get("a")
    assert [cacher.left(key) for key in ("a", "without end", "never")] == [6, None, None]
    timers.advance(7)
    assert cacher.left("a") == 0


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        ((), []),
        (("posts.*",), ["users.find:1", "posts.find:a|1.5"]),
        (("posts.**",), ["users.find:1"]),
        (("users.find:1", "posts.get:?"), ["posts.find:1", "posts.find:a|1.5"]),
        (("other",), ["posts.find:1", "posts.find:a|1.5", "posts.get:5", "users.find:1"]),
    ],
)
def test_clean_removes_what_matches_as_event_names_do(patterns: tuple[str, ...], left: list[str]) -> None:
    cacher, _ = timed()
    for key in ("posts.find:1", "posts.find:a|1.5", "posts.get:5", "users.find:1"):
        cacher.set(key, 1)
    cacher.clean(*patterns)
    assert sorted(cacher.keys()) == sorted(left)


def test_clones_are_not_shared() -> None:
    value = {"a": [1]}
    cloning, sharing = MemoryCacher(clone=True), MemoryCacher()
    for cacher in (cloning, sharing):
        cacher.set("key", value)
    value["a"].append(2)
    assert cloning.get("key") == {"a": [1]}
    cloning.get("key")["a"].append(3)
    assert cloning.get("key") == {"a": [1]}
    assert sharing.get("key") is value


async def test_locks_are_of_a_key_and_forgotten_when_free() -> None:
    cacher, _ = timed()
    order: list[str] = []

    async def hold(name: str) -> None:
        async with cacher.lock("key"):
            order.append(f"{name} in")
            await anyio.lowlevel.checkpoint()
            order.append(f"{name} out")

    async with anyio.create_task_group() as tasks, cacher.lock("other key"):
        tasks.start_soon(hold, "one")
        tasks.start_soon(hold, "two")
        await anyio.lowlevel.checkpoint()
    assert order in (["one in", "one out", "two in", "two out"], ["two in", "two out", "one in", "one out"])
    assert not cacher._locks


@pytest.mark.parametrize(("option", "ttl"), [(True, None), ("memory", None), ("Memory", None), ({"ttl": 30}, 30)])
def test_a_cacher_is_made_from_an_option(option: Any, ttl: float | None) -> None:
    cacher = make_cacher(option)
    assert isinstance(cacher, MemoryCacher)
    assert cacher.ttl == ttl
    assert make_cacher(cacher) is cacher
    assert make_cacher(None) is make_cacher(False) is None


@pytest.mark.parametrize("option", ["redis", 5, {"time": 5}, {"max": 0}, {"max": "many"}, {"ttl": -1}])
def test_an_option_that_cannot_be_is_refused(option: Any) -> None:
    with pytest.raises(BrokerOptionsError, match="cacher"):
        make_cacher(option)
