"""Errors between a Python node and a JS node: each side gets the error that the other raised."""

from typing import Any

import pytest

from broker import (
    MoleculerError,
    PayloadTooLargeError,
    RemoteError,
    RequestTimeoutError,
    ServiceNotFoundError,
    ValidationError,
)
from broker import errors as broker_errors
from tests.interop.conftest import Cluster
from tests.support.js_node import JsError

pytestmark = pytest.mark.anyio

GIVEN = {"message": "no luck", "code": 451, "type": "NO_LUCK", "data": {"why": [1, None]}}
WHERE = {"action": "some.action", "nodeID": "some-node"}
# The requested error, and its code, type and retryable on arrival.
ORDERS: list[tuple[dict[str, Any], int, str, bool]] = [
    ({"class": "MoleculerError", **GIVEN}, 451, "NO_LUCK", False),
    ({"class": "MoleculerRetryableError", **GIVEN}, 451, "NO_LUCK", True),
    ({"class": "MoleculerServerError", **GIVEN}, 451, "NO_LUCK", True),
    ({"class": "MoleculerClientError", **GIVEN}, 451, "NO_LUCK", False),
    ({"class": "ValidationError", "message": "no luck", "type": "BAD", "data": [{"field": "a"}]}, 422, "BAD", False),
    ({"class": "ServiceNotFoundError", "data": WHERE}, 404, "SERVICE_NOT_FOUND", True),
    ({"class": "ServiceNotAvailableError", "data": WHERE}, 404, "SERVICE_NOT_AVAILABLE", True),
    ({"class": "RequestTimeoutError", "data": WHERE}, 504, "REQUEST_TIMEOUT", True),
    ({"class": "RequestSkippedError", "data": WHERE}, 514, "REQUEST_SKIPPED", False),
    ({"class": "RequestRejectedError", "data": WHERE}, 503, "REQUEST_REJECTED", True),
    ({"class": "QueueIsFullError", "data": {**WHERE, "size": 3, "limit": 2}}, 429, "QUEUE_FULL", True),
    ({"class": "MaxCallLevelError", "data": {"nodeID": "n", "level": 9}}, 500, "MAX_CALL_LEVEL", False),
    ({"class": "ServiceSchemaError", "message": "no luck", "data": {"a": 1}}, 500, "SERVICE_SCHEMA_ERROR", False),
    ({"class": "BrokerOptionsError", "message": "no luck", "data": {"a": 1}}, 500, "BROKER_OPTIONS_ERROR", False),
]
IDS = [order[0]["class"] for order in ORDERS]


@pytest.mark.parametrize(("order", "code", "kind", "retryable"), ORDERS, ids=IDS)
async def test_c55_python_gets_the_error_that_js_threw(
    cluster: Cluster, order: dict[str, Any], code: int, kind: str, retryable: bool
) -> None:
    with pytest.raises(getattr(broker_errors, order["class"])) as caught:
        await cluster.broker.call("errors.throw", order, timeout=30)
    error: MoleculerError = caught.value
    assert type(error).__name__ == order["class"]
    assert (error.code, error.type, error.retryable, error.data) == (code, kind, retryable, order["data"])
    assert error.node_id == "js"
    assert str(error) == order.get("message", str(error))


@pytest.mark.parametrize(("order", "code", "kind", "retryable"), ORDERS, ids=IDS)
async def test_c53_c55_js_gets_the_error_that_python_raised(
    cluster: Cluster, order: dict[str, Any], code: int, kind: str, retryable: bool
) -> None:
    with pytest.raises(JsError) as caught:
        await cluster.js.call("pyerrors.throw", order, timeout=30000)
    error = caught.value
    assert (error.name, error.js_class) == (order["class"], order["class"])
    assert (error.code, error.type, error.retryable, error.data) == (code, kind, retryable, order["data"])
    assert error.node_id == "py"
    assert error.message == order.get("message", error.message)


async def test_c55_both_sides_describe_an_error_in_the_same_words(cluster: Cluster) -> None:
    order = {"class": "RequestTimeoutError", "data": WHERE}
    with pytest.raises(RequestTimeoutError) as in_python:
        await cluster.broker.call("errors.throw", order)
    with pytest.raises(JsError) as in_js:
        await cluster.js.call("pyerrors.throw", order)
    assert str(in_python.value) == in_js.value.message


async def test_c56_an_error_class_that_only_js_knows_keeps_its_name(cluster: Cluster) -> None:
    with pytest.raises(RemoteError) as caught:
        await cluster.broker.call("errors.throw", {"class": "HomemadeError", **GIVEN})
    assert (caught.value.name, caught.value.code, caught.value.type) == ("HomemadeError", 451, "NO_LUCK")
    assert caught.value.data == GIVEN["data"]


async def test_c56_an_error_class_that_only_python_knows_keeps_its_name(cluster: Cluster) -> None:
    with pytest.raises(JsError) as caught:
        await cluster.js.call("pyerrors.throw", {"class": "HomemadeError", **GIVEN})
    assert (caught.value.name, caught.value.code, caught.value.type) == ("HomemadeError", 451, "NO_LUCK")
    assert caught.value.data == GIVEN["data"]


async def test_c52_c56_a_builtin_exception_keeps_its_name(cluster: Cluster) -> None:
    with pytest.raises(RemoteError) as in_python:
        await cluster.broker.call("errors.throw", {"class": "TypeError", "message": "oops"})
    assert (in_python.value.name, in_python.value.code, str(in_python.value)) == (
        "TypeError",
        None,
        "oops",
    )  # as JS sends it
    with pytest.raises(JsError) as in_js:
        await cluster.js.call("pyerrors.throw", {"class": "KeyError", "message": "oops"})
    assert (in_js.value.name, in_js.value.code, in_js.value.message) == ("KeyError", 500, "'oops'")


async def test_c59_a_value_thrown_in_js_that_is_not_an_error_is_one_in_python(cluster: Cluster) -> None:
    with pytest.raises(MoleculerError, match="oops") as caught:
        await cluster.broker.call("errors.throw", {"class": "text", "message": "oops"})
    assert caught.value.code == 500


async def test_js_refuses_invalid_params(cluster: Cluster) -> None:
    with pytest.raises(ValidationError) as caught:
        await cluster.broker.call("math.add", {"a": "one", "b": 2})
    assert (caught.value.code, caught.value.type) == (422, "VALIDATION_ERROR")
    assert [(item["type"], item["field"]) for item in caught.value.data] == [("number", "a")]


@pytest.mark.parametrize(
    ("action", "params", "field"),
    [
        ("pymath.add", {"a": "one"}, "a"),
        ("pymath.add", {}, "a"),
        ("pymath.add", None, "a"),
        ("pymath.longest", {"words": ["a", 1]}, "words[1]"),
        ("pymath.longest", {"words": []}, "words"),
    ],
)
async def test_c58_python_refuses_invalid_params(cluster: Cluster, action: str, params: Any, field: str) -> None:
    with pytest.raises(JsError) as caught:
        await cluster.js.call(action, params)
    error = caught.value
    assert (error.name, error.js_class) == ("ValidationError", "ValidationError")
    assert (error.code, error.type, error.retryable) == (422, "VALIDATION_ERROR", False)
    assert field in [item["field"] for item in error.data]
    assert [item for item in error.data if not item.get("message")] == []


async def test_c58_params_that_are_not_an_object_are_refused(cluster: Cluster) -> None:
    with pytest.raises(JsError) as caught:
        await cluster.js.call("pymath.add", [1, 2])
    assert caught.value.code == 422


async def test_c49_a_call_of_an_action_that_no_node_offers_is_not_found(cluster: Cluster) -> None:
    with pytest.raises(ServiceNotFoundError) as in_python:
        await cluster.broker.call("math.subtract")
    with pytest.raises(JsError) as in_js:
        await cluster.js.call("pymath.subtract")
    assert (in_python.value.data, in_js.value.data) == ({"action": "math.subtract"}, {"action": "pymath.subtract"})
    assert in_js.value.type == "SERVICE_NOT_FOUND"


async def test_c49_a_call_of_an_action_that_its_named_node_does_not_offer_is_not_found(cluster: Cluster) -> None:
    with pytest.raises(ServiceNotFoundError) as in_python:
        await cluster.broker.call("pymath.add", {"a": 1}, node_id="js")
    assert in_python.value.data == {"action": "pymath.add", "nodeID": "js"}
    with pytest.raises(ServiceNotFoundError):
        await cluster.broker.call("math.add", {"a": 1, "b": 2}, node_id="missing")
    with pytest.raises(JsError) as in_js:
        await cluster.js.call("math.add", {"a": 1, "b": 2}, nodeID="py")
    assert in_js.value.data == {"action": "math.add", "nodeID": "py"}


async def test_c43_a_call_that_is_answered_too_late_times_out(cluster: Cluster) -> None:
    with pytest.raises(RequestTimeoutError) as in_python:
        await cluster.broker.call("slow.wait", {"ms": 60_000}, timeout=0.2)
    assert in_python.value.data == {"action": "slow.wait", "nodeID": "js"}
    with pytest.raises(JsError) as in_js:
        await cluster.js.call("pyslow.wait", {"ms": 60_000}, timeout=200)
    assert (in_js.value.name, in_js.value.code, in_js.value.retryable) == ("RequestTimeoutError", 504, True)


async def test_c50_the_timeout_of_an_action_applies_to_its_callers(cluster: Cluster) -> None:
    with pytest.raises(JsError) as caught:
        await cluster.js.call("pyslow.impatient")
    assert caught.value.type == "REQUEST_TIMEOUT"


async def test_c47_a_nested_call_ends_when_the_time_of_the_outer_call_runs_out(cluster: Cluster) -> None:
    order = {"action": "slow.wait", "params": {"ms": 60_000}}
    with pytest.raises(JsError) as in_js:
        await cluster.js.call("pychain.call", order, timeout=300)
    assert in_js.value.type == "REQUEST_TIMEOUT"
    order = {"action": "pyslow.wait", "params": {"ms": 60_000}}
    with pytest.raises(RequestTimeoutError):
        await cluster.broker.call("chain.call", order, timeout=0.3)


async def test_c57_an_error_from_a_third_service_keeps_its_origin(cluster: Cluster) -> None:
    order = {"action": "errors.throw", "params": {"class": "MoleculerClientError", **GIVEN}}
    with pytest.raises(JsError) as caught:
        await cluster.js.call("pychain.call", order)
    assert (caught.value.name, caught.value.code, caught.value.data) == ("MoleculerClientError", 451, GIVEN["data"])
    assert caught.value.node_id == "js", "the node where it was thrown, not the one it passed through"


async def test_c86_params_above_the_servers_limit_fail_at_once(cluster: Cluster) -> None:
    with pytest.raises(PayloadTooLargeError) as caught:
        await cluster.broker.call("echo.params", "x" * 1_100_000, timeout=60)
    assert caught.value.data["limit"] == 1024 * 1024
    assert caught.value.data["size"] > 1_100_000


async def test_c86_a_result_above_the_servers_limit_is_an_error_at_the_caller(cluster: Cluster) -> None:
    with pytest.raises(JsError) as caught:
        await cluster.js.call("pyecho.big", {"size": 1_100_000}, timeout=60_000)
    error = caught.value
    assert (error.name, error.code, error.type) == ("PayloadTooLargeError", 413, "PAYLOAD_TOO_LARGE")
    assert caught.value.data["limit"] == 1024 * 1024


async def test_c86_a_result_of_js_above_the_servers_limit_is_an_error_at_python(cluster: Cluster) -> None:
    with pytest.raises(MoleculerError) as caught:
        await cluster.broker.call("blob.make", {"size": 1_100_000}, timeout=60)
    assert (caught.value.name, caught.value.code) == ("NatsError", "MAX_PAYLOAD_EXCEEDED")
