"""Outages of NATS: calls fail at once or wait, and everything works again afterwards (protocol §4.5)."""

import logging
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from broker import BrokerDisconnectedError, Context, RequestTimeoutError, Service, ServiceBroker, action, event
from broker.node.node import Node
from broker.transports import make_transport
from broker.transports.base import Observer
from broker.transports.nats import NATSTransport
from broker.transports.nats_client import Connection
from tests.conftest import NatsServerFactory
from tests.support.cluster import Cluster, open_cluster, shorten_waits
from tests.support.example_services import Echo, Gate
from tests.support.nats_server import NatsServer
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_waits(monkeypatch)
    monkeypatch.setattr("broker.transports.nats_link.NATS_RECONNECT_MAX_S", 0.05)
    monkeypatch.setattr("broker.defaults.NATS_CONNECT_RETRY_S", 0.05)
    monkeypatch.setattr("broker.node.outage.SHORT_OUTAGE_S", 0.2)


@pytest.fixture
async def outage(nats_server: NatsServer, namespace: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    """A cluster over a NATS server that the test can stop."""
    hurry(monkeypatch)
    async with open_cluster(nats_server.url, namespace) as cluster:
        yield cluster


def cut_off(cluster: Cluster) -> bool:
    return not any(broker._node.transport and broker._node.transport.connected for broker in cluster.brokers)


def connected(cluster: Cluster) -> bool:
    """Whether all nodes are connected and the server has their subscriptions again."""
    nodes = [broker._node for broker in cluster.brokers]
    return all(node.transport and node.transport.connected and not node.outage.is_on for node in nodes)


async def test_a_lost_server_is_noticed_and_subscriptions_are_restored(nats_server: NatsServer) -> None:
    notes: list[str] = []
    received: list[bytes] = []

    async def disconnected() -> None:
        notes.append("disconnected")

    async def reconnected() -> None:
        notes.append("reconnected")

    async def on_message(data: bytes, _reply: str) -> None:
        received.append(data)

    transport = make_transport(nats_server.url)
    assert transport is not None
    await transport.connect(Observer(disconnected=disconnected, reconnected=reconnected), "test")
    await transport.subscribe("a", on_message)
    await transport.flush()
    nats_server.kill()
    await eventually(lambda: notes == ["disconnected"])
    assert not transport.connected
    for use in (transport.publish("a", b"lost"), transport.has_subscribers("a", b"lost")):
        with pytest.raises(BrokerDisconnectedError):
            await use
    nats_server.start()
    await eventually(lambda: notes == ["disconnected", "reconnected"])
    await transport.publish("a", b"back")
    await eventually(lambda: received == [b"back"])
    await transport.close()
    assert notes == ["disconnected", "reconnected"], "a close by the node itself is not an outage"


async def test_an_unreachable_server_is_one_error_at_once(nats_server: NatsServer) -> None:
    nats_server.stop()
    transport = make_transport(nats_server.url)
    assert transport is not None
    with pytest.raises(BrokerDisconnectedError, match=r"nats://127\.0\.0\.1"):
        await transport.connect(Observer(), "test")
    assert not transport.connected
    await transport.close()
    nats_server.start()
    await transport.connect(Observer(), "test")
    assert transport.connected
    await transport.close()


async def test_c7_a_node_waits_for_its_server_and_logs_each_attempt(
    outage: Cluster, nats_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    nats_server.stop()
    one = outage.make("one", [Echo()])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.start)
        await eventually(lambda: caplog.text.count("Cannot connect to nats://") >= 2)
        nats_server.start()
    assert await one.call("echo.where") == "one"


async def test_calls_in_flight_fail_when_the_connection_is_lost(outage: Cluster, nats_server: NatsServer) -> None:
    gate = Gate()
    _, two = await outage.start(("one", [gate]), ("two", []))
    async with anyio.create_task_group() as tasks:

        async def call() -> None:
            with pytest.raises(BrokerDisconnectedError) as caught:
                await two.call("gate.wait")
            assert caught.value.retryable is True

        for _ in range(3):
            tasks.start_soon(call)
        await eventually(lambda: gate.inside == 3)
        nats_server.kill()
    gate.opened.set()
    nats_server.start()


async def test_calls_fail_at_once_without_a_connection_and_work_again_after_it(
    outage: Cluster, nats_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = await outage.start(("one", [Echo()]), ("two", []))
    nats_server.kill()
    await eventually(lambda: cut_off(outage))
    with pytest.raises(BrokerDisconnectedError):
        await two.call("echo.where", timeout=60)
    assert await one.call("echo.where") == "one", "local actions still work"
    await two.emit("user.created")
    nats_server.start()
    await eventually(lambda: connected(outage))
    assert await two.call("echo.where") == "one"
    assert two._node.transit.requests.pending == {}
    lost = [record for record in caplog.records if "connection to NATS is lost" in record.getMessage()]
    assert [record.levelno for record in lost] == [logging.WARNING] * 2


async def test_calls_can_wait_for_the_connection_within_their_timeout(outage: Cluster, nats_server: NatsServer) -> None:
    await outage.start_one("one", [Echo()])
    two = await outage.start_one("two", wait_for_connection=True)
    nats_server.kill()
    await eventually(lambda: cut_off(outage))
    with pytest.raises(RequestTimeoutError):
        await two.call("echo.where", timeout=0.05)
    answers: list[Any] = []

    async def call() -> None:
        answers.append(await two.call("echo.where", timeout=60, retries=10))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(call)
        await anyio.wait_all_tasks_blocked()
        nats_server.start()
    assert answers == ["one"] * 5


async def test_retries_bridge_an_outage(outage: Cluster, nats_server: NatsServer) -> None:
    _, two = await outage.start(("one", [Echo()]), ("two", []))
    nats_server.kill()
    await eventually(lambda: cut_off(outage))
    answers: list[Any] = []

    async def call() -> None:
        answers.append(await two.call("echo.where", retries=100))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        nats_server.start()
    assert answers == ["one"]


async def test_c32_after_an_outage_a_node_announces_itself_and_discovers_its_peers(
    outage: Cluster, nats_server: NatsServer
) -> None:
    await outage.start_one("one", [Echo()])
    peer = await outage.raw_peer("peer", "INFO", "DISCOVER", "HEARTBEAT")
    nats_server.kill()
    await eventually(lambda: not peer.transport.connected and cut_off(outage))
    peer.received.clear()
    nats_server.start()
    await eventually(lambda: peer.transport.connected and connected(outage))
    fresh = await outage.raw_peer("fresh", "INFO")
    await fresh.publish(outage.topics.broadcast("DISCOVER"), {"ver": "5", "sender": "fresh"})
    info = await fresh.wait_for("INFO")
    assert [service["name"] for service in info["services"]] == ["$node", "echo"]


async def test_services_that_changed_during_an_outage_are_known_after_it(
    outage: Cluster, nats_server: NatsServer
) -> None:
    one, two = await outage.start(("one", [Echo()]), ("two", []))
    nats_server.kill()
    await eventually(lambda: cut_off(outage))
    await one.add_service(Gate())
    await one.remove_service("echo")
    nats_server.start()
    await two.wait_for_services("gate", timeout=30)
    await eventually(lambda: not two.registry.has_service("echo"))


async def test_an_outage_longer_than_the_heartbeat_timeout_loses_no_node(
    outage: Cluster, nats_server: NatsServer
) -> None:
    lost = Lost()
    await outage.start_one("one", [Echo()], heartbeat_interval=0.1, heartbeat_timeout=0.5)
    two = await outage.start_one("two", [lost], heartbeat_interval=0.1, heartbeat_timeout=0.5)
    nats_server.kill()
    await eventually(lambda: cut_off(outage))
    before = anyio.current_time()
    await eventually(lambda: anyio.current_time() > before + 0.8)
    nats_server.start()
    await eventually(lambda: connected(outage))
    assert await two.call("echo.where") == "one"
    assert lost.nodes == []


async def test_no_node_is_lost_while_the_connection_is_restored(
    outage: Cluster, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transport is connected a moment before the node is notified."""
    lost, reconnected = Lost(), Node._reconnected

    async def slow(node: Node) -> None:
        before = anyio.current_time()
        await eventually(lambda: anyio.current_time() > before + 0.2)
        await reconnected(node)

    monkeypatch.setattr(Node, "_reconnected", slow)
    await outage.start_one("one", [Echo()], heartbeat_interval=0.1, heartbeat_timeout=0.5)
    two = await outage.start_one("two", [lost], heartbeat_interval=0.1, heartbeat_timeout=0.5)
    nats_server.kill()
    await eventually(lambda: cut_off(outage))
    before = anyio.current_time()
    await eventually(lambda: anyio.current_time() > before + 0.8)
    nats_server.start()
    await eventually(lambda: connected(outage))
    assert await two.call("echo.where") == "one"
    assert lost.nodes == []


class Lost(Service):
    name = "lost"

    def __init__(self) -> None:
        self.nodes: list[str] = []

    @event("$node.disconnected")
    async def on_lost(self, ctx: Context) -> None:
        self.nodes.append(ctx.params["node"]["id"])


async def test_a_broker_stops_while_its_server_is_down(outage: Cluster, nats_server: NatsServer) -> None:
    one, two = await outage.start(("one", [Echo()]), ("two", []))
    nats_server.kill()
    await eventually(lambda: cut_off(outage))
    with anyio.fail_after(30):
        await one.stop()
        await two.stop()


async def test_a_frozen_server_does_not_block_a_stop(
    outage: Cluster, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.transports.nats_link.NATS_CLOSE_TIMEOUT_S", 0.2)
    one = await outage.start_one("one", [Echo()])
    nats_server.pause()
    with anyio.fail_after(30):
        await one.stop()
    nats_server.resume()


async def test_a_message_limit_that_the_server_lowers_applies_at_once(outage: Cluster, nats_server: NatsServer) -> None:
    one = await outage.start_one("one")
    transport = one._node.transport
    assert transport is not None
    assert transport.max_payload == 1 << 20
    nats_server.restart(max_payload=4096)
    await eventually(lambda: connected(outage) and transport.max_payload == 4096)


async def test_permissions_that_are_revoked_and_restored_are_handled_as_an_outage(
    make_nats_server: NatsServerFactory, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    server = make_nats_server(authorization="{ user: node, password: secret }")
    url = server.url.replace("://", "://node:secret@")
    async with open_cluster(url, namespace) as cluster:
        _, two = await cluster.start(("one", [Echo()]), ("two", []))
        server.reload(authorization="{ user: node, password: another }")
        await eventually(lambda: cut_off(cluster))
        with pytest.raises(BrokerDisconnectedError):
            await two.call("echo.params", {"a": 1})
        server.reload(authorization="{ user: node, password: secret }")
        await eventually(lambda: connected(cluster))
        assert await two.call("echo.params", {"a": 1}) == {"a": 1}


async def kick(broker: ServiceBroker) -> Connection:
    """Make the server close the connection of one node."""
    transport = broker._node.transport
    assert isinstance(transport, NATSTransport)
    connection = transport._link.connection
    assert connection is not None
    await connection._send_command(b"NO SUCH OPERATION\r\n")
    await connection._flush_pending()
    return connection


class AnswersWhenCutOff(Service):
    name = "late"

    def __init__(self) -> None:
        self.asked = anyio.Event()
        self.cut_off = anyio.Event()

    @action
    async def answer(self, ctx: Context) -> str:
        self.asked.set()
        await self.cut_off.wait()
        return "late"

    @event("$transporter.disconnected")
    async def on_cut_off(self, ctx: Context) -> None:
        self.cut_off.set()


async def test_an_answer_that_is_ready_while_its_node_is_disconnected_arrives(outage: Cluster) -> None:
    """Its caller has not noticed the outage, and without a timeout would never stop waiting."""
    service = AnswersWhenCutOff()
    one, two = await outage.start(("one", [service]), ("two", []))
    answers: list[str] = []

    async def call() -> None:
        answers.append(await two.call("late.answer"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await service.asked.wait()
        await kick(one)
        await eventually(lambda: answers == ["late"])


async def test_a_connection_that_the_server_ends_is_handled_as_an_outage(outage: Cluster) -> None:
    """The server sends a reason, for example that a limit is reached; nats-py then closes the connection for good."""
    one, two = await outage.start(("one", [Echo()]), ("two", []))
    before = await kick(one)
    await eventually(lambda: not before.is_open and connected(outage))
    assert await two.call("echo.params", {"a": 1}) == {"a": 1}
