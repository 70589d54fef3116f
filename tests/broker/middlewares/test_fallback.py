"""Who answers when a call fails for good (protocol §12.6)."""

from typing import Any

import pytest

from broker.context import Context, Next
from broker.errors import MoleculerError, ServiceSchemaError
from broker.middlewares.base import Target
from broker.middlewares.retry_and_fallback import as_asked
from broker.services.policies import RetryPolicy
from tests.support.targets import made_context, target

pytestmark = pytest.mark.anyio


def fallback(call_next: Next, target: Target) -> Next:
    async def again(ctx: Context) -> Any:
        raise AssertionError("not retried")

    return as_asked(RetryPolicy(), again)(call_next, target)


class Owner:
    async def stand_in(self, ctx: Context, error: Exception) -> str:
        return f"owner after {error}"

    def plain(self, ctx: Context, error: Exception) -> str:
        return "plain"


async def failing(ctx: Context) -> str:
    raise MoleculerError("broken")


async def succeed(ctx: Context) -> str:
    return "done"


@pytest.mark.parametrize("value", ["other", None, 0, {"a": 1}])
async def test_c79_a_value_given_with_the_call_answers(value: Any) -> None:
    chain = fallback(failing, target())
    assert await chain(made_context(fallback=value)) == value


async def test_c79_a_function_given_with_the_call_gets_the_context_and_the_error() -> None:
    async def later(ctx: Context, error: Exception) -> str:
        return f"{ctx.params} {error}"

    chain = fallback(failing, target())
    assert await chain(made_context("p", fallback=later)) == "p broken"
    assert await chain(made_context(fallback=lambda ctx, error: "at once")) == "at once"


@pytest.mark.parametrize(
    ("declared", "answer"),
    [
        ("stand_in", "owner after broken"),
        ("plain", "plain"),
        (Owner.stand_in, "owner after broken"),
        (lambda ctx, error: "function", "function"),
    ],
)
async def test_c79_an_action_may_have_one_at_its_owner(declared: Any, answer: str) -> None:
    chain = fallback(failing, target(fallback=declared, instance=Owner()))
    assert await chain(made_context()) == answer
    assert await chain(made_context(called=False)) == answer


async def test_c79_that_of_the_call_wins() -> None:
    chain = fallback(failing, target(fallback="stand_in", instance=Owner()))
    assert await chain(made_context(fallback=None)) is None


async def test_it_does_nothing_to_a_success_nor_to_a_call_without_one() -> None:
    assert await fallback(succeed, target(fallback="stand_in", instance=Owner()))(made_context()) == "done"
    with pytest.raises(MoleculerError, match="broken"):
        await fallback(failing, target())(made_context())


def test_one_that_is_not_a_function_is_refused() -> None:
    with pytest.raises(ServiceSchemaError, match=r"fallback of action 'posts.find'.*'missing'"):
        fallback(failing, target(fallback="missing", instance=Owner()))


async def test_what_a_peer_announces_is_not_ours_to_run() -> None:
    with pytest.raises(MoleculerError, match="broken"):
        await fallback(failing, target(local=False, fallback="stand_in"))(made_context())
