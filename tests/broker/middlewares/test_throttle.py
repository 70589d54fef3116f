"""The first event, and nothing for a while (protocol §12.8)."""

import pytest

from broker.context import Context
from broker.middlewares.throttle import throttle
from tests.support.targets import Timers, made_context, target

pytestmark = pytest.mark.anyio


async def test_the_first_is_handled_and_the_rest_of_a_while_dropped() -> None:
    timers = Timers()
    handled: list[int] = []

    async def handler(ctx: Context) -> None:
        handled.append(ctx.params)

    chain = throttle(lambda: timers.now)(handler, target(throttle=2.0))
    for number in range(9):
        await chain(made_context(number))
        timers.advance(0.75)
    assert handled == [0, 3, 6]


async def test_without_it_there_is_nothing_in_the_way() -> None:
    async def handler(ctx: Context) -> None: ...

    assert throttle(lambda: 0.0)(handler, target()) is handler
