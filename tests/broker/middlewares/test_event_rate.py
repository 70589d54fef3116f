"""The first event of a while, or the last once no other comes (protocol §12.8)."""

from typing import Any

import pytest

from broker.context import Context, Next
from broker.middlewares.event_rate import debounce, throttle
from tests.support.targets import Timers, made_context, target

pytestmark = pytest.mark.anyio


async def handler(ctx: Context) -> None:
    raise AssertionError("run by `start`, not by the event")


async def test_only_the_last_of_a_burst_is_handled_after_the_wait() -> None:
    timers, handled = Timers(), []

    def start(chain: Next, ctx: Context) -> None:
        assert chain is handler
        handled.append(ctx.params)

    chain = debounce(timers.after, start)(handler, target(debounce=2.0))
    for number in range(5):
        await chain(made_context(number))
        timers.advance(1.9)
    assert handled == []
    timers.advance(0.1)
    assert handled == [4]
    timers.advance(100)
    await chain(made_context(9))
    timers.advance(2)
    assert handled == [4, 9]


@pytest.mark.parametrize("settings", [{}, {"debounce": None}, {"debounce": 0}])
def test_without_debounce_there_is_nothing_in_the_way(settings: dict[str, Any]) -> None:
    assert debounce(Timers().after, lambda chain, ctx: None)(handler, target(**settings)) is handler


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


def test_without_throttle_there_is_nothing_in_the_way() -> None:
    assert throttle(lambda: 0.0)(handler, target()) is handler
