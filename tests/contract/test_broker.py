"""Calls between brokers, over memory and over NATS (protocol §5)."""

from typing import Any

import anyio
import pytest

from broker import (
    Context,
    MoleculerError,
    RemoteError,
    ServiceNotAvailableError,
    ServiceNotFoundError,
    ValidationError,
    action,
)
from broker import errors as broker_errors
from tests.broker.test_errors import FROM_DATA, TAXONOMY
from tests.support.cluster import Cluster
from tests.support.example_services import Echo, Gate, Math, Relay
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


async def test_nodes_find_each_other_and_call_both_ways(cluster: Cluster) -> None:
    one, two = await cluster.start(("one", [Math()]), ("two", [Echo()]))
    assert await two.call("math.add", {"a": 1, "b": 2}) == 3
    assert await one.call("echo.where") == "two"
    assert await one.call("math.add", {"a": 1, "b": 2}) == 3


async def test_nodes_discover_a_node_that_joins_later(cluster: Cluster) -> None:
    one = await cluster.start_one("one", [Math()])
    two = await cluster.start_one("two", [Echo()])
    assert await two.call("math.add", {"a": 1, "b": 2}) == 3
    assert await one.call("echo.where") == "two"


async def test_c1_namespaces_never_mix(cluster: Cluster) -> None:
    one = await cluster.start_one("one", [Math()])
    other = cluster.make("other", [Echo()], namespace=f"{cluster.namespace}-other")
    await other.start()
    two = await cluster.start_one("two", [Relay()])
    await one.wait_for_services("relay")
    for broker in (one, two):
        assert "other" not in broker.registry.nodes
    assert set(other.registry.nodes) == {"other"}


@pytest.mark.parametrize(
    "value", [{}, {"a": [1, {"b": None}]}, None, 5, 0, "", "é\U0001f600\u0000", [], [1, "x"], True, False, 1.5, {"": 1}]
)
async def test_c35_params_and_results_of_any_shape_arrive_unchanged(cluster: Cluster, value: Any) -> None:
    one, two = await cluster.start(("one", [Echo()]), ("two", []))
    for broker in (one, two):
        assert await broker.call("echo.params", value) == value


async def test_c35_absent_params_arrive_as_an_empty_object(cluster: Cluster) -> None:
    one, two = await cluster.start(("one", [Echo()]), ("two", []))
    for broker in (one, two):
        assert await broker.call("echo.params") == {}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("struct", {"x": 1, "y": 0}),
        ("structs", [{"x": 1, "y": 0}, {"x": 2, "y": 0}]),
        ("raw", {"a": 1}),
        ("nested", {"rows": [1, {"point": {"x": 3, "y": 0}}], "one": [2]}),
        ("late", [1, 2, {"x": 4, "y": 0}, 5]),
        ("none", None),
        ("text", "é\U0001f600"),
    ],
)
async def test_a_local_caller_gets_the_same_result_as_a_remote_one(cluster: Cluster, kind: str, expected: Any) -> None:
    one, two = await cluster.start(("one", [Math()]), ("two", []))
    for broker in (two, one):
        assert await broker.call("math.shapes", kind) == expected


async def test_c58_a_validation_error_names_every_violation(cluster: Cluster) -> None:
    one, two = await cluster.start(("one", [Math()]), ("two", []))
    for broker in (one, two):
        with pytest.raises(ValidationError) as caught:
            await broker.call("math.add", {"a": "x", "c": 11})
        error = caught.value
        assert (error.code, error.type, error.retryable) == (422, "VALIDATION_ERROR", False)
        assert [(item["field"], item["type"]) for item in error.data] == [
            ("a", "number"),
            ("b", "required"),
            ("c", "number"),
        ]
        for item in error.data:
            assert item["nodeID"] == broker.node_id
            assert item["action"] == "math.add"
            assert item["message"]
    assert caught.value.node_id == "one"


@pytest.mark.parametrize("params", [None, [], "text", 5])
async def test_typed_params_that_are_not_an_object_are_rejected_with_422(cluster: Cluster, params: Any) -> None:
    one, two = await cluster.start(("one", [Math()]), ("two", []))
    for broker in (one, two):
        with pytest.raises(ValidationError):
            await broker.call("math.add", params)


@pytest.mark.parametrize(("name", "code", "type", "retryable"), TAXONOMY)
async def test_c55_every_error_arrives_as_it_was_raised(
    cluster: Cluster, name: str, code: int, type: str | None, retryable: bool
) -> None:
    _, two = await cluster.start(("one", [Math()]), ("two", []))
    params: dict[str, Any] = {"name": name, "message": "what happened", "data": [{"field": "a"}]}
    if name in FROM_DATA:
        params |= {"from_data": True, "data": FROM_DATA[name][0]}
    with pytest.raises(MoleculerError) as caught:
        await two.call("math.fail", params)
    error = caught.value
    assert error.__class__ is getattr(broker_errors, name)
    assert (error.code, error.type, error.retryable) == (code, type, retryable)
    assert error.message == (FROM_DATA[name][1] if name in FROM_DATA else "what happened")
    assert error.data == (None if name == "BrokerDisconnectedError" else params["data"])
    assert error.node_id == "one"


async def test_c56_an_error_of_an_unknown_class_keeps_its_name(cluster: Cluster) -> None:
    _, two = await cluster.start(("one", [Math()]), ("two", []))
    with pytest.raises(RemoteError) as caught:
        await two.call(
            "math.fail", {"name": "MyError", "message": "mine", "code": 599, "type": "MINE", "data": {"z": 1}}
        )
    error = caught.value
    assert (error.name, error.message, error.code, error.type, error.data) == ("MyError", "mine", 599, "MINE", {"z": 1})


async def test_a_python_exception_arrives_as_a_500_with_its_name(cluster: Cluster) -> None:
    _, two = await cluster.start(("one", [Math()]), ("two", []))
    with pytest.raises(RemoteError) as caught:
        await two.call("math.crash")
    assert (caught.value.name, caught.value.message, caught.value.code) == ("ZeroDivisionError", "by zero", 500)
    assert caught.value.retryable is False


async def test_c57_a_forwarded_error_names_the_node_it_came_from(cluster: Cluster) -> None:
    *_, three = await cluster.start(("one", [Math()]), ("two", [Relay()]), ("three", []))
    with pytest.raises(RemoteError) as caught:
        await three.call("relay.forward", {"action": "math.crash"})
    assert caught.value.node_id == "one"


@pytest.mark.parametrize("where", ["result", "meta", "data"])
async def test_a_result_that_cannot_be_encoded_is_a_typed_500(cluster: Cluster, where: str) -> None:
    _, two = await cluster.start(("one", [Math()]), ("two", []))
    with pytest.raises(MoleculerError) as caught:
        await two.call("math.odd", {"where": where})
    assert (caught.value.code, caught.value.type) == (500, "UNSERIALIZABLE")
    assert await two.call("math.add", {"a": 1, "b": 1}) == 2


@pytest.mark.parametrize("options", [{"params": {"odd": object()}}, {"meta": {"odd": object()}}])
async def test_params_that_cannot_be_encoded_are_a_typed_error_at_the_caller(
    cluster: Cluster, options: dict[str, Any]
) -> None:
    _, two = await cluster.start(("one", [Echo()]), ("two", []))
    with pytest.raises(MoleculerError) as caught:
        await two.call("echo.params", **options)
    assert caught.value.type == "UNSERIALIZABLE"


async def test_c49_an_action_that_no_node_ever_offered_is_not_found(cluster: Cluster) -> None:
    one, two = await cluster.start(("one", [Math()]), ("two", []))
    for broker in (one, two):
        with pytest.raises(ServiceNotFoundError) as caught:
            await broker.call("math.nothing")
        assert caught.value.data == {"action": "math.nothing"}


async def test_c49_an_action_whose_last_node_left_is_not_available(cluster: Cluster) -> None:
    one, two = await cluster.start(("one", [Math()]), ("two", []))
    await one.stop()
    await eventually(lambda: not two.registry.has_service("math"))
    with pytest.raises(ServiceNotAvailableError) as caught:
        await two.call("math.add", {"a": 1, "b": 2})
    assert caught.value.data == {"action": "math.add"}


async def test_a_call_can_be_sent_to_a_named_node(cluster: Cluster) -> None:
    one, *_ = await cluster.start(("one", [Echo()]), ("two", [Echo()]), ("three", [Echo()]))
    for node_id in ("one", "two", "three"):
        assert await one.call("echo.where", node_id=node_id) == node_id
    with pytest.raises(ServiceNotFoundError) as caught:
        await one.call("echo.where", node_id="four")
    assert caught.value.data == {"action": "echo.where", "nodeID": "four"}


async def test_c75_calls_go_to_the_nodes_in_turn(cluster: Cluster) -> None:
    *_, caller = await cluster.start(("one", [Echo()]), ("two", [Echo()]), ("three", [Echo()]), ("caller", []))
    answers = [await caller.call("echo.where") for _ in range(6)]
    assert sorted(answers[:3]) == ["one", "three", "two"]
    assert answers[3:] == answers[:3]


async def test_c76_the_local_node_is_preferred_by_default(cluster: Cluster) -> None:
    one, _ = await cluster.start(("one", [Echo()]), ("two", [Echo()]))
    assert {await one.call("echo.where") for _ in range(4)} == {"one"}
    three = await cluster.start_one("three", [Echo()], prefer_local=False)
    assert {await three.call("echo.where") for _ in range(6)} == {"one", "two", "three"}


async def test_ten_slow_calls_to_one_node_run_concurrently(cluster: Cluster) -> None:
    gate = Gate()
    _, two = await cluster.start(("one", [gate]), ("two", []))
    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(two.call, "gate.wait", number)
        await eventually(lambda: gate.inside == 10, "ten calls inside the handler")
        gate.opened.set()
    assert gate.most == 10
    assert sorted(gate.entered) == list(range(10))


@pytest.mark.parametrize("times", [1, 200])
async def test_nested_calls_back_and_forth_do_not_block_each_other(cluster: Cluster, times: int) -> None:
    one, two = await cluster.start(("one", [Relay(), Echo()]), ("two", [BackAndForth()]))
    answers: list[Any] = []

    async def call() -> None:
        answers.append(await one.call("back.and_forth", {"turns": 6}))

    async with anyio.create_task_group() as tasks:
        for _ in range(times):
            tasks.start_soon(call)
    assert answers == ["one"] * times
    assert two.registry.has_service("relay")


async def test_mcall_returns_results_in_the_shape_of_its_calls(cluster: Cluster) -> None:
    _, two = await cluster.start(("one", [Math()]), ("two", []))
    adds = [{"action": "math.add", "params": {"a": number, "b": 1}} for number in range(5)]
    assert await two.mcall(adds) == [1, 2, 3, 4, 5]
    assert await two.mcall({"first": adds[0], "second": adds[3]}) == {"first": 1, "second": 4}
    assert await two.mcall([]) == []
    assert await two.mcall({}) == {}


async def test_mcall_raises_the_first_error_or_returns_all_outcomes(cluster: Cluster) -> None:
    _, two = await cluster.start(("one", [Math()]), ("two", []))
    calls: list[dict[str, Any]] = [{"action": "math.add", "params": {"a": 1, "b": 1}}, {"action": "math.crash"}]
    with pytest.raises(RemoteError, match="by zero"):
        await two.mcall(calls)
    fine, failed = await two.mcall(calls, settled=True)
    assert fine == {"status": "fulfilled", "value": 2}
    assert failed["status"] == "rejected"
    assert failed["reason"].name == "ZeroDivisionError"
    by_name = await two.mcall({"fine": calls[0], "failed": calls[1]}, settled=True)
    assert by_name["fine"] == fine
    assert (by_name["failed"]["status"], by_name["failed"]["reason"].name) == ("rejected", "ZeroDivisionError")


async def test_mcall_cancels_the_other_calls_when_one_fails(cluster: Cluster) -> None:
    gate = Gate()
    _, two = await cluster.start(("one", [Math(), gate]), ("two", []))
    with pytest.raises(RemoteError):
        await two.mcall([{"action": "gate.wait"}, {"action": "math.crash"}])
    assert two._node.transit.requests.pending == {}
    gate.opened.set()


@pytest.mark.parametrize("item", [{}, {"params": {}}, {"action": 5}, "math.add", None])
async def test_an_mcall_without_an_action_is_a_typed_error(cluster: Cluster, item: Any) -> None:
    _, two = await cluster.start(("one", [Math()]), ("two", []))
    with pytest.raises(MoleculerError) as caught:
        await two.mcall([item])
    assert caught.value.type == "INVALID_PARAMETERS"


class BackAndForth(Relay):
    """Calls the relay of the other node, which calls this one back, and so on."""

    name = "back"

    @action
    async def and_forth(self, ctx: Context, turns: int) -> Any:
        if not turns:
            return await ctx.call("echo.where")
        params = {"action": "back.and_forth", "params": {"turns": turns - 1}}
        return await ctx.call("relay.forward", params)
