"""Calls on the wire: Python sends the same requests and answers as the JS node of the cluster (§5)."""

from datetime import UTC, datetime
from typing import Any

import anyio
import pytest

from broker import RequestSkippedError, Service, action
from broker.context import ABSENT, Context
from tests.interop.conftest import Cluster
from tests.support.js_node import JsError

pytestmark = pytest.mark.anyio

CALLERS_OWN = ("id", "action", "sender", "requestID")


async def requests(cluster: Cluster, params: Any, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The REQ of a Python and of a JS caller for the same call."""
    mark = await cluster.tap.mark()
    await cluster.broker.call("echo.params", params, **options)
    in_js = {"requestID": options["request_id"]} if "request_id" in options else {}
    in_js |= {name: value for name, value in options.items() if name in ("meta", "headers", "caller")}
    in_js |= {"timeout": options["timeout"] * 1000} if "timeout" in options else {}
    given = {} if params is ABSENT else {"params": params}
    await cluster.js.command("call", action="pyecho.params", options=in_js, **given)
    await cluster.tap.catch_up()
    ours, theirs = cluster.tap.find("REQ.js", after=mark), cluster.tap.find("REQ.py", after=mark)
    assert (len(ours), len(theirs)) == (1, 1)
    return ours[0], theirs[0]


@pytest.mark.parametrize(
    "params", [ABSENT, {}, None, 0, False, "", 5, "text", [], [1, 2], {"a": {"b": None}}], ids=repr
)
async def test_c35_c36_a_request_equals_the_one_that_js_sends(cluster: Cluster, params: Any) -> None:
    ours, theirs = await requests(cluster, params)
    for packet in (ours, theirs):
        assert packet["requestID"] == packet["id"]
        if cluster.ver == "4" and not packet["params"]:
            packet["stream"] = False  # JS 0.14 sends the falsy value itself here
    assert {**ours, **dict.fromkeys(CALLERS_OWN)} == {**theirs, **dict.fromkeys(CALLERS_OWN)}
    assert ours["params"] == ({} if params is ABSENT else params)
    assert ("headers" in ours) == (cluster.ver == "5")


async def test_c35_c36_c46_call_options_are_sent_as_by_js(cluster: Cluster) -> None:
    options = {"meta": {"m": 1, "$statusCode": 201}, "headers": {"h": "1"}, "request_id": "r-1", "timeout": 2.5}
    ours, theirs = await requests(cluster, {"a": 1}, caller="someone", **options)
    own = ("id", "action", "sender", "timeout")
    assert {**ours, **dict.fromkeys(own)} == {**theirs, **dict.fromkeys(own)}
    assert 0 < ours["timeout"] <= theirs["timeout"] == 2500
    assert (ours["requestID"], ours["meta"], ours["caller"]) == ("r-1", {"m": 1, "$statusCode": 201}, "someone")


async def test_c36_c39_c40_a_request_gets_one_answer_with_the_fields_of_js(cluster: Cluster) -> None:
    for params in ({"a": 1}, None):
        mark = await cluster.tap.mark()
        await cluster.broker.call("echo.params", params, meta={"m": 1})
        await cluster.js.call("pyecho.params", params, meta={"m": 1})
        await cluster.tap.catch_up()
        theirs, ours = cluster.tap.find("RES.py", after=mark), cluster.tap.find("RES.js", after=mark)
        assert (len(theirs), len(ours)) == (1, 1)
        asked = cluster.tap.find("REQ.py", after=mark)[0]["id"]
        assert {**theirs[0], "id": asked, "sender": "py"} == ours[0]
    mark = await cluster.tap.mark()
    await cluster.js.call("pyecho.nothing")
    await cluster.tap.catch_up()
    assert cluster.tap.find("RES.js", after=mark)[0].get("data") is None


async def test_c39_each_of_many_requests_is_answered_once(cluster: Cluster) -> None:
    mark = await cluster.tap.mark()
    await cluster.js.mcall([{"action": "pymath.add", "params": {"a": number}} for number in range(50)])
    await cluster.tap.catch_up()
    asked = [packet["id"] for packet in cluster.tap.find("REQ.py", after=mark)]
    assert sorted(asked) == sorted(packet["id"] for packet in cluster.tap.find("RES.js", after=mark))


async def test_c44_meta_that_the_callee_sets_wins_and_meta_that_it_removes_stays(cluster: Cluster) -> None:
    meta: dict[str, Any] = {"kept": 1, "nested": {"a": 1, "b": 2}, "$d": 1, "nulled": 1}
    order = {"set": {"nested": {"a": 9}, "$d": 2, "nulled": None, "$new": 3}, "remove": ["kept"]}
    expected = {"kept": 1, "nested": {"a": 9}, "$d": 2, "nulled": None, "$new": 3}
    for fails in (False, True):
        given = {**order, "fails": fails}
        ours = dict(meta)
        try:
            await cluster.broker.call("echo.changeMeta", given, meta=ours)
        except Exception:
            assert fails
        assert ours == expected
        try:
            theirs = (await cluster.js.call_for_reply("pyecho.changeMeta", given, meta=meta)).meta
        except JsError as error:
            assert fails
            theirs = error.meta or {}
        assert theirs == expected


async def test_c45_a_nested_call_names_its_parent_request_and_caller(cluster: Cluster) -> None:
    """Without headers: those belong to one call."""
    for first, action_name, nested in (("js", "pychain.call", "REQ.js"), ("py", "chain.call", "REQ.py")):
        mark = await cluster.tap.mark()
        order = {"action": "echo.params" if first == "js" else "pyecho.params", "params": 1}
        if first == "js":
            await cluster.js.call(action_name, order, meta={"m": 1}, headers={"h": "1"}, requestID="r-2")
        else:
            await cluster.broker.call(action_name, order, meta={"m": 1}, headers={"h": "1"}, request_id="r-2")
        await cluster.tap.catch_up()
        outer = cluster.tap.find(f"REQ.{'py' if first == 'js' else 'js'}", after=mark)[0]
        inner = cluster.tap.find(nested, after=mark)[0]
        assert (outer["level"], inner["level"]) == (1, 2)
        assert inner["parentID"] == outer["id"] != inner["id"]
        assert (inner["requestID"], inner["caller"]) == ("r-2", action_name.split(".")[0])
        assert inner["meta"] == {"m": 1}
        assert inner.get("headers") == ({} if cluster.ver == "5" else None)


async def test_c46_c47_the_remaining_time_is_passed_on_with_fractions(cluster: Cluster) -> None:
    for nested, call in (
        ("REQ.js", cluster.js.call("pychain.call", {"action": "echo.params", "params": 1}, timeout=5000.25)),
        ("REQ.py", cluster.broker.call("chain.call", {"action": "pyecho.params", "params": 1}, timeout=5.00025)),
    ):
        mark = await cluster.tap.mark()
        await call
        await cluster.tap.catch_up()
        left = cluster.tap.find(nested, after=mark)[0]["timeout"]
        assert 0 < left < 5000.25
        assert left != int(left)
    mark = await cluster.tap.mark()
    order = {"action": "echo.params", "params": 1, "options": {"timeout": 0.5}}
    await cluster.js.call("pychain.call", order, timeout=20_000)
    await cluster.tap.catch_up()
    assert cluster.tap.find("REQ.js", after=mark)[0]["timeout"] <= 500, "an option may make it shorter"


async def test_c46_no_timeout_is_sent_as_zero_and_a_missing_one_means_the_callees_default(cluster: Cluster) -> None:
    ours, theirs = await requests(cluster, {})
    assert (ours["timeout"], theirs["timeout"]) == (0, 0)
    for node, impatient in (("js", "slow.impatient"), ("py", "pyslow.impatient")):
        answer = await cluster.tap.ask(node, impatient, ver=cluster.ver, params={})
        assert answer["error"]["name"] == "RequestTimeoutError"


async def test_c47_a_nested_call_without_time_left_is_not_sent(cluster: Cluster) -> None:
    class Late(Service):
        name = "late"

        @action
        async def call(self, ctx: Context) -> str:
            assert ctx.deadline is not None
            ctx.deadline = anyio.current_time()  # as if the handler had used up all its time
            with pytest.raises(RequestSkippedError) as caught:
                await ctx.call("echo.params", 1)
            error = caught.value
            assert (error.code, error.type) == (514, "REQUEST_SKIPPED")
            assert error.data == {"action": "echo.params", "nodeID": "py"}
            return "late"

    await cluster.broker.add_service(Late())
    await cluster.js.wait_for_services("late")
    mark = await cluster.tap.mark()
    assert await cluster.js.call("late.call", timeout=20_000) == "late"
    await cluster.tap.catch_up()
    assert cluster.tap.find("REQ.js", after=mark) == []
    await cluster.broker.remove_service("late")


async def test_c48_the_callee_answers_when_the_callers_timeout_is_over(cluster: Cluster) -> None:
    errors = {}
    for node, slow in (("js", "slow.wait"), ("py", "pyslow.wait")):
        answer = await cluster.tap.ask(node, slow, ver=cluster.ver, params={"ms": 60_000}, timeout=50.5, meta={"m": 1})
        errors[node] = answer["error"]
        assert answer["meta"] == {"m": 1}
        assert errors[node]["data"] == {"action": slow, "nodeID": "tap"}, "the caller is named"
    for field in ("name", "code", "type", "retryable"):
        assert errors["py"][field] == errors["js"][field]


async def test_c83_bytes_dates_and_numbers_are_encoded_as_by_javascript(cluster: Cluster) -> None:
    values = {
        "bytes": b"\x00\xff",
        "date": datetime(2023, 11, 14, 22, 13, 20, 123_000, tzinfo=UTC),
        "old": datetime(1969, 12, 31, 23, 59, 58, 500_000, tzinfo=UTC),
        "nan": float("nan"),
        "infinite": float("inf"),
        "list": [float("-inf")],
    }
    code = (
        "return broker.call('pyecho.params', { bytes: Buffer.from([0, 255]), date: new Date(1700000000123),"
        " old: new Date(-1500), nan: NaN, infinite: Infinity, list: [-Infinity] })"
    )
    mark = await cluster.tap.mark()
    there = await cluster.broker.call("echo.params", values)
    back = await cluster.js.run(code)
    await cluster.tap.catch_up()
    ours, theirs = cluster.tap.find("REQ.js", after=mark)[0], cluster.tap.find("REQ.py", after=mark)[0]
    assert ours["params"] == theirs["params"] == there == back
    assert ours["params"]["bytes"] == {"type": "Buffer", "data": [0, 255]}
    assert ours["params"]["date"] == "2023-11-14T22:13:20.123Z"
