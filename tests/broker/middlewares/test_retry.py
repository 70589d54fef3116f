"""Retries follow the reference: which errors, how often, after which waits (protocol §12.2)."""

from typing import Any

import anyio
import pytest

from broker.context import Context
from broker.errors import (
    BrokerDisconnectedError,
    MoleculerError,
    MoleculerServerError,
    RequestTimeoutError,
    ServiceNotAvailableError,
    ValidationError,
)
from broker.middlewares.retry_and_fallback import as_asked, retry_delay
from broker.services.policies import RetryPolicy
from tests.support.targets import made_context, target

pytestmark = pytest.mark.anyio


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, which cost no time."""
    made: list[float] = []

    async def sleep(delay: float) -> None:
        made.append(delay)

    monkeypatch.setattr(anyio, "sleep", sleep)
    return made


class Attempts:
    """Fails with each error in turn, then succeeds. `again` makes a new context, as a call does."""

    def __init__(self, *errors: Exception, policy: RetryPolicy | None = None, **settings: Any) -> None:
        self.errors = list(errors)
        self.contexts: list[Context] = []
        self.chain = as_asked(policy or RetryPolicy(), self.again)(self.attempt, target(**settings))

    async def attempt(self, ctx: Context) -> str:
        self.contexts.append(ctx)
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    async def again(self, ctx: Context) -> Any:
        return await self.chain(ctx.again())


ENABLED = RetryPolicy(enabled=True)


async def test_a_success_is_not_repeated(waits: list[float]) -> None:
    attempts = Attempts(policy=ENABLED)
    assert await attempts.chain(made_context()) == "done"
    assert (len(attempts.contexts), waits) == (1, [])


async def test_c77_the_waits_grow_to_a_second(waits: list[float]) -> None:
    attempts = Attempts(*[MoleculerServerError("again") for _ in range(7)])
    assert await attempts.chain(made_context(retries=7)) == "done"
    assert len(attempts.contexts) == 8
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]


def test_c77_the_waits_follow_the_policy() -> None:
    policy = RetryPolicy(delay=0.05, factor=3, max_delay=0.3)
    assert [round(retry_delay(policy, number), 3) for number in (1, 2, 3, 4)] == [0.05, 0.15, 0.3, 0.3]


async def test_c77_each_attempt_has_a_new_id_and_the_rest_of_its_context(waits: list[float]) -> None:
    attempts = Attempts(MoleculerServerError("1"), MoleculerServerError("2"), policy=ENABLED)
    first = made_context({"a": 1}, meta={"m": 1}, request_id="r", parent_id="p", level=3, caller="me", headers={"h": 1})
    first.locals["kept"] = True
    await attempts.chain(first)
    assert len({ctx.id for ctx in attempts.contexts}) == 3
    for ctx in attempts.contexts:
        assert (ctx.request_id, ctx.parent_id, ctx.level, ctx.caller) == ("r", "p", 3, "me")
        assert (ctx.params, ctx.headers, ctx.locals) == ({"a": 1}, {"h": 1}, {"kept": True})
        assert ctx.meta is first.meta
        assert ctx.options is first.options
    assert [ctx.attempt for ctx in attempts.contexts] == [0, 1, 2]


async def test_when_all_attempts_fail_the_last_error_is_raised(waits: list[float]) -> None:
    attempts = Attempts(*[MoleculerServerError(str(number)) for number in range(9)], policy=ENABLED)
    with pytest.raises(MoleculerServerError, match="5"):
        await attempts.chain(made_context())
    assert (len(attempts.contexts), len(waits)) == (6, 5)


@pytest.mark.parametrize("error", [ValidationError("no"), MoleculerError("no"), ValueError("no")])
async def test_what_another_attempt_cannot_mend_is_raised_at_once(error: Exception, waits: list[float]) -> None:
    attempts = Attempts(error, policy=ENABLED)
    with pytest.raises(type(error)):
        await attempts.chain(made_context())
    assert (len(attempts.contexts), waits) == (1, [])


@pytest.mark.parametrize(
    "error", [RequestTimeoutError(), BrokerDisconnectedError(), ServiceNotAvailableError({"action": "a.b"})]
)
async def test_what_another_attempt_may_mend_is_tried_again(error: Exception, waits: list[float]) -> None:
    assert await Attempts(error, policy=ENABLED).chain(made_context()) == "done"


async def test_a_check_of_the_user_decides(waits: list[float]) -> None:
    policy = RetryPolicy(enabled=True, check=lambda error: isinstance(error, ValueError))
    assert await Attempts(ValueError("mine"), policy=policy).chain(made_context()) == "done"
    with pytest.raises(MoleculerServerError):
        await Attempts(MoleculerServerError("retryable"), policy=policy).chain(made_context())


async def test_c77_the_option_of_a_call_wins_over_the_policy(waits: list[float]) -> None:
    for retries, tried in ((0, 1), (2, 3)):
        attempts = Attempts(*[MoleculerServerError("no")] * 9, policy=ENABLED)
        with pytest.raises(MoleculerServerError):
            await attempts.chain(made_context(retries=retries))
        assert len(attempts.contexts) == tried


async def test_the_policy_of_an_action_is_merged_over_the_brokers(waits: list[float]) -> None:
    attempts = Attempts(*[MoleculerServerError("no")] * 9, retry_policy={"enabled": True, "retries": 1, "delay": 0.7})
    with pytest.raises(MoleculerServerError):
        await attempts.chain(made_context())
    assert (len(attempts.contexts), waits) == (2, [0.7])


async def test_without_a_policy_that_is_enabled_a_call_is_made_once(waits: list[float]) -> None:
    attempts = Attempts(MoleculerServerError("no"))
    with pytest.raises(MoleculerServerError):
        await attempts.chain(made_context())
    assert len(attempts.contexts) == 1


async def test_c77_the_callee_does_not_retry_for_its_caller(waits: list[float]) -> None:
    attempts = Attempts(MoleculerServerError("no"), policy=ENABLED)
    with pytest.raises(MoleculerServerError):
        await attempts.chain(made_context(called=False))
    assert len(attempts.contexts) == 1


async def test_a_stream_is_not_sent_twice(waits: list[float]) -> None:
    attempts = Attempts(MoleculerServerError("no"), policy=ENABLED)
    ctx = made_context()
    ctx.stream = iter([b"a"])
    with pytest.raises(MoleculerServerError):
        await attempts.chain(ctx)
    assert len(attempts.contexts) == 1
