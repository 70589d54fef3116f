"""Middlewares are wrapped once, the first one outermost."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from broker.context import Context, Next
from broker.errors import BrokerOptionsError
from broker.middlewares.base import (
    Middleware,
    Target,
    bound,
    check_middlewares,
    compose,
    hooks,
    run_hooks,
    wrapped,
)

pytestmark = pytest.mark.anyio
CONTEXT: Any = None


def noting(name: str, notes: list[str]) -> Callable[[Next, Context], Awaitable[Any]]:
    async def around(call_next: Next, ctx: Context) -> Any:
        notes.append(f"{name} in")
        try:
            return await call_next(ctx)
        finally:
            notes.append(f"{name} out")

    return around


async def test_the_first_is_outermost() -> None:
    notes: list[str] = []

    async def handler(ctx: Context) -> str:
        notes.append("handler")
        return "done"

    chain = compose([noting("first", notes), noting("second", notes)], handler)
    assert await chain(CONTEXT) == "done"
    assert notes == ["first in", "second in", "handler", "second out", "first out"]


async def test_a_middleware_may_answer_itself_and_change_what_comes_back() -> None:
    async def handler(ctx: Context) -> str:
        raise AssertionError("not reached")

    async def answering(call_next: Next, ctx: Context) -> Any:
        return "mine"

    async def shouting(call_next: Next, ctx: Context) -> Any:
        return str(await call_next(ctx)).upper()

    assert await compose([shouting, answering], handler)(CONTEXT) == "MINE"


async def test_without_middlewares_there_is_only_the_handler() -> None:
    async def handler(ctx: Context) -> int:
        return 7

    assert compose([], handler) is handler


class Both(Middleware):
    async def local_action(self, call_next: Next, ctx: Context) -> Any:
        return await call_next(ctx)

    async def call(self, call_next: Any, action: str, params: Any, options: Any) -> Any:
        return await call_next(action, params, options)


class Loose:
    async def remote_action(self, call_next: Next, ctx: Context) -> Any: ...


async def function(call_next: Next, ctx: Context) -> Any: ...


def test_only_what_is_overridden_is_a_hook() -> None:
    both, loose = Both(), Loose()
    assert hooks([both, loose, function], "local_action") == [both.local_action, function]
    assert hooks([both, loose, function], "remote_action") == [loose.remote_action]
    assert hooks([both, loose, function], "call") == [both.call]
    assert hooks([both, loose, function], "emit") == hooks([Middleware()], "started") == []


def test_what_is_not_a_middleware_is_refused() -> None:
    check_middlewares([Both(), Loose(), function])
    for wrong in (5, "name", object()):
        with pytest.raises(BrokerOptionsError, match="middlewares must be"):
            check_middlewares([wrong])
    with pytest.raises(BrokerOptionsError, match=r"write Both\(\), not Both"):
        check_middlewares([Both])


def test_a_feature_that_a_target_does_not_use_leaves_the_chain_as_it_is() -> None:
    async def handler(ctx: Context) -> None: ...

    target = Target(name="a", service="b", local=True)
    assert wrapped([lambda call_next, target: call_next], handler, target) is handler


def test_what_a_service_may_name() -> None:
    both = Both()
    assert bound("call", both) == bound(Both.call, both) == both.call
    assert bound(function, both) is function
    assert bound("missing", both) is bound(5, both) is bound("name", None) is None


class Noting:
    def __init__(self, name: str, notes: list[str], *, fails: bool = False) -> None:
        self.name = name
        self.notes = notes
        self.fails = fails

    async def started(self, broker: Any) -> None:
        self.notes.append(f"{self.name} started")
        if self.fails:
            raise ValueError(self.name)

    def stopped(self, broker: Any) -> None:
        self.notes.append(f"{self.name} stopped")
        if self.fails:
            raise ValueError(self.name)


async def test_beginnings_go_from_the_first_and_endings_from_the_last() -> None:
    notes: list[str] = []
    middlewares = [Noting("one", notes), Noting("two", notes)]
    for name in ("starting", "started", "stopping", "stopped"):
        await run_hooks(middlewares, name, None)
    assert notes == ["one started", "two started", "two stopped", "one stopped"]


async def test_a_beginning_that_fails_passes_and_an_ending_that_fails_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    notes: list[str] = []
    middlewares = [Noting("one", notes, fails=True), Noting("two", notes, fails=True)]
    with pytest.raises(ValueError, match="one"):
        await run_hooks(middlewares, "started", None)
    await run_hooks(middlewares, "stopped", None)
    assert notes == ["one started", "two stopped", "one stopped"]
    assert caplog.text.count("The hook 'stopped' of a middleware failed") == 2
