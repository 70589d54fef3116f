"""Unusual or invalid packets are handled as by the JS node of the cluster (protocol §2.1, §2.2)."""

from typing import Any

import pytest

from tests.interop.conftest import Cluster

pytestmark = pytest.mark.anyio

NODES = ("js", "py")


async def settle(cluster: Cluster) -> None:
    for node in NODES:
        await cluster.tap.settle(node, ver=cluster.ver)


def published(cluster: Cluster, after: int) -> list[str]:
    """The subjects that both nodes have published to since, without heartbeats and the answers to `settle`."""
    topics = [topic for node in NODES for topic in cluster.tap.topics(after=after, sender=node)]
    return sorted(topic for topic in topics if topic not in ("HEARTBEAT", "PONG.tap"))


async def test_c9_every_packet_has_a_sender_and_a_version_as_text(cluster: Cluster) -> None:
    await cluster.broker.call("math.add", {"a": 1, "b": 2})
    await cluster.js.call("pymath.add", {"a": 1})
    await cluster.broker.broadcast("$circuit.nothing")
    assert await cluster.broker.ping("js")
    assert await cluster.js.ping("py")
    await settle(cluster)
    commands = set()
    for seen in cluster.tap.seen:
        if seen.packet.get("sender") == "py":
            commands.add(seen.topic.split(".")[0])
            assert seen.packet["ver"] in (cluster.ver, "5"), seen
            if "." in seen.topic:
                assert seen.packet["ver"] == cluster.ver, "a packet for one node is in its version"
    assert commands >= {"REQ", "RES", "INFO", "DISCOVER", "PING", "PONG"}


@pytest.mark.parametrize("ver", ["6", 4, 5, None, ["4"], "absent"], ids=repr)
async def test_c10_packets_of_an_unknown_version_are_dropped_without_an_answer(cluster: Cluster, ver: Any) -> None:
    await settle(cluster)
    mark = await cluster.tap.mark()
    packet: dict[str, Any] = {"sender": "old", "id": "1", "time": 1, "services": [], "instanceID": "i", "seq": 1}
    if ver != "absent":
        packet["ver"] = ver
    for topic in ("DISCOVER", "INFO", "HEARTBEAT", "PING"):
        await cluster.tap.publish(topic, packet)
    for node, action in (("js", "math.add"), ("py", "pymath.add")):
        await cluster.tap.publish(f"REQ.{node}", {**packet, "action": action, "params": {"a": 1, "b": 2}})
    await settle(cluster)
    assert published(cluster, mark) == []
    assert "old" not in await cluster.js.nodes()
    assert "old" not in cluster.broker.registry.nodes


@pytest.mark.parametrize("data", [b"", b"null", b"{", b"\xff\xfe", b"[]", b"17", b'"text"'], ids=repr)
async def test_c11_bytes_that_are_not_a_packet_are_dropped(cluster: Cluster, data: bytes) -> None:
    await settle(cluster)
    mark = await cluster.tap.mark()
    for node in NODES:
        for command in ("REQ", "RES", "EVENT", "PING", "DISCOVER", "INFO", "PONG"):
            await cluster.tap.publish(f"{command}.{node}", data)
    await settle(cluster)
    assert published(cluster, mark) == []
    assert await cluster.broker.call("math.add", {"a": 1, "b": 2}) == 3
    assert await cluster.js.call("pymath.add", {"a": 1}) == 2


async def test_c12_packets_that_name_the_node_itself_as_sender_are_ignored_except_calls(cluster: Cluster) -> None:
    instances = {node["id"]: node["instanceID"] for node in (await cluster.js.nodes()).values()}
    await settle(cluster)
    mark = await cluster.tap.mark()
    for node in NODES:
        own = {"ver": cluster.ver, "sender": node}
        for topic in ("DISCOVER", f"DISCOVER.{node}", "PING", f"PING.{node}", "HEARTBEAT"):
            await cluster.tap.publish(topic, {**own, "id": "1", "time": 1})
    await settle(cluster)
    for node, other in (("js", "py"), ("py", "js")):
        for answer in (f"INFO.{node}", f"PONG.{node}"):
            assert cluster.tap.find(answer, after=mark, sender=other), (
                "the other node answers a packet that names this node as sender"
            )
            assert cluster.tap.find(answer, after=mark, sender=node) == []
    for node in NODES:
        echo: dict[str, Any] = {**own, "sender": node, "services": [], "instanceID": instances[node], "seq": 99}
        await cluster.tap.publish(f"INFO.{node}", echo)
    await settle(cluster)
    assert await cluster.js.call("math.add", {"a": 1, "b": 1}) == 2
    assert await cluster.broker.call("pymath.add", {"a": 1}) == 2

    mark = await cluster.tap.mark()
    for node, action in (("js", "echo.params"), ("py", "pyecho.params")):
        packet = {"ver": cluster.ver, "sender": node, "id": "own", "action": action, "params": 5}
        await cluster.tap.publish(f"REQ.{node}", packet)
        assert (await cluster.tap.wait_for(f"RES.{node}", after=mark, id="own"))["data"] == 5


async def test_c13_unknown_fields_are_ignored(cluster: Cluster) -> None:
    extra: dict[str, Any] = {"zebra": {"deep": [1]}, "priority": 7}
    for node, action in (("js", "echo.params"), ("py", "pyecho.params")):
        answer = await cluster.tap.ask(node, action, ver=cluster.ver, params=[1], **extra)
        assert (answer["success"], answer["data"], "zebra" in answer) == (True, [1], False)
    mark = await cluster.tap.mark()
    for node in NODES:
        await cluster.tap.publish(f"PING.{node}", {"ver": cluster.ver, "sender": "tap", "id": "x", "time": 5, **extra})
        pong = await cluster.tap.wait_for("PONG.tap", after=mark, id="x", sender=node)
        assert (pong["time"], "zebra" in pong) == (5, False)


async def test_c38_a_stream_flag_of_null_means_no_stream(cluster: Cluster) -> None:
    for node, action in (("js", "echo.params"), ("py", "pyecho.params")):
        answer = await cluster.tap.ask(node, action, ver=cluster.ver, params=None, stream=None)
        assert (answer["success"], answer["data"]) == (True, None)


async def test_c37_a_call_needs_only_an_id_an_action_a_version_and_a_sender(cluster: Cluster) -> None:
    for node, action in (("js", "chain.call"), ("py", "pychain.call")):
        assert (await cluster.tap.ask(node, action, ver=cluster.ver))["success"] is False, "it ran, and missed params"
    for node, action in (("js", "echo.nothing"), ("py", "pyecho.nothing")):
        answer = await cluster.tap.ask(node, action, ver=cluster.ver)
        assert (answer["success"], answer.get("data")) == (True, None)


async def test_c41_c42_unknown_and_private_actions_are_refused_with_the_meta_echoed(cluster: Cluster) -> None:
    for node, private in (("js", "math.hidden"), ("py", "pymath.hidden")):
        for action in ("no.such", private):
            answer = await cluster.tap.ask(node, action, ver=cluster.ver, meta={"k": 1, "$d": 2}, params={})
            error = answer["error"]
            assert (answer["success"], answer["data"], answer["meta"]) == (False, None, {"k": 1, "$d": 2})
            assert (error["name"], error["code"], error["type"]) == ("ServiceNotFoundError", 404, "SERVICE_NOT_FOUND")
            assert (error["data"], error["retryable"], error["nodeID"]) == (
                {"action": action, "nodeID": node},
                True,
                node,
            )
            assert error["message"] == f"Service '{action}' is not found on '{node}' node."
            assert answer.get("headers", "none") == (None if cluster.ver == "5" else "none")


async def test_c18_a_protected_action_can_be_called_by_a_request_to_its_node(cluster: Cluster) -> None:
    for node, action in (("js", "math.secret"), ("py", "pymath.secret")):
        assert (await cluster.tap.ask(node, action, ver=cluster.ver))["data"] == "secret"


async def test_c43_answers_without_a_pending_request_are_ignored(cluster: Cluster) -> None:
    async def answer(node: str, request_id: str) -> None:
        packet = {"ver": cluster.ver, "sender": "tap", "id": request_id, "meta": {}, "success": True, "data": "forged"}
        await cluster.tap.publish(f"RES.{node}", packet)

    mark = await cluster.tap.mark()
    assert await cluster.broker.call("echo.params", "one") == "one"
    assert await cluster.js.call("pyecho.params", "one") == "one"
    await cluster.tap.catch_up()
    for asked, asking in (("js", "py"), ("py", "js")):
        request = cluster.tap.find(f"REQ.{asked}", after=mark)[0]
        await answer(asking, request["id"])  # a second answer
        await answer(asking, "never asked")
    await settle(cluster)
    assert await cluster.broker.call("echo.params", "two") == "two"
    assert await cluster.js.call("pyecho.params", "two") == "two"
