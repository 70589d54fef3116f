"""How JS and Python nodes notice heartbeats, missing heartbeats and the loss of a node (protocol §4.3, §4.4)."""

import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import anyio
import pytest

from broker import Context, RequestRejectedError, Service, ServiceBroker, ServiceNotAvailableError, event
from tests.interop.services import PythonMath
from tests.support.js_node import PROTOCOLS, VERSIONS, JsError, JsNode, js_node
from tests.support.processes import start_python
from tests.support.tap import Tap, open_tap
from tests.support.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("js_modules")]

QUICK_JS = {"heartbeatInterval": 1, "heartbeatTimeout": 2}

# The internal events of the JS node, with the field names of the node in their payloads.
JS_OBSERVER = """
broker.notified = [];
const take = ctx => {
    const { node, ...flags } = ctx.params;
    const names = node ? { node: Object.keys(JSON.parse(JSON.stringify(node))).sort() } : {};
    if (!node || node.id === "notified") broker.notified.push([ctx.eventName, { ...flags, ...names }]);
};
broker.createService({ name: "notified", events: { "$node.*": take, "$services.changed": take } });
await broker.waitForServices("notified", 10000, 20);
broker.notified.length = 0;
"""


class Observer(Service):
    """Records the internal events of its node."""

    name = "observer"

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []

    @event("$node.*")
    async def on_node(self, ctx: Context) -> None:
        self.seen.append((ctx.event or "", ctx.params))

    @event("$services.changed")
    async def on_services(self, ctx: Context) -> None:
        self.seen.append((ctx.event or "", ctx.params))

    async def wait_for(self, name: str, node_id: str, wanted: Callable[[Any], bool] = lambda payload: True) -> Any:
        def found() -> Any:
            return [
                payload
                for received, payload in self.seen
                if received == name and payload["node"]["id"] == node_id and wanted(payload)
            ]

        return (await eventually(found, f"{name} of {node_id}"))[0]


@dataclass(frozen=True)
class Quick:
    version: str
    js: JsNode
    broker: ServiceBroker
    observer: Observer
    tap: Tap

    @property
    def ver(self) -> str:
        return PROTOCOLS[self.version]

    def beat(self, sender: str) -> dict[str, Any]:
        return {"ver": self.ver, "sender": sender, "cpu": 7}

    def info(self, sender: str, **fields: Any) -> dict[str, Any]:
        actions = {f"{sender}.run": {"name": f"{sender}.run", "rawName": "run"}}
        service = {"name": sender, "fullName": sender, "settings": {}, "metadata": {}, "actions": actions, "events": {}}
        packet = {"services": [service], "instanceID": f"i-{sender}", "seq": 2, "config": {}, "metadata": {}}
        return {"ver": self.ver, "sender": sender, **packet, **fields}

    async def known(self, node_id: str) -> None:
        await self.observer.wait_for("$node.connected", node_id)
        await self.js.local_event("$node.connected", lambda payload: payload["node"] == node_id)

    async def gone(self, node_id: str, *, unexpected: bool) -> None:
        payload = await self.observer.wait_for("$node.disconnected", node_id)
        assert payload["unexpected"] is unexpected
        notified = await self.js.local_event("$node.disconnected", lambda payload: payload["node"] == node_id)
        assert notified["unexpected"] is unexpected


@pytest.fixture(scope="module", params=VERSIONS)
async def quick(request: pytest.FixtureRequest, nats_url: str, js_modules: object) -> AsyncIterator[Quick]:
    namespace = f"quick-{uuid.uuid4().hex[:12]}"
    observer = Observer()
    async with (
        open_tap(nats_url, namespace) as tap,
        js_node(request.param, nats_url, namespace, "js", **QUICK_JS) as js,
        ServiceBroker(
            "py",
            namespace=namespace,
            transporter=nats_url,
            protocol=PROTOCOLS[request.param],
            services=[observer, PythonMath()],
            heartbeat_interval=1,
            heartbeat_timeout=2,
        ) as broker,
    ):
        await js.wait_for_services("pymath")
        yield Quick(request.param, js, broker, observer, tap)


async def test_c26_heartbeats_report_the_cpu_load_as_an_integer(quick: Quick) -> None:
    for node in ("js", "py"):
        mark = await quick.tap.mark()
        beat = await quick.tap.wait_for("HEARTBEAT", after=mark, sender=node)
        assert set(beat) == {"cpu", "ver", "sender"}
        assert beat["cpu"] is None or (type(beat["cpu"]) is int and 0 <= beat["cpu"] <= 100)


async def test_c27_each_heartbeat_of_an_unknown_node_is_answered_with_one_discover_to_it(quick: Quick) -> None:
    for number in (1, 2):
        await quick.tap.publish("HEARTBEAT", quick.beat("unknown"))
        for node in ("js", "py"):
            await quick.tap.settle(node, ver=quick.ver)
            questions = quick.tap.find("DISCOVER.unknown", sender=node)
            assert questions == [{"ver": quick.ver, "sender": node}] * number


async def test_c23_c28_c31_a_node_without_heartbeats_is_lost_however_often_it_announces_itself(quick: Quick) -> None:
    await quick.tap.publish("INFO", quick.info("silent"))
    await quick.known("silent")
    mark = quick.js.mark()
    async with anyio.create_task_group() as tasks:

        async def introduce() -> None:
            for seq in range(3, 1000):
                await quick.tap.publish("INFO", quick.info("silent", seq=seq))
                await anyio.sleep(0.2)

        tasks.start_soon(introduce)
        await quick.observer.wait_for("$node.updated", "silent")
        await quick.gone("silent", unexpected=True)
        # From here on it is a node that has come back.
        payload = await quick.observer.wait_for("$node.connected", "silent", lambda payload: payload["reconnected"])
        assert payload["node"]["available"] is True
        await quick.js.local_event(
            "$node.connected", lambda payload: payload["node"] == "silent" and payload["reconnected"], after=mark
        )
        tasks.cancel_scope.cancel()
    assert ("$services.changed", {"localService": False}) in quick.observer.seen


async def test_c23_internal_events_have_the_payloads_of_js(quick: Quick) -> None:
    await quick.js.run(JS_OBSERVER)
    quick.observer.seen.clear()
    for seq in (2, 3):
        await quick.tap.publish("INFO", quick.info("notified", seq=seq, hostname="h", ipList=["10.0.0.1"], client={}))
    await quick.tap.publish("DISCONNECT", {"ver": quick.ver, "sender": "notified"})
    await quick.gone("notified", unexpected=False)
    theirs = await quick.js.run("return broker.notified;")
    ours = [[name, _shape(payload)] for name, payload in quick.observer.seen]
    of_the_node = ("$node.connected", "$node.updated", "$node.disconnected")
    for name in (*of_the_node, "$services.changed"):
        shapes = [shape for received, shape in theirs if received == name]
        assert [shape for received, shape in ours if received == name][: len(shapes)] == shapes, name
    assert [name for name, _ in ours if name in of_the_node] == list(of_the_node)


def _shape(payload: dict[str, Any]) -> dict[str, Any]:
    """The flags, and the field names of the node."""
    return {name: sorted(value) if name == "node" else value for name, value in sorted(payload.items())}


async def test_c27_c28_a_heartbeat_of_a_lost_node_is_answered_with_a_discover_and_its_actions_are_unavailable(
    quick: Quick,
) -> None:
    await quick.tap.publish("INFO", quick.info("lost"))
    await quick.known("lost")
    await quick.gone("lost", unexpected=True)
    with pytest.raises(ServiceNotAvailableError):
        await quick.broker.call("lost.run")
    with pytest.raises(JsError) as caught:
        await quick.js.call("lost.run")
    assert caught.value.type == "SERVICE_NOT_AVAILABLE"
    mark = await quick.tap.mark()
    await quick.tap.publish("HEARTBEAT", quick.beat("lost"))
    for node in ("js", "py"):
        await quick.tap.settle(node, ver=quick.ver)
    assert sorted(packet["sender"] for packet in quick.tap.find("DISCOVER.lost", after=mark)) == ["js", "py"]


async def test_c28_c29_calls_to_a_node_that_leaves_are_rejected(quick: Quick) -> None:
    """The node is a raw peer that never answers. The tap subscribes too, so NATS does not report no responders."""
    for name, unexpected in (("quiet", True), ("polite", False)):
        await quick.tap.publish("INFO", quick.info(name))
        await quick.known(name)
        errors: list[Any] = []

        async def from_python(name: str = name, errors: list[Any] = errors) -> None:
            with pytest.raises(RequestRejectedError) as caught:
                await quick.broker.call(f"{name}.run")
            errors.append(caught.value)

        async def from_js(name: str = name, errors: list[Any] = errors) -> None:
            with pytest.raises(JsError) as caught:
                await quick.js.call(f"{name}.run")
            errors.append(caught.value)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(from_python)
            tasks.start_soon(from_js)
            for node in ("js", "py"):
                await quick.tap.wait_for(f"REQ.{name}", sender=node)
            if not unexpected:
                await quick.tap.publish("DISCONNECT", {"ver": quick.ver, "sender": name})
        for error in errors:
            assert (error.name, error.code, error.retryable) == ("RequestRejectedError", 503, True)
            assert error.data == {"action": f"{name}.run", "nodeID": name}
        await quick.gone(name, unexpected=unexpected)


async def test_c30_a_node_that_has_been_gone_for_long_is_forgotten(
    version: str, nats_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.conversation.transit.FORGET_OFFLINE_S", 2.0)
    async with ServiceBroker("py", namespace=namespace, transporter=nats_url, services=[PythonMath()]) as broker:
        async with js_node(version, nats_url, namespace, "js") as js:
            await js.wait_for_services("pymath")
            await eventually(lambda: "js" in broker.registry.nodes, "the JS node to be known")
        await eventually(lambda: not broker.registry.nodes["js"].available, "the JS node to be gone")
        await eventually(lambda: "js" not in broker.registry.nodes, "the JS node to be forgotten")


async def test_c28_c89_a_killed_python_node_is_noticed_and_calls_to_it_fail(
    version: str, nats_url: str, namespace: str
) -> None:
    async with (
        js_node(version, nats_url, namespace, "js", **QUICK_JS) as js,
        start_python("-m", "tests.interop.python_node", nats_url, namespace, "py") as process,
    ):
        await js.wait_for_services("pyslow")
        started = anyio.current_time()
        async with anyio.create_task_group() as tasks:

            async def call() -> None:
                with pytest.raises(JsError) as caught:
                    await js.call("pyslow.wait", {"ms": 600_000})
                assert caught.value.type == "REQUEST_REJECTED"

            tasks.start_soon(call)
            await process.kill()
        assert anyio.current_time() - started >= 1, "its loss was noticed by missing heartbeats"
        gone = await js.local_event("$node.disconnected")
        assert (gone["node"], gone["unexpected"]) == ("py", True)
        mark = js.mark()
        async with start_python("-m", "tests.interop.python_node", nats_url, namespace, "py"):
            await js.local_event("$node.connected", lambda payload: payload["reconnected"], after=mark)
            assert await js.call("pymath.add", {"a": 1}, timeout=30_000) == 2
