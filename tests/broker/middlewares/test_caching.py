"""When a kept result answers, and when the action runs (protocol §12.7)."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from broker.context import Context, Next
from broker.errors import ServiceSchemaError
from broker.middlewares.base import Wrap
from broker.middlewares.cacher import MemoryCacher, caching
from tests.support.targets import Timers, made_context, run, target
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


class Handler:
    """Counts its runs."""

    def __init__(self, result: Any = None) -> None:
        self.runs = 0
        self.result = result

    async def __call__(self, ctx: Context) -> Any:
        self.runs += 1
        return self.runs if self.result is None else self.result


def cached(handler: Next, cache: Any = True, **options: Any) -> Next:
    return around(MemoryCacher(**options))(handler, target(cache=cache))


def around(cacher: MemoryCacher | None) -> Wrap:
    """For tests where nothing is done behind a caller's back."""

    def start(chain: Next, ctx: Context) -> None:
        raise AssertionError("nothing is stale here")

    return caching(cacher, start)


async def test_the_same_params_run_the_action_once() -> None:
    handler = Handler()
    chain = cached(handler)
    results = [await chain(made_context({"id": number})) for number in (1, 1, 2, 1)]
    assert (results, handler.runs) == ([1, 1, 2, 1], 2)


async def test_a_result_of_none_is_kept_too() -> None:
    runs = 0

    async def handler(ctx: Context) -> None:
        nonlocal runs
        runs += 1

    chain = cached(handler)
    assert [await chain(made_context()) for _ in range(2)] == [None, None]
    assert runs == 1


@pytest.mark.parametrize("meta", [{"$cache": False}, {"$cache": False, "other": 1}], ids=["alone", "with more"])
async def test_meta_can_bypass_the_cache(meta: dict[str, Any]) -> None:
    handler = Handler()
    chain = cached(handler)
    await chain(made_context())
    assert await chain(made_context(meta=meta)) == 2
    assert await chain(made_context(meta={"$cache": None})) == 1


async def test_keys_choose_what_counts() -> None:
    handler = Handler()
    chain = cached(handler, {"keys": ["id", "#user.id", "@auth"]})
    for params, meta, headers in [
        ({"id": 1, "x": 1}, {"user": {"id": 1}}, {"auth": "a"}),
        ({"id": 1, "x": 2}, {"user": {"id": 1}, "y": 1}, {"auth": "a"}),
    ]:
        assert await chain(made_context(params, meta=meta, headers=headers)) == 1
    assert await chain(made_context({"id": 1}, meta={"user": {"id": 2}}, headers={"auth": "a"})) == 2
    assert await chain(made_context({"id": 1}, meta={"user": {"id": 1}}, headers={"auth": "b"})) == 3


async def test_the_actions_ttl_wins_over_the_cachers() -> None:
    timers = Timers()
    handler = Handler()
    chain = around(MemoryCacher(ttl=10, clock=lambda: timers.now))(handler, target(cache={"ttl": 5}))
    assert await chain(made_context()) == 1
    timers.advance(4.9)
    assert await chain(made_context()) == 1
    timers.advance(0.1)
    assert await chain(made_context()) == 2


async def test_keys_may_be_made_by_a_function() -> None:
    handler = Handler()
    cacher = MemoryCacher(keygen=lambda ctx: "of the cacher")
    await around(cacher)(handler, target(cache=True))(made_context())
    await around(cacher)(handler, target(cache={"keygen": lambda ctx: f"own {ctx.params}"}))(made_context(5))
    assert cacher.keys() == ["of the cacher", "own 5"]


async def test_a_function_may_tell_whether_to_use_it() -> None:
    handler = Handler()
    chain = cached(handler, {"enabled": lambda ctx: ctx.params == "use"})
    assert [await chain(made_context(params)) for params in ("use", "use", "not", "not", "use")] == [1, 1, 2, 3, 1]


async def test_errors_are_not_kept() -> None:
    outcomes: list[Any] = [ValueError("no"), "done"]

    async def handler(ctx: Context) -> Any:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    chain = cached(handler, {"lock": True})
    with pytest.raises(ValueError, match="no"):
        await chain(made_context())
    assert await chain(made_context()) == "done"


async def test_streams_are_not_kept_neither_as_results_nor_with_a_call() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"a"

    handler = Handler(chunks())
    chain = cached(handler)
    for _ in range(2):
        await chain(made_context())
    ctx = made_context()
    ctx.stream = chunks()
    await chain(ctx)
    assert handler.runs == 3


async def test_with_a_lock_calls_of_one_key_at_once_run_the_action_once() -> None:
    door = anyio.Event()
    runs: list[Any] = []
    results: list[Any] = []

    async def slow(ctx: Context) -> Any:
        runs.append(ctx.params)
        await door.wait()
        return len(runs)

    chain = cached(slow, {"lock": True})

    async def call(params: Any) -> None:
        results.append(await chain(made_context(params)))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(call, "same")
        tasks.start_soon(call, "other")
        await eventually(lambda: len(runs) == 2)
        door.set()
    assert runs == ["same", "other"]
    assert results == [2] * 6


async def test_without_a_lock_each_of_them_runs_it() -> None:
    door = anyio.Event()
    handler = Handler()

    async def slow(ctx: Context) -> Any:
        await door.wait()
        return await handler(ctx)

    async with anyio.create_task_group() as tasks:
        chain = cached(slow)
        for _ in range(3):
            tasks.start_soon(run, chain, made_context())
        door.set()
    assert handler.runs == 3


class Stale:
    """An action whose results are kept for 10 s and are stale for the last 4 of them."""

    def __init__(self) -> None:
        self.timers = Timers()
        self.runs = 0
        self.failing = False
        self.door = anyio.Event()
        self.door.set()
        self.started: list[tuple[Next, Context]] = []
        self.cacher = MemoryCacher(ttl=10, clock=lambda: self.timers.now)
        wrap = caching(self.cacher, lambda chain, ctx: self.started.append((chain, ctx)))
        self.chain = wrap(self.handle, target(cache={"lock": {"stale_time": 4}}))

    async def handle(self, ctx: Context) -> int:
        self.runs += 1
        ctx.meta["run"] = run = self.runs
        await self.door.wait()
        if self.failing:
            raise ValueError("no")
        return run

    async def behind_the_back(self) -> None:
        while self.started:
            chain, ctx = self.started.pop()
            await chain(ctx)


async def test_a_stale_result_is_answered_and_renewed_once_in_the_background() -> None:
    stale = Stale()
    assert await stale.chain(made_context()) == 1
    stale.timers.advance(6)
    assert await stale.chain(made_context()) == 1
    assert stale.started == []
    stale.timers.advance(1)
    ctx = made_context()
    assert [await stale.chain(ctx) for _ in range(3)] == [1, 1, 1]
    assert len(stale.started) == 1
    await stale.behind_the_back()
    assert (await stale.chain(made_context()), stale.runs, ctx.meta) == (2, 2, {})
    assert [stale.cacher.left(key) for (key,) in [stale.cacher.keys()]] == [10]
    stale.timers.advance(7)
    await stale.chain(made_context())
    assert len(stale.started) == 1, "the next time it is renewed again"


async def test_a_result_that_cannot_be_renewed_is_kept_no_longer() -> None:
    stale = Stale()
    await stale.chain(made_context())
    stale.timers.advance(7)
    stale.failing = True
    assert await stale.chain(made_context()) == 1
    await stale.behind_the_back()
    with pytest.raises(ValueError, match="no"):
        await stale.chain(made_context())


async def test_renewing_a_result_takes_no_longer_than_the_call_may_that_found_it_stale() -> None:
    stale = Stale()
    await stale.chain(made_context())
    stale.timers.advance(7)
    stale.door = anyio.Event()
    assert await stale.chain(made_context(deadline=anyio.current_time() + 0.01)) == 1
    await stale.behind_the_back()
    stale.door.set()
    assert await stale.chain(made_context()) == 3


@pytest.mark.parametrize("cache", [None, False, {}, {"enabled": False}])
def test_without_it_there_is_nothing_in_the_way(cache: Any) -> None:
    handler = Handler()
    assert around(MemoryCacher())(handler, target(cache=cache)) is handler
    assert around(None)(handler, target(cache=True)) is handler


@pytest.mark.parametrize(
    "cache",
    [{"keys": "id"}, {"ttl": "long"}, {"ttl": -1}, {"tll": 5}, {"lock": "yes"}, {"lock": {"ttl": 5}}],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused(cache: Any) -> None:
    with pytest.raises(ServiceSchemaError, match=r"cache settings of action 'posts.find'"):
        around(MemoryCacher())(Handler(), target(cache=cache))
