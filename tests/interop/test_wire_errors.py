"""Errors on the wire: Python sends the same as JS for the same failure (protocol §6)."""

from typing import Any

import pytest

from broker import MoleculerError, RemoteError
from broker import errors as broker_errors
from tests.interop.conftest import Cluster
from tests.interop.test_errors import ORDERS, WHERE
from tests.support.js_node import JsError

pytestmark = pytest.mark.anyio

RARE: list[dict[str, Any]] = [
    {"class": "GracefulStopTimeoutError", "data": {"name": "s", "version": 2}},
    {"class": "ProtocolVersionMismatchError", "data": {"nodeID": "n", "actual": "5", "received": "4"}},
    {"class": "InvalidPacketDataError", "data": {"packet": 1}},
    {"class": "BrokerDisconnectedError"},
]
"""The errors that the framework raises, and services hardly ever do."""

FROM_DATA = [
    *(order["class"] for order, *_ in ORDERS if order.get("data") == WHERE),
    "QueueIsFullError",
    "MaxCallLevelError",
    "ProtocolVersionMismatchError",
    "InvalidPacketDataError",
]


async def failures(cluster: Cluster, order: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The RES of the Python and of the JS node that throw the same error."""
    ours = await cluster.tap.ask("py", "pyerrors.throw", ver=cluster.ver, params=order, meta={"m": 1})
    theirs = await cluster.tap.ask("js", "errors.throw", ver=cluster.ver, params=order, meta={"m": 1})
    return ours, theirs


@pytest.mark.parametrize("order", [*(order for order, *_ in ORDERS), *RARE], ids=lambda order: order["class"])
async def test_c52_c54_c55_an_error_has_the_keys_and_values_that_js_sends(
    cluster: Cluster, order: dict[str, Any]
) -> None:
    ours, theirs = await failures(cluster, order)
    assert {**ours, "id": 0, "sender": 0, "error": 0} == {**theirs, "id": 0, "sender": 0, "error": 0}
    assert (ours["success"], ours["data"], ours["meta"]) == (False, None, {"m": 1})
    assert ours["error"].pop("nodeID") == "py"
    assert theirs["error"].pop("nodeID") == "js"
    for error in (ours["error"], theirs["error"]):
        assert isinstance(error.pop("stack", ""), str)
    assert ours["error"] == theirs["error"]
    assert isinstance(ours["error"]["message"], str)
    assert isinstance(ours["error"]["retryable"], bool)


@pytest.mark.parametrize("order", RARE, ids=lambda order: order["class"])
async def test_c55_errors_of_the_framework_are_recreated_by_class(cluster: Cluster, order: dict[str, Any]) -> None:
    with pytest.raises(MoleculerError) as in_python:
        await cluster.broker.call("errors.throw", order, timeout=30)
    with pytest.raises(JsError) as in_js:
        await cluster.js.call("pyerrors.throw", order, timeout=30_000)
    kind = getattr(broker_errors, order["class"])
    for error in (in_python.value, in_js.value):
        assert (error.name, error.code, error.type) == (order["class"], kind.default_code, kind.default_type)
        assert error.retryable is kind.default_retryable
    known_to_js = order["class"] != "BrokerDisconnectedError"
    assert in_js.value.js_class == (order["class"] if known_to_js else "Error")


@pytest.mark.parametrize("name", FROM_DATA)
async def test_c53_data_is_an_object_even_when_none_was_given(cluster: Cluster, name: str) -> None:
    answer = await cluster.tap.ask("py", "pyerrors.throw", ver=cluster.ver, params={"class": name})
    assert isinstance(answer["error"]["data"], dict)
    with pytest.raises(JsError) as caught:  # without an object the JS caller would never get an answer
        await cluster.js.call("pyerrors.throw", {"class": name})
    assert (caught.value.name, caught.value.js_class) == (name, name)


async def test_c52_a_python_exception_has_the_fields_that_js_leaves_out(cluster: Cluster) -> None:
    answer = await cluster.tap.ask(
        "py", "pyerrors.throw", ver=cluster.ver, params={"class": "KeyError", "message": "k"}
    )
    error = answer["error"]
    assert (error["name"], error["message"], error["retryable"]) == ("KeyError", "'k'", False)
    assert set(error) >= {"name", "message", "nodeID", "code", "retryable", "stack"}


async def test_c59_messages_that_are_not_text_and_codes_that_are_not_numbers_are_accepted(cluster: Cluster) -> None:
    with pytest.raises(MoleculerError) as caught:
        await cluster.broker.call("errors.throw", {"class": "object", "data": {"why": [1]}}, timeout=30)
    assert (caught.value.code, caught.value.message) == (500, {"why": [1]})
    order = {"class": "coded", "message": "no luck", "code": "E_CUSTOM", "type": "T", "data": 5}
    with pytest.raises(RemoteError) as coded:
        await cluster.broker.call("errors.throw", order, timeout=30)
    assert (coded.value.name, coded.value.code, coded.value.type, coded.value.data) == ("Error", "E_CUSTOM", "T", 5)
    # And passed on through Python to JS.
    for wanted in (order, {"class": "object", "data": {"why": [1]}}):
        with pytest.raises(JsError) as in_js:
            await cluster.js.call("pychain.call", {"action": "errors.throw", "params": wanted})
        assert in_js.value.node_id == "js"
    assert in_js.value.message == {"why": [1]}


async def test_c56_c57_an_unknown_error_passes_through_python_unchanged(cluster: Cluster) -> None:
    order = {"class": "HomemadeError", "message": "m", "code": 451, "type": "T", "data": {"a": None}}
    direct = await cluster.tap.ask("js", "errors.throw", ver=cluster.ver, params=order)
    forward = {"action": "errors.throw", "params": order}
    through = await cluster.tap.ask("py", "pychain.call", ver=cluster.ver, params=forward)
    for error in (direct["error"], through["error"]):
        error.pop("stack")
    assert through["error"] == direct["error"]
    assert through["error"]["nodeID"] == "js"


async def test_c58_violations_name_the_caller_and_the_action_as_in_js(cluster: Cluster) -> None:
    items = {}
    for node, called in (("py", "pymath.add"), ("js", "math.add")):
        answer = await cluster.tap.ask(node, called, ver=cluster.ver, params={"a": "x", "b": 1})
        error = answer["error"]
        assert (error["name"], error["code"], error["type"]) == ("ValidationError", 422, "VALIDATION_ERROR")
        assert (error["message"], error["retryable"]) == ("Parameters validation error!", False)
        (items[node],) = error["data"]
        assert (items[node]["nodeID"], items[node]["action"]) == ("tap", called)
        assert isinstance(items[node]["message"], str)
    for field in ("type", "field", "actual"):
        assert items["py"][field] == items["js"][field]
