"""The JS nodes of these tests are plain Moleculer nodes that run commands of the test."""

import pytest

from tests.support.js_node import JsError, js_node

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("js_modules")]


@pytest.mark.parametrize("version", ["0.15", pytest.param("0.14", marks=pytest.mark.long)])
async def test_two_js_nodes_call_each_other(version: str, nats_url: str, namespace: str) -> None:
    async with js_node(version, nats_url, namespace, "a") as a, js_node(version, nats_url, namespace, "b") as b:
        await b.create_service("math")
        await b.create_service("echo")
        await b.create_service("errors")
        await a.wait_for_services("math", "echo", "errors")
        assert await a.call("math.add", {"a": 1, "b": 2}) == 3
        reply = await a.call_for_reply("echo.setMeta", {"seen": True}, meta={"user": 7})
        assert reply.meta == {"user": 7, "seen": True}
        assert (await a.call_for_reply("echo.nothing")).undefined
        with pytest.raises(JsError) as caught:
            await a.call("math.add", {"a": "one", "b": 2})
        assert (caught.value.code, caught.value.data[0]["field"]) == (422, "a")
        assert set(await a.nodes()) == {"a", "b"}
        assert (await a.ping("b"))["nodeID"] == "b"
        await b.stop()
        await a.local_event("$node.disconnected", lambda payload: payload["node"] == "b")
        assert a.logged() == []
