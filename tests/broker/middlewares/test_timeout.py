"""The callee keeps the caller's deadline (protocol §5.5)."""

from typing import Any

import anyio
import pytest

from broker.context import Context, Next
from broker.errors import RequestTimeoutError
from broker.middlewares.retry_and_fallback import timeout

pytestmark = pytest.mark.anyio


async def in_time(handler: Next, ctx: Context) -> Any:
    return await timeout(handler)(ctx)


def context(deadline: float | None) -> Context:
    broker: Any = None
    ctx = Context.outgoing(broker, "js-1", action="math.slow")
    ctx.deadline = deadline
    return ctx


async def test_without_a_deadline_a_handler_may_take_its_time() -> None:
    async def handler(ctx: Context) -> str:
        return "done"

    assert await in_time(handler, context(None)) == "done"


async def test_c48_a_handler_is_ended_at_the_deadline_and_the_error_names_the_caller() -> None:
    ended = anyio.Event()

    async def handler(ctx: Context) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    with pytest.raises(RequestTimeoutError) as caught:
        await in_time(handler, context(anyio.current_time() + 0.01))
    assert caught.value.data == {"action": "math.slow", "nodeID": "js-1"}
    assert ended.is_set()


async def test_work_whose_deadline_has_passed_is_not_begun() -> None:
    async def handler(ctx: Context) -> None:
        raise AssertionError("not reached")

    with pytest.raises(RequestTimeoutError):
        await in_time(handler, context(anyio.current_time() - 1))


async def test_a_timeout_of_the_handlers_own_is_not_taken_for_the_deadline() -> None:
    async def handler(ctx: Context) -> None:
        raise TimeoutError("the database does not answer")

    with pytest.raises(TimeoutError, match="the database"):
        await in_time(handler, context(anyio.current_time() + 60))


async def test_an_outer_cancellation_passes() -> None:
    async def handler(ctx: Context) -> None:
        await anyio.sleep_forever()

    with anyio.CancelScope() as scope:
        scope.cancel()
        await in_time(handler, context(anyio.current_time() + 60))
        raise AssertionError("not reached")
    assert scope.cancelled_caught
