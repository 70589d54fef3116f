"""Python nodes that join, leave, crash, return and conflict, as JS nodes see it."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import anyio
import nats
import pytest

from broker import (
    BrokerOptionsError,
    RequestRejectedError,
    ServiceBroker,
    ServiceNotAvailableError,
    ServiceNotFoundError,
)
from tests.interop.conftest import PYTHON_SERVICES
from tests.interop.services import PythonMath, python_services
from tests.support.js_node import PROTOCOLS, JsError, JsNode, js_node
from tests.support.processes import DEADLINE_S, Process, start_python
from tests.support.tap import open_tap

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("js_modules")]


@contextlib.asynccontextmanager
async def python_node(nats_url: str, namespace: str, node_id: str) -> AsyncIterator[Process]:
    async with start_python("-m", "tests.interop.python_node", nats_url, namespace, node_id) as process:
        await process.line("ready")
        yield process


@pytest.fixture
async def js(version: str, nats_url: str, namespace: str) -> AsyncIterator[JsNode]:
    async with js_node(version, nats_url, namespace, "js") as node:
        yield node


def broker_with_services(nats_url: str, namespace: str, node_id: str = "py", **options: Any) -> ServiceBroker:
    return ServiceBroker(node_id, namespace=namespace, transporter=nats_url, services=python_services(), **options)


async def math_is_gone(broker: ServiceBroker) -> None:
    """Returns when the broker knows that no node offers `math` any more."""
    with anyio.fail_after(DEADLINE_S):
        while True:
            try:
                await broker.call("math.add", {"a": 1, "b": 2}, timeout=DEADLINE_S)
            except ServiceNotAvailableError:
                return
            except (RequestRejectedError, ServiceNotFoundError):
                pass  # the node left before it received the call, and its DISCONNECT is still in flight


async def test_c29_c49_a_stopping_node_sends_disconnect(resident: JsNode, nats_url: str) -> None:
    async with broker_with_services(nats_url, resident.namespace):
        await resident.wait_for_services(*PYTHON_SERVICES)
        mark = resident.mark()
    gone = await resident.local_event("$node.disconnected", lambda payload: payload["node"] == "py", after=mark)
    assert gone["unexpected"] is False
    with pytest.raises(JsError) as caught:
        await resident.call("pymath.add", {"a": 1})
    assert caught.value.type == "SERVICE_NOT_AVAILABLE"


async def test_c29_c49_python_removes_a_js_node_that_stops(js: JsNode, nats_url: str, namespace: str) -> None:
    await js.create_service("math")
    async with broker_with_services(nats_url, namespace) as broker:
        await broker.wait_for_services("math", timeout=30)
        await js.stop()
        await math_is_gone(broker)


async def test_c90_a_cluster_of_one_version_logs_no_errors(
    js: JsNode, version: str, nats_url: str, namespace: str
) -> None:
    await js.create_service("math")
    async with broker_with_services(nats_url, namespace, protocol=PROTOCOLS[version]) as broker:
        await js.wait_for_services(*PYTHON_SERVICES)
        await broker.wait_for_services("math", timeout=30)
        assert await js.call("pymath.add", {"a": 1}) == 2
        assert await broker.call("math.add", {"a": 1, "b": 1}) == 2
        assert await broker.ping("js", timeout=30)
        assert await js.ping("py")
    await js.local_event("$node.disconnected")
    assert js.logged("warn", "error", "fatal") == []


async def test_c21_a_node_can_come_back_under_its_id(resident: JsNode, nats_url: str) -> None:
    for _ in range(2):
        mark = resident.mark()
        async with python_node(nats_url, resident.namespace, "py") as process:
            await resident.wait_for_services(*PYTHON_SERVICES)
            assert await resident.call("pymath.add", {"a": 1}, timeout=30_000) == 2
            assert await process.terminate() == 0
        await resident.local_event("$node.disconnected", after=mark)


async def test_c21_c89_a_killed_node_can_come_back_under_its_id_at_once(resident: JsNode, nats_url: str) -> None:
    async with python_node(nats_url, resident.namespace, "py") as process:
        await resident.wait_for_services(*PYTHON_SERVICES)
        await process.kill()
    mark = resident.mark()
    async with python_node(nats_url, resident.namespace, "py"):
        await resident.local_event("$node.updated", lambda payload: payload["node"] == "py", after=mark)
        assert await resident.call("pymath.add", {"a": 1}, timeout=30_000) == 2
    assert resident.process.returncode is None


async def test_a_call_to_a_killed_js_node_fails_at_once(js: JsNode, nats_url: str, namespace: str) -> None:
    await js.create_service("math")
    # NATS reports no responders; missing heartbeats would be noticed only after an hour.
    async with broker_with_services(nats_url, namespace, heartbeat_timeout=3600) as broker:
        await broker.wait_for_services("math", timeout=30)
        await js.process.kill()
        with anyio.fail_after(DEADLINE_S), pytest.raises((RequestRejectedError, ServiceNotAvailableError)) as caught:
            await broker.call("math.add", {"a": 1, "b": 2})  # no timeout: it must not be needed
        assert caught.value.retryable


HANGING = """
broker.createService({ name: "hanging", actions: {
    hang(ctx) { globalThis.asked = true; return new Promise(() => {}); },
} });
await broker.waitForServices("hanging", 10000, 20);
"""


@contextlib.asynccontextmanager
async def call_under_way(js: JsNode, broker: ServiceBroker) -> AsyncIterator[anyio.Event]:
    """A call that the JS node has begun and will not answer; the event is set when it is rejected."""
    rejected = anyio.Event()

    async def call() -> None:
        with pytest.raises(RequestRejectedError):
            await broker.call("hanging.hang")
        rejected.set()

    await js.run(HANGING)
    await broker.wait_for_services("hanging", timeout=DEADLINE_S)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await js.run("while (!globalThis.asked) await new Promise(resolve => setTimeout(resolve, 5)); return true;")
        yield rejected


async def test_c28_a_call_in_flight_fails_soon_after_its_js_node_was_killed(
    js: JsNode, nats_url: str, namespace: str
) -> None:
    async with broker_with_services(nats_url, namespace, heartbeat_timeout=3600) as broker:
        async with call_under_way(js, broker) as rejected:
            await js.process.kill()
            with anyio.fail_after(DEADLINE_S):
                await rejected.wait()
        assert not broker.registry.nodes["js"].available


async def test_c21_a_call_in_flight_fails_when_another_process_takes_over_the_id_of_its_js_node(
    js: JsNode, version: str, nats_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.conversation.requests.NODE_PROBE_AFTER_S", 3600)
    async with (
        broker_with_services(nats_url, namespace, heartbeat_timeout=3600) as broker,
        call_under_way(js, broker) as rejected,
    ):
        await js.process.kill()
        async with js_node(version, nats_url, namespace, "js"):
            with anyio.fail_after(DEADLINE_S):
                await rejected.wait()
            assert broker.registry.nodes["js"].available


async def test_c8_a_second_node_with_the_id_of_a_js_node_is_refused(resident: JsNode, nats_url: str) -> None:
    await resident.create_service("math")
    with pytest.raises(BrokerOptionsError, match="Another node with the id 'js' is running"):
        await broker_with_services(nats_url, resident.namespace, "js").start()
    async with broker_with_services(nats_url, resident.namespace) as broker:
        await broker.wait_for_services("math", timeout=30)
        assert await broker.call("math.add", {"a": 1, "b": 1}, timeout=30) == 2, "the first node keeps running"
    assert resident.process.returncode is None
    await resident.command("destroyService", name="math")


async def test_c8_a_second_python_node_with_the_id_of_the_first_is_refused(resident: JsNode, nats_url: str) -> None:
    async with broker_with_services(nats_url, resident.namespace):
        await resident.wait_for_services(*PYTHON_SERVICES)
        async with start_python("-m", "tests.interop.python_node", nats_url, resident.namespace, "py") as second:
            assert await second.wait() == 1
            assert "Another node with the id 'py' is running" in second.stderr[-1]
        assert await resident.call("pymath.add", {"a": 1}, timeout=30_000) == 2


async def test_c8_a_python_node_stops_when_a_js_node_takes_its_id(version: str, nats_url: str, namespace: str) -> None:
    broker = broker_with_services(nats_url, namespace)
    async with open_tap(nats_url, namespace) as tap:
        await broker.start()
        await tap.wait_for("INFO", sender="py")  # a later INFO of it would stop the other node
    async with js_node(version, nats_url, namespace, "py") as newcomer:
        with (
            anyio.fail_after(DEADLINE_S),
            pytest.raises(BrokerOptionsError, match="'py' has joined, so this one stops"),
        ):
            await broker.wait_stopped()
        await broker.stop()
        assert set(await newcomer.nodes()) == {"py"}


async def test_c22_services_can_be_added_and_removed_while_the_node_runs(resident: JsNode, nats_url: str) -> None:
    async with ServiceBroker("py", namespace=resident.namespace, transporter=nats_url) as broker:
        await broker.add_service(PythonMath())
        await resident.wait_for_services("pymath")
        assert await resident.call("pymath.add", {"a": 1}) == 2
        mark = resident.mark()
        await broker.remove_service("pymath")
        await resident.local_event("$node.updated", after=mark)
        with pytest.raises(JsError) as caught:
            await resident.call("pymath.add", {"a": 1})
        assert caught.value.type == "SERVICE_NOT_AVAILABLE"
        await resident.create_service("math")
        await broker.wait_for_services("math", timeout=30)
        await resident.command("destroyService", name="math")
        await math_is_gone(broker)


async def test_c11_bytes_that_are_not_a_packet_change_nothing(js: JsNode, nats_url: str) -> None:
    async with broker_with_services(nats_url, js.namespace):
        await js.wait_for_services(*PYTHON_SERVICES)
        client = await nats.connect(nats_url)
        for topic in ("REQ.py", "RES.py", "EVENT.py", "INFO", "INFO.py", "DISCOVER", "HEARTBEAT", "PING.py", "PONG.py"):
            for data in (b"", b"\xff\x00", b"null", b"[]", b'{"ver":"5"}', b'{"ver":4,"sender":7}', b"x" * 10_000):
                await client.publish(f"MOL-{js.namespace}.{topic}", data)
        await client.flush()
        await client.close()
        assert await js.call("pymath.add", {"a": 1}, timeout=30_000) == 2
