"""Middlewares are wrapped once, the first one outermost."""

from typing import Any

import pytest

from broker.context import Context
from broker.middleware import Middleware, Next, compose

pytestmark = pytest.mark.anyio
CONTEXT: Any = None


def noting(name: str, notes: list[str]) -> Middleware:
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
