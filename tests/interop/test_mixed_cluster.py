"""One cluster with a node of Moleculer 0.14, a node of 0.15 and a Python node, at the same time.

The JS nodes do not understand each other: each drops the packets of the other, with an error in its log. The Python
node talks to both, and calls pass from one to the other through its services.
"""

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import anyio
import pytest

from broker import Context, MoleculerClientError, Service, ServiceBroker, action, event
from tests.interop.conftest import PYTHON_SERVICES
from tests.interop.services import python_services
from tests.support.js_node import PROTOCOLS, JsError, JsNode, js_node
from tests.support.tap import Tap, open_tap
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


class Guest(Service):
    """Calls back."""

    name = "guest"

    @action
    async def back(self, ctx: Context, action: str) -> Any:
        return await ctx.call(action)

    @event("mixed.versions")
    async def on_versions(self, ctx: Context) -> None: ...


@dataclass(frozen=True)
class MixedCluster:
    old: JsNode
    new: JsNode
    broker: ServiceBroker
    tap: Tap
    options: dict[str, Any]
    """The options of a Python node in it."""


@pytest.fixture(scope="module")
async def mixed(nats_url: str, js_modules: object) -> AsyncIterator[MixedCluster]:
    namespace = f"mixed-{uuid.uuid4().hex[:12]}"
    quick = {"heartbeatInterval": 1, "heartbeatTimeout": 4}
    options: dict[str, Any] = {"namespace": namespace, "transporter": nats_url}
    options |= {"heartbeat_interval": 1, "heartbeat_timeout": 4}
    async with (
        open_tap(nats_url, namespace) as tap,
        js_node("0.14", nats_url, namespace, "old", **quick) as old,
        js_node("0.15", nats_url, namespace, "new", **quick) as new,
        ServiceBroker("py", services=python_services(), **options) as broker,
    ):
        await old.create_service("chain", name="old-chain")
        await new.create_service("chain", name="new-chain")
        for node in (old, new):
            await node.create_service("errors")
            await node.create_service("echo", version=node.node_id)
            await node.create_service("recorder", name=f"{node.node_id}-recorder", patterns=["mixed.*"])
            await node.wait_for_services(*PYTHON_SERVICES)
        await broker.wait_for_services("old-chain", "new-chain", "old.echo", "new.echo", timeout=30)
        await eventually(lambda: broker.peers.complete, "the node to know all others")
        yield MixedCluster(old, new, broker, tap, options)


async def test_c14_each_js_node_sees_the_python_node_and_python_sees_all(mixed: MixedCluster) -> None:
    assert set(await mixed.old.nodes()) == {"old", "py"}
    assert set(await mixed.new.nodes()) == {"new", "py"}
    assert {node.id: node.ver for node in mixed.broker.registry.nodes.values() if not node.local} == {
        "old": "4",
        "new": "5",
    }


async def test_c14_calls_of_both_versions_at_once(mixed: MixedCluster) -> None:
    async def call_from(node: JsNode) -> None:
        results[node.node_id] = await node.mcall([{"action": "pymath.add", "params": {"a": n}} for n in range(50)])

    results: dict[str, list[int]] = {}
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call_from, mixed.old)
        tasks.start_soon(call_from, mixed.new)
        seen = [await mixed.broker.call(f"{name}.echo.context", {"n": 1}, timeout=30) for name in ("old", "new")]
    assert results == {"old": list(range(1, 51)), "new": list(range(1, 51))}
    assert [one["params"] for one in seen] == [{"n": 1}, {"n": 1}]


async def test_a_call_passes_from_one_version_to_the_other_through_python(mixed: MixedCluster) -> None:
    for first, second in ((mixed.old, mixed.new), (mixed.new, mixed.old)):
        order = {"action": f"{second.node_id}.echo.context", "params": {"a": 1}}
        reply = await first.call_for_reply("pychain.call", order, meta={"m": 1}, requestID="r", timeout=30_000)
        seen = reply.result["result"]
        assert (seen["params"], seen["meta"], seen["requestID"]) == ({"a": 1}, {"m": 1}, "r")
        assert (seen["level"], seen["caller"], seen["nodeID"]) == (2, "pychain", "py")


async def test_an_error_passes_from_one_version_to_the_other(mixed: MixedCluster) -> None:
    failing = {"class": "MoleculerClientError", "message": "no", "code": 418, "type": "TEAPOT", "data": {"a": 1}}
    for first, second in ((mixed.old, mixed.new), (mixed.new, mixed.old)):
        with pytest.raises(MoleculerClientError) as in_python:
            await mixed.broker.call("errors.throw", failing, node_id=second.node_id, timeout=30)
        assert (in_python.value.node_id, in_python.value.type) == (second.node_id, "TEAPOT")
        order = {"action": f"{second.node_id}-chain.call", "params": {"action": "errors.throw", "params": failing}}
        with pytest.raises(JsError) as in_js:
            await first.call("pychain.call", order, timeout=30_000)
        error = in_js.value
        assert (error.name, error.code, error.data) == ("MoleculerClientError", 418, {"a": 1})
        assert error.node_id == second.node_id


async def test_c14_events_reach_both_versions(mixed: MixedCluster) -> None:
    await mixed.broker.wait_for_services("old-recorder", "new-recorder", timeout=30)
    await mixed.broker.broadcast("mixed.news", {"a": [1, None]}, meta={"m": 1})
    for node in (mixed.old, mixed.new):
        event = await node.recorded("mixed.news")
        assert (event["params"], event["meta"], event["nodeID"]) == ({"a": [1, None]}, {"m": 1}, "py")


async def test_c14_a_packet_for_one_node_is_in_its_version_and_a_broadcast_in_each_version(
    mixed: MixedCluster,
) -> None:
    mark, tap = await mixed.tap.mark(), mixed.tap

    def versions(topic: str, after: int = mark) -> list[str]:
        return [packet["ver"] for packet in tap.find(topic, after=after, sender="py-2")]

    async with ServiceBroker("py-2", services=[Guest()], **mixed.options) as second:
        for node in (mixed.old, mixed.new):
            await node.wait_for_services("guest")
            assert await node.call("guest.back", {"action": f"{node.node_id}.echo.params"}, timeout=30_000) == {}
            assert await node.ping("py-2")
            assert await second.ping(node.node_id, timeout=30)
        await second.wait_for_services("old-recorder", "new-recorder", timeout=30)
        await second.broadcast("mixed.versions")
        knows_both = await tap.mark()
        await eventually(lambda: len(versions("HEARTBEAT", knows_both)) >= 5, "heartbeats")
    await tap.wait_for("DISCONNECT", after=knows_both, ver="4")
    for node in (mixed.old, mixed.new):
        topics = {f"{kind}.{node.node_id}" for kind in ("REQ", "RES", "EVENT", "PING", "PONG", "DISCOVER")}
        assert topics <= set(tap.topics(after=mark, sender="py-2"))
        targeted = [one for one in tap.seen[mark:] if one.topic.endswith(f".{node.node_id}")]
        assert {one.packet["ver"] for one in targeted} == {PROTOCOLS[node.version]}
    once_each = ["5", "4"]
    assert versions("DISCOVER") == [], "the node that was there reported the others"
    assert versions("DISCONNECT") == once_each
    assert versions("INFO") == once_each * 2, "the announcement and the DISCONNECT"
    beats = versions("HEARTBEAT", knows_both)
    whole = beats[beats.index("5") :]  # the tap may have seen only one version of the first heartbeat
    assert whole == once_each * (len(whole) // 2)


async def test_c14_c26_the_python_node_stays_alive_for_both_by_its_heartbeats(mixed: MixedCluster) -> None:
    """Both JS nodes remove a node after 4 s without heartbeats and check every 4 s: 9 s cover two checks."""
    marks = [mixed.old.mark(), mixed.new.mark()]
    await anyio.sleep(9)  # there is no event to wait for when nothing may happen
    for node, mark in zip((mixed.old, mixed.new), marks, strict=True):
        lines = node.process.lines[mark:]
        lost = [line.text for line in lines if "$node.disconnected" in line.text and '"node":"py"' in line.text]
        assert lost == []
        assert await node.call("pymath.add", {"a": 1}, timeout=30_000) == 2
    assert {node.id for node in mixed.broker.registry.nodes.values() if node.available} == {"old", "new", "py"}


async def test_the_only_errors_in_js_logs_are_about_the_other_version(mixed: MixedCluster) -> None:
    for node in (mixed.old, mixed.new):
        assert [line for line in node.logged() if "Protocol version mismatch" not in line] == []
