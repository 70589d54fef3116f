"""What is sent with a call: meta, headers, ids, levels, callers and the remaining time (protocol §5.1, §5.4, §5.5)."""

from typing import Any

import anyio
import pytest

from broker import (
    Context,
    MaxCallLevelError,
    MoleculerError,
    MoleculerRetryableError,
    RemoteError,
    RequestSkippedError,
    RequestTimeoutError,
    Service,
    action,
)
from tests.support.cluster import Cluster
from tests.support.example_services import Echo, Gate, Math, Relay, describe
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


async def test_c44_meta_reaches_the_callee_and_its_changes_come_back(cluster: Cluster) -> None:
    one, two = await cluster.start(("one", [Echo()]), ("two", []))
    for broker in (one, two):
        meta: dict[str, Any] = {"user": 7, "kept": {"a": 1}}
        context = await broker.call("echo.context", meta=meta)
        assert context["meta"] == {"user": 7, "kept": {"a": 1}}
        await broker.call("echo.meta", {"set": {"user": 8, "kept": None, "$statusCode": 201}}, meta=meta)
        assert meta == {"user": 8, "kept": None, "$statusCode": 201}


async def test_c44_meta_comes_back_with_an_error_too(cluster: Cluster) -> None:
    one, two = await cluster.start(("one", [Echo()]), ("two", []))
    for broker in (one, two):
        meta: dict[str, Any] = {}
        with pytest.raises(MoleculerError, match="after setting meta"):
            await broker.call("echo.meta", {"set": {"seen": True}, "fail": True}, meta=meta)
        assert meta == {"seen": True}


async def test_c45_meta_set_deep_in_a_chain_reaches_the_root(cluster: Cluster) -> None:
    *_, root = await cluster.start(("one", [Echo()]), ("two", [Relay()]), ("root", []))
    meta: dict[str, Any] = {"down": 1}
    options = {"meta": {"further": 2}}
    params = {"action": "echo.meta", "params": {"set": {"up": 3}}, "options": options}
    await root.call("relay.forward", params, meta=meta)
    assert meta == {"down": 1, "further": 2, "up": 3}


async def test_c45_the_parent_sees_the_meta_of_a_nested_call_that_failed(cluster: Cluster) -> None:
    *_, root = await cluster.start(("one", [Echo()]), ("two", [Relay()]), ("root", []))
    params = {"action": "echo.meta", "params": {"set": {"up": 3}, "fail": True}}
    assert await root.call("relay.meta_after", params) == {"up": 3, "failed": True}


async def test_c45_a_nested_call_keeps_the_request_id_and_increments_the_level(cluster: Cluster) -> None:
    *_, root = await cluster.start(("one", [Echo()]), ("two", [Relay(), Noting()]), ("root", []))
    first = await root.call("echo.context", request_id="req-1", headers={"h": 1}, caller="tests")
    assert (first["level"], first["request_id"], first["parent_id"], first["caller"]) == (1, "req-1", None, "tests")
    assert (first["headers"], first["node_id"]) == ({"h": 1}, "root")
    outer, inner = await root.call("v1.noting.both", request_id="req-2", headers={"h": 1})
    assert (outer["level"], outer["request_id"], outer["caller"]) == (1, "req-2", None)
    assert (inner["level"], inner["request_id"], inner["caller"]) == (2, "req-2", "v1.noting")
    assert inner["parent_id"] == outer["id"]
    assert inner["id"] != outer["id"]
    assert (outer["headers"], inner["headers"]) == ({"h": 1}, {})
    assert inner["node_id"] == "two"


async def test_a_root_call_has_its_own_id_as_request_id(cluster: Cluster) -> None:
    one, two = await cluster.start(("one", [Echo()]), ("two", []))
    for broker in (one, two):
        context = await broker.call("echo.context")
        assert context["request_id"] == context["id"]
        assert (context["level"], context["parent_id"], context["caller"], context["headers"]) == (1, None, None, {})


class Noting(Service):
    """Returns its context and the context of a call that it makes."""

    name = "noting"
    version = 1

    @action
    async def both(self, ctx: Context) -> Any:
        return [describe(ctx), await ctx.call("echo.context")]


async def test_calls_nest_up_to_the_maximum_level(cluster: Cluster) -> None:
    one, _ = await cluster.start(("one", [Relay()]), ("two", [Echo()]), max_call_level=3)

    def nested(depth: int) -> dict[str, Any]:
        inner = {"action": "echo.where"}
        return {"action": "relay.forward", "params": nested(depth - 1)} if depth else inner

    assert await one.call("relay.forward", nested(1)) == "two"
    with pytest.raises(MaxCallLevelError) as caught:
        await one.call("relay.forward", nested(2))
    assert caught.value.data == {"nodeID": "one", "level": 3}


async def test_a_call_without_an_answer_in_time_fails_and_is_forgotten(cluster: Cluster) -> None:
    gate = Gate()
    _, two = await cluster.start(("one", [gate]), ("two", []))
    with pytest.raises(RequestTimeoutError) as caught:
        await two.call("gate.wait", timeout=0.1)
    assert caught.value.data["action"] == "gate.wait"
    assert two._node.transit.requests.pending == {}
    gate.opened.set()


async def test_c48_the_callee_cancels_its_handler_when_the_caller_times_out(cluster: Cluster) -> None:
    gate = Gate()
    one, two = await cluster.start(("one", [gate]), ("two", []))
    for broker in (one, two):
        with pytest.raises(RequestTimeoutError):
            await broker.call("gate.wait", timeout=0.1)
    await eventually(lambda: gate.cancelled == 2, "the handlers to be cancelled")


async def test_c48_the_callee_answers_when_the_time_of_a_call_runs_out(cluster: Cluster) -> None:
    await cluster.start_one("one", [Gate()])
    peer = await cluster.raw_peer("peer", "RES")
    answer = await peer.ask("one", "gate.wait", timeout=20.5)
    assert answer["error"]["name"] == "RequestTimeoutError"
    assert answer["error"]["data"] == {"action": "gate.wait", "nodeID": "peer"}


async def test_c46_a_timeout_of_zero_means_no_limit_and_a_missing_one_the_callees_default(cluster: Cluster) -> None:
    await cluster.start_one("one", [Echo(), Hurried()], request_timeout=50)
    peer = await cluster.raw_peer("peer", "RES")
    assert (await peer.ask("one", "echo.context", timeout=0))["data"]["left_s"] is None
    assert 10 < (await peer.ask("one", "echo.context"))["data"]["left_s"] <= 50
    assert 10 < (await peer.ask("one", "echo.context", timeout=None))["data"]["left_s"] <= 50
    assert 50 < (await peer.ask("one", "hurried.context"))["data"]["left_s"] <= 60
    assert 100 < (await peer.ask("one", "hurried.context", timeout=150_000.5))["data"]["left_s"] <= 150.0005


class Hurried(Service):
    name = "hurried"

    @action(timeout=60)
    async def context(self, ctx: Context) -> Any:
        return describe(ctx)


async def test_c50_the_timeout_of_an_action_applies_to_remote_callers_too(cluster: Cluster) -> None:
    one, two = await cluster.start(("one", [Hurried(), Echo()]), ("two", []), request_timeout=5)
    for broker in (one, two):
        assert 50 < (await broker.call("hurried.context"))["left_s"] <= 60
        assert 100 < (await broker.call("hurried.context", timeout=150))["left_s"] <= 150
        assert (await broker.call("hurried.context", timeout=0))["left_s"] is None
        assert 0 < (await broker.call("echo.context"))["left_s"] <= 5


async def test_c47_the_remaining_time_is_passed_on_and_no_option_extends_it(cluster: Cluster) -> None:
    *_, root = await cluster.start(("one", [Echo()]), ("two", [Relay()]), ("root", []))
    forward = {"action": "echo.context"}
    assert 100 < (await root.call("relay.forward", forward, timeout=200))["left_s"] <= 200
    longer = {**forward, "options": {"timeout": 1000}}
    assert 100 < (await root.call("relay.forward", longer, timeout=200))["left_s"] <= 200
    shorter = {**forward, "options": {"timeout": 50}}
    assert 10 < (await root.call("relay.forward", shorter, timeout=200))["left_s"] <= 50
    never = {**forward, "options": {"timeout": 0}}
    assert 100 < (await root.call("relay.forward", never, timeout=200))["left_s"] <= 200


async def test_c47_a_nested_call_without_time_left_is_skipped_without_a_packet(cluster: Cluster) -> None:
    one, _ = await cluster.start(("one", []), ("two", [Echo()]))
    parent = Context.outgoing(one, "one", action="outer")
    parent.deadline = anyio.current_time() - 1
    with pytest.raises(RequestSkippedError) as caught:
        await parent.call("echo.where")
    assert caught.value.data == {"action": "echo.where", "nodeID": "one"}
    assert one._node.transit.requests.pending == {}


async def test_a_request_whose_time_is_already_over_is_not_run(cluster: Cluster) -> None:
    gate = Gate()
    await cluster.start_one("one", [gate])
    peer = await cluster.raw_peer("peer", "RES")
    answer = await peer.ask("one", "gate.wait", timeout=0.000001)
    assert answer["error"]["name"] == "RequestTimeoutError"
    assert gate.entered == []


class Flaky(Service):
    """Fails the given number of times, then succeeds."""

    name = "flaky"

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.contexts: list[dict[str, Any]] = []

    @action
    async def work(self, ctx: Context) -> str:
        self.contexts.append(describe(ctx))
        if len(self.contexts) <= self.failures:
            raise MoleculerRetryableError("not yet")
        return "done"


async def test_c77_each_attempt_has_a_new_id_and_the_same_request(cluster: Cluster) -> None:
    flaky = Flaky(2)
    _, two = await cluster.start(("one", [flaky]), ("two", []))
    assert await two.call("flaky.work", retries=2, request_id="req-1", meta={"a": 1}) == "done"
    assert len({context["id"] for context in flaky.contexts}) == 3
    assert {context["request_id"] for context in flaky.contexts} == {"req-1"}
    assert [context["meta"] for context in flaky.contexts] == [{"a": 1}] * 3


async def test_the_error_is_raised_after_the_last_retry(cluster: Cluster) -> None:
    flaky = Flaky(5)
    _, two = await cluster.start(("one", [flaky]), ("two", []))
    with pytest.raises(MoleculerRetryableError, match="not yet"):
        await two.call("flaky.work", retries=1)
    assert len(flaky.contexts) == 2


async def test_errors_that_are_not_retryable_are_not_retried(cluster: Cluster) -> None:
    _, two = await cluster.start(("one", [Math()]), ("two", []))
    with pytest.raises(RemoteError):
        await two.call("math.crash", retries=5)


async def test_a_fallback_replaces_an_error(cluster: Cluster) -> None:
    one, two = await cluster.start(("one", [Math()]), ("two", []))

    async def later(ctx: Context | None, error: MoleculerError) -> str:
        return f"instead of {type(error).__name__}"

    for broker in (one, two):
        assert await broker.call("math.fail", {"name": "MoleculerError", "message": "x"}, fallback="plan b") == "plan b"
        assert await broker.call("math.fail", {"name": "MoleculerError", "message": "x"}, fallback=None) is None
        answer = await broker.call("math.fail", {"name": "MoleculerServerError", "message": "x"}, fallback=later)
        assert answer == "instead of MoleculerServerError"
        answer = await broker.call(
            "math.fail", {"name": "MoleculerError", "message": "x"}, fallback=lambda _, e: e.code
        )
        assert answer == 500


async def test_a_fallback_replaces_a_python_exception_too(cluster: Cluster) -> None:
    one, two = await cluster.start(("one", [Math()]), ("two", []))
    for broker in (one, two):
        assert await broker.call("math.crash", fallback="plan b") == "plan b"


async def test_an_unknown_action_has_no_fallback_as_in_js(cluster: Cluster) -> None:
    one = await cluster.start_one("one", [Math()])
    with pytest.raises(MoleculerError):
        await one.call("no.such", fallback="plan b")


async def test_middlewares_wrap_local_and_remote_calls(cluster: Cluster) -> None:
    seen: list[Any] = []

    async def watching(call_next: Any, ctx: Context) -> Any:
        seen.append(ctx.action)
        return f"<{await call_next(ctx)}>"

    one = await cluster.start_one("one", [Echo()], middlewares=[watching])
    two = await cluster.start_one("two")
    assert await one.call("echo.where") == "<one>"
    assert await two.call("echo.where") == "<one>"
    assert seen == ["echo.where", "echo.where"]
