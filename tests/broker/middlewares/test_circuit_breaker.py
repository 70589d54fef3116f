"""Which results count for which endpoint, and what is broadcast (protocol §12.3, §7.4)."""

from typing import Any

import anyio
import pytest

from broker.context import Context, Next
from broker.errors import MoleculerClientError, MoleculerError, MoleculerServerError, RequestTimeoutError
from broker.middlewares.circuit_breaker import CircuitBreaker
from broker.middlewares.retry_and_fallback import timeout
from broker.registry.endpoints import Endpoint, EndpointList
from broker.registry.strategies import RoundRobin
from broker.services.policies import CircuitBreakerPolicy
from tests.support.targets import Timers, made_context, run, target

pytestmark = pytest.mark.anyio


class Setting:
    """A breaker that opens at the second failure, before one endpoint of another node."""

    def __init__(self, **policy: Any) -> None:
        self.timers = Timers()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.list: EndpointList[Endpoint] = EndpointList("posts.find", RoundRobin())
        self.endpoint = self.offer("js-1")
        wanted = CircuitBreakerPolicy(**{"enabled": True, "min_request_count": 2, **policy})
        self.others: dict[str, Endpoint] = {}
        self.breaker = CircuitBreaker(
            wanted,
            lambda: self.timers.now,
            self.timers.after,
            lambda event, data: self.events.append((event, data)),
            self.find,
        )

    def offer(self, node_id: str) -> Endpoint:
        return self.list.put(Endpoint(node_id, "posts.find", "v2.posts", {}))

    def find(self, action: str, node_id: str) -> Endpoint | None:
        return self.endpoint if node_id == self.endpoint.node_id else self.others.get(node_id)

    def chain(self, handler: Next, **settings: Any) -> Next:
        return self.breaker.wrap(handler, target(local=False, endpoint=lambda: self.endpoint, **settings))

    async def fail(self, *errors: Exception) -> None:
        for error in errors:

            async def handler(ctx: Context, error: Exception = error) -> Any:
                raise error

            with pytest.raises(type(error)):
                await self.chain(handler)(made_context())


async def succeed(ctx: Context) -> str:
    return "done"


def error_of(node_id: str | None, code: int = 500) -> MoleculerError:
    error = MoleculerServerError("no", code)
    error.node_id = node_id
    return error


async def test_c78_an_open_circuit_makes_its_endpoint_unavailable_and_broadcasts_that() -> None:
    setting = Setting()
    await setting.fail(error_of("js-1"), error_of(None))
    assert not setting.endpoint.available
    about = {"nodeID": "js-1", "service": "v2.posts", "action": "posts.find"}
    assert setting.events == [("$circuit-breaker.opened", about | {"failures": 2, "count": 2, "rate": 1.0})]
    setting.timers.advance(10)
    assert setting.endpoint.available
    assert await setting.chain(succeed)(made_context()) == "done"
    assert setting.events[1:] == [("$circuit-breaker.half-opened", about), ("$circuit-breaker.closed", about)]


async def test_c78_an_error_of_a_third_node_counts_neither_way() -> None:
    setting = Setting()
    await setting.fail(*[error_of("js-3")] * 5)
    assert setting.endpoint.available
    await setting.fail(error_of("js-1"), error_of("js-1"))
    assert setting.events[0][1]["count"] == 2


async def test_c78_errors_of_the_caller_do_not_count() -> None:
    setting = Setting()
    await setting.fail(*[MoleculerClientError("no", 422)] * 5, *[error_of("js-1", 499)] * 5)
    assert setting.endpoint.available


@pytest.mark.parametrize("code", [None, "E_NO", [], True])
async def test_a_code_that_is_not_a_number_does_not_count(code: Any) -> None:
    setting = Setting()
    error = MoleculerServerError("no")
    error.code = code
    await setting.fail(*[error] * 3)
    assert setting.endpoint.available


async def test_a_check_of_the_user_decides() -> None:
    setting = Setting(check=lambda error: isinstance(error, MoleculerClientError))
    await setting.fail(*[error_of(None)] * 3)
    assert setting.endpoint.available
    await setting.fail(*[MoleculerClientError("no")] * 2)
    assert not setting.endpoint.available


async def test_c78_any_exception_of_an_own_handler_is_a_500() -> None:
    setting = Setting()
    await setting.fail(ValueError("no"), KeyError("no"))
    assert not setting.endpoint.available


async def test_no_answer_in_time_counts_though_the_timeout_is_around_the_breaker() -> None:
    setting = Setting(min_request_count=1)

    async def never(ctx: Context) -> None:
        await anyio.sleep_forever()

    chain = timeout(setting.chain(never))
    with pytest.raises(RequestTimeoutError):
        await chain(made_context(deadline=anyio.current_time() + 0.01))
    assert not setting.endpoint.available


async def test_a_caller_that_gives_up_is_not_a_failure() -> None:
    setting = Setting(min_request_count=1)
    waiting = anyio.Event()

    async def never(ctx: Context) -> None:
        waiting.set()
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, setting.chain(never), made_context(deadline=anyio.current_time() + 60))
        await waiting.wait()
        tasks.cancel_scope.cancel()
    assert setting.endpoint.available


def answered_by(node_id: str, error: Exception | None = None) -> Next:
    """A call that another node than the chosen one answers, as with `disable_balancer`."""

    async def handler(ctx: Context) -> str:
        ctx.node_id = node_id
        if error is not None:
            raise error
        return "done"

    return handler


async def test_c78_a_result_counts_for_the_node_that_answered() -> None:
    setting = Setting(min_request_count=1)
    setting.others["js-2"] = other = setting.offer("js-2")
    with pytest.raises(MoleculerServerError):
        await setting.chain(answered_by("js-2", error_of("js-2")))(made_context())
    assert (setting.endpoint.available, other.available) == (True, False)
    assert [data["nodeID"] for _, data in setting.events] == ["js-2"]
    setting.timers.advance(10)
    await setting.chain(answered_by("js-2"))(made_context())
    assert [(event, data["nodeID"]) for event, data in setting.events[1:]] == [
        ("$circuit-breaker.half-opened", "js-2"),
        ("$circuit-breaker.closed", "js-2"),
    ]


async def test_c78_a_trial_that_another_node_answered_is_to_be_made_again() -> None:
    setting = Setting(min_request_count=1)
    await setting.fail(error_of("js-1"))
    setting.timers.advance(10)
    await setting.chain(answered_by("js-2"))(made_context())  # which has left since
    assert setting.endpoint.available
    assert [event for event, _ in setting.events] == ["$circuit-breaker.opened", "$circuit-breaker.half-opened"]


async def test_an_own_action_that_was_called_over_the_wire_is_counted_by_its_own_breaker_alone() -> None:
    setting = Setting(min_request_count=1)
    setting.others["py-1"] = setting.offer("py-1")
    setting.others["py-1"].local = True
    with pytest.raises(MoleculerServerError):
        await setting.chain(answered_by("py-1", error_of("py-1")))(made_context())
    assert setting.others["py-1"].available
    assert setting.events == []


async def test_c78_a_window_zeroes_the_counts_and_keeps_the_state() -> None:
    setting = Setting(window_time=60)
    await setting.fail(error_of(None))
    setting.timers.advance(60)
    await setting.fail(error_of(None))
    assert setting.endpoint.available
    await setting.fail(error_of(None))
    assert not setting.endpoint.available


async def test_nothing_is_pending_when_nothing_was_called_for_a_while() -> None:
    setting = Setting(window_time=60)
    await setting.chain(succeed)(made_context())
    setting.timers.advance(1000)
    assert setting.timers.pending == 0


async def test_a_node_that_left_starts_with_a_closed_circuit() -> None:
    setting = Setting()
    await setting.fail(error_of(None), error_of(None))
    setting.list.drop(setting.endpoint)
    setting.endpoint = setting.offer("js-1")
    setting.timers.advance(1000)
    assert [event for event, _ in setting.events] == ["$circuit-breaker.opened"]
    await setting.fail(error_of(None))
    assert setting.endpoint.available


async def test_when_the_node_stops_nothing_is_pending() -> None:
    setting = Setting()
    await setting.fail(error_of(None), error_of(None))
    setting.breaker.stop()
    assert setting.timers.pending == 0


async def test_an_action_can_have_a_breaker_of_its_own() -> None:
    setting = Setting(enabled=False)
    assert setting.chain(succeed) is succeed
    chain = setting.chain(succeed, circuit_breaker={"enabled": True})
    assert chain is not succeed
    assert await chain(made_context()) == "done"


async def test_without_an_endpoint_the_action_just_runs() -> None:
    setting = Setting()
    chain = setting.breaker.wrap(succeed, target())
    assert await chain(made_context()) == "done"
