"""Calls between a Python node and a JS node, in both directions."""

import pytest

from tests.interop.conftest import Cluster
from tests.support.js_node import JsError

pytestmark = pytest.mark.anyio

VALUES = [
    {},
    None,
    0,
    False,
    "",
    [],
    "text",
    [1, [2, {"a": None}]],
    {"nested": {"deep": [True, None, 1.5, "é😀\u2028"]}},
    {"big": 2**53, "small": -(2**53), "fraction": 0.1},
]


async def test_python_calls_js(cluster: Cluster) -> None:
    assert await cluster.broker.call("math.add", {"a": 1, "b": 2}) == 3


async def test_js_calls_python(cluster: Cluster) -> None:
    assert await cluster.js.call("pymath.add", {"a": 1, "b": 2}) == 3
    assert await cluster.js.call("pymath.add", {"a": 1}) == 2, "a parameter that is not given has its default"


async def test_c15_c16_each_node_sees_the_services_of_the_other_as_declared(cluster: Cluster) -> None:
    services = await cluster.js.services()
    assert (services["pymath"]["settings"], services["pymath"]["metadata"]) == ({"precision": 2}, {"region": "test"})
    assert set(services["pymath"]["actions"]) == {"pymath.add", "pymath.longest"}
    nodes = await cluster.js.nodes()
    assert (set(nodes), nodes["py"]["client"]["type"]) == ({"js", "py"}, "python")
    assert cluster.broker.registry.has_service("math")
    assert cluster.broker.registry.nodes["js"].client["type"] == "nodejs"


@pytest.mark.parametrize("value", VALUES, ids=repr)
async def test_c35_values_arrive_as_they_were_sent(cluster: Cluster, value: object) -> None:
    assert await cluster.broker.call("echo.params", value) == value
    assert await cluster.js.call("pyecho.params", value) == value


async def test_c35_missing_params_arrive_as_an_empty_object(cluster: Cluster) -> None:
    assert await cluster.broker.call("echo.params") == {}
    assert await cluster.js.call("pyecho.params") == {}


async def test_c40_an_action_without_a_result_returns_nothing(cluster: Cluster) -> None:
    assert await cluster.broker.call("echo.nothing") is None
    assert await cluster.js.call("pyecho.nothing") is None


async def test_c44_meta_reaches_the_callee_and_comes_back(cluster: Cluster) -> None:
    meta = {"user": 7, "kept": {"a": 1}}
    await cluster.broker.call("echo.setMeta", {"user": 8, "new": [1]}, meta=meta)
    assert meta == {"user": 8, "kept": {"a": 1}, "new": [1]}
    reply = await cluster.js.call_for_reply("pyecho.setMeta", {"user": 8, "new": [1]}, meta={"user": 7, "kept": 1})
    assert reply.meta == {"user": 8, "kept": 1, "new": [1]}


async def test_c44_meta_comes_back_with_an_error_too(cluster: Cluster) -> None:
    with pytest.raises(JsError) as caught:
        await cluster.js.call("pychain.call", {"action": "pyerrors.throw"}, meta={"user": 7})
    assert caught.value.meta == {"user": 7}


async def test_c36_js_knows_the_origin_of_a_python_call(cluster: Cluster) -> None:
    seen = await cluster.broker.call(
        "echo.context", {"a": 1}, meta={"m": 1}, headers={"h": "1"}, request_id="request-1"
    )
    assert (seen["params"], seen["meta"], seen["requestID"], seen["nodeID"]) == ({"a": 1}, {"m": 1}, "request-1", "py")
    assert (seen["level"], seen["caller"], seen["parentID"]) == (1, None, None)
    if cluster.version == "0.15":  # 0.14 has no headers
        assert seen["headers"] == {"h": "1"}


async def test_c36_python_knows_the_origin_of_a_js_call(cluster: Cluster) -> None:
    options = {"meta": {"m": 1}, "headers": {"h": "1"}, "requestID": "request-1", "caller": "someone"}
    seen = await cluster.js.call("pyecho.context", {"a": 1}, timeout=20000, **options)
    assert (seen["params"], seen["meta"], seen["requestID"], seen["nodeID"]) == ({"a": 1}, {"m": 1}, "request-1", "js")
    assert (seen["level"], seen["caller"], seen["parentID"]) == (1, "someone", None)
    assert 0 < seen["left"] <= 20
    assert seen["headers"] == ({"h": "1"} if cluster.version == "0.15" else {})


async def test_c45_c88_a_nested_call_belongs_to_its_request(cluster: Cluster) -> None:
    seen = await cluster.broker.call("chain.call", {"action": "pyecho.context"}, request_id="request-2", meta={"m": 1})
    assert (seen["level"], seen["result"]["level"]) == (1, 2)
    assert (seen["result"]["caller"], seen["result"]["requestID"]) == ("chain", "request-2")
    assert seen["result"]["meta"] == {"m": 1}
    seen = await cluster.js.call("pychain.call", {"action": "echo.context"}, requestID="request-3", meta={"m": 1})
    assert (seen["level"], seen["result"]["level"]) == (1, 2)
    assert (seen["result"]["caller"], seen["result"]["requestID"]) == ("pychain", "request-3")
    assert seen["result"]["meta"] == {"m": 1}


async def test_c44_c45_c88_meta_set_deep_in_a_chain_reaches_the_first_caller(cluster: Cluster) -> None:
    meta: dict[str, object] = {}
    await cluster.broker.call("chain.call", {"action": "pyecho.setMeta", "params": {"deep": 1}}, meta=meta)
    assert meta == {"deep": 1}
    reply = await cluster.js.call_for_reply("pychain.call", {"action": "echo.setMeta", "params": {"deep": 1}})
    assert reply.meta == {"deep": 1}


async def test_c88_nested_calls_back_and_forth_do_not_block_each_other(cluster: Cluster) -> None:
    path = await cluster.broker.call("chain.countdown", {"steps": 8, "next": "pychain.countdown"}, timeout=30)
    assert path == ["js", "py"] * 4
    path = await cluster.js.call("pychain.countdown", {"steps": 8, "next": "chain.countdown"}, timeout=30000)
    assert path == ["py", "js"] * 4


async def test_a_call_can_name_its_node(cluster: Cluster) -> None:
    assert await cluster.broker.call("math.add", {"a": 1, "b": 1}, node_id="js") == 2
    assert await cluster.js.call("pymath.add", {"a": 1, "b": 1}, nodeID="py") == 2


async def test_c18_a_protected_action_is_not_offered_to_others(cluster: Cluster) -> None:
    assert "pymath.secret" not in await cluster.js.actions()
    with pytest.raises(JsError) as caught:
        await cluster.js.call("pymath.secret")
    assert caught.value.type == "SERVICE_NOT_FOUND"


async def test_several_calls_at_once(cluster: Cluster) -> None:
    calls = [{"action": "pymath.add", "params": {"a": number}} for number in range(20)]
    assert await cluster.js.mcall(calls) == [number + 1 for number in range(20)]
    named: dict[str, dict[str, object]] = {
        "sum": {"action": "math.add", "params": {"a": 1, "b": 2}},
        "echo": {"action": "echo.params", "params": 5},
    }
    assert await cluster.broker.mcall(named) == {"sum": 3, "echo": 5}


async def test_pings_work_in_both_directions(cluster: Cluster) -> None:
    pong = await cluster.broker.ping("js", timeout=30)
    assert pong is not None
    assert (pong["nodeID"], pong["elapsedTime"] >= 0) == ("js", True)
    assert (await cluster.js.ping("py"))["nodeID"] == "py"
