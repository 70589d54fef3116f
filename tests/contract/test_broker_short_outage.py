"""Short outages: packets wait for the connection, calls in flight keep waiting for their answers, and calls whose
answers were lost fail when the callee reports it (protocol §4.5)."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import pytest

from broker import (
    BrokerDisconnectedError,
    Context,
    RequestRejectedError,
    Service,
    ServiceBroker,
    ServiceNotAvailableError,
    ServiceNotFoundError,
    action,
    event,
)
from broker.transports.nats import NATSTransport
from broker.transports.nats_client import Connection
from tests.contract.test_broker_outage import kick
from tests.support.cluster import Cluster, open_cluster, shorten_waits
from tests.support.example_services import Echo, Gate
from tests.support.nats_server import NatsServer
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
async def outage(nats_server: NatsServer, namespace: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    """A cluster in which every outage counts as short, and disconnected nodes are not removed."""
    shorten_waits(monkeypatch)
    monkeypatch.setattr("broker.node.outage.SHORT_OUTAGE_S", 60)
    monkeypatch.setattr("broker.conversation.liveness.NODE_UNREACHABLE_S", 60)
    async with open_cluster(nats_server.url, namespace) as cluster:
        yield cluster


@asynccontextmanager
async def away(
    broker: ServiceBroker, cut_off: Callable[[ServiceBroker], Awaitable[object]] = kick
) -> AsyncIterator[None]:
    """The node loses its connection, and cannot reconnect before the end of the block."""
    transport = broker._node.transport
    assert isinstance(transport, NATSTransport)
    link, back = transport._link, anyio.Event()
    open_one_of = link._open_one_of

    async def late(servers: Sequence[str], patience_s: float) -> Connection:
        await back.wait()
        return await open_one_of(servers, patience_s)

    link._open_one_of = late  # type: ignore[method-assign]
    await cut_off(broker)
    await eventually(lambda: broker._node.outage.is_on)
    try:
        yield
    finally:
        back.set()
        link._open_one_of = open_one_of  # type: ignore[method-assign]


def doubts(broker: ServiceBroker) -> bool:
    """Whether answers may have been lost."""
    return any(pending.doubt for pending in broker._node.transit.requests.pending.values())


class Results(list[Any]):
    """The results or errors of calls that run in the background."""

    async def __call__(self, make: Callable[[], Any]) -> None:
        try:
            self.append(await make())
        except Exception as error:
            self.append(error)


async def test_a_call_in_flight_survives_an_outage_of_its_caller(outage: Cluster) -> None:
    gate, results = Gate(), Results()
    _, two = await outage.start(("one", [gate]), ("two", []))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(results, lambda: two.call("gate.wait"))
        await eventually(lambda: gate.inside == 1)
        async with away(two):
            pass
        await eventually(lambda: not two._node.outage.is_on and not doubts(two))
        assert results == []
        gate.opened.set()
    assert results == ["one"]


async def test_a_call_whose_answer_was_lost_fails_when_its_caller_is_back(outage: Cluster) -> None:
    """The callee did not notice the outage, and its answer was lost. It reports that the call is not in progress."""
    gate, results = Gate(), Results()
    one, two = await outage.start(("one", [gate]), ("two", []))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(results, lambda: two.call("gate.wait"))
        await eventually(lambda: gate.inside == 1 and not doubts(two))
        async with away(two):
            gate.opened.set()
            await eventually(lambda: not one._node.transit.in_work)
    assert [type(result) for result in results] == [BrokerDisconnectedError]
    assert results[0].retryable is True
    assert "gate.wait" in str(results[0])


async def test_a_call_whose_answer_was_lost_with_the_connection_of_its_callee_fails(
    outage: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller notices only that its callee has reconnected."""
    gate, results = Gate(), Results()
    one, two = await outage.start(("one", [gate]), ("two", []))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(results, lambda: two.call("gate.wait"))
        await eventually(lambda: gate.inside == 1 and not doubts(two))

        assert one._node.transport is not None
        try_publish = one._node.transport.try_publish

        def lose(subject: str, data: bytes, reply_id: str | None = None) -> bool:
            """The answer is written to a server that is going down."""
            return ".RES." in subject or try_publish(subject, data, reply_id)

        monkeypatch.setattr(one._node.transport, "try_publish", lose)
        gate.opened.set()
        await eventually(lambda: not one._node.transit.in_work)
        assert results == []
        await kick(one)
    assert [type(result) for result in results] == [BrokerDisconnectedError]


async def test_an_answer_waits_for_a_caller_that_reconnects_later_than_its_node(outage: Cluster) -> None:
    gate, results = Gate(), Results()
    one, two = await outage.start(("one", [gate]), ("two", []))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(results, lambda: two.call("gate.wait"))
        await eventually(lambda: gate.inside == 1)
        async with away(two):
            async with away(one):
                gate.opened.set()
                await eventually(lambda: gate.inside == 0)
            await eventually(lambda: not one._node.outage.is_on)
    assert results == ["one"]


class Listener(Service):
    name = "listener"

    def __init__(self) -> None:
        self.received: list[Any] = []

    @event("user.created")
    async def on_user(self, ctx: Context) -> None:
        self.received.append(ctx.params)


async def test_calls_and_events_of_a_disconnected_node_are_sent_when_it_reconnects(outage: Cluster) -> None:
    listener, results = Listener(), Results()
    _, two = await outage.start(("one", [Echo(), listener]), ("two", []))
    async with anyio.create_task_group() as tasks, away(two):
        tasks.start_soon(results, lambda: two.call("echo.where"))
        tasks.start_soon(results, lambda: two.call("echo.where", node_id="one"))
        tasks.start_soon(two.emit, "user.created", 1)
        await anyio.wait_all_tasks_blocked()
        assert results == []
    assert results == ["one", "one"]
    await eventually(lambda: listener.received == [1])


async def test_calls_to_a_disconnected_node_wait_for_it(outage: Cluster) -> None:
    results = Results()
    one, two = await outage.start(("one", [Echo()]), ("two", []))
    async with anyio.create_task_group() as tasks, away(one):
        await outage._until_disconnected("one")
        for node_id in (None, "one", None):
            tasks.start_soon(results, partial(two.call, "echo.where", node_id=node_id))
            await eventually(lambda: not two.registry.nodes["one"].available)
        assert results == []
        with pytest.raises(ServiceNotFoundError):
            await two.call("echo.unknown")
    assert results == ["one"] * 3


async def test_calls_to_a_node_that_does_not_reconnect_fail(outage: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.conversation.liveness.NODE_UNREACHABLE_S", 0.3)
    monkeypatch.setattr("broker.conversation.liveness.NODE_RECONNECT_S", 0.3)
    one, two = await outage.start(("one", [Echo()]), ("two", []))
    await outage.kill(one)
    with pytest.raises(RequestRejectedError):
        await two.call("echo.where")
    with pytest.raises(ServiceNotAvailableError):
        await two.call("echo.where")


async def test_calls_that_wait_for_connections_wait_for_services_that_return_later(
    outage: Cluster, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if their nodes have already been removed, and if other nodes offer the services then."""
    monkeypatch.setattr("broker.conversation.liveness.NODE_UNREACHABLE_S", 0.1)
    monkeypatch.setattr("broker.conversation.liveness.NODE_RECONNECT_S", 0.1)
    results = Results()
    one = await outage.start_one("one", [Echo()])
    two = await outage.start_one("two", wait_for_connection=True)
    await outage.kill(one)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(results, lambda: two.call("echo.where", timeout=60))
        await eventually(lambda: two._node.transit.requests.liveness.sought(anyio.current_time()))
        await eventually(lambda: not two._node.transit.requests._missed)
        tasks.start_soon(results, lambda: two.call("echo.where", timeout=60))
        with pytest.raises(ServiceNotFoundError):
            await two.call("echo.unknown", timeout=60)
        await anyio.wait_all_tasks_blocked()
        assert results == []
        await outage.make("three", [Echo()]).start()
    assert results == ["three"] * 2


async def test_calls_that_waited_for_their_connection_wait_for_a_service_that_is_still_disconnected(
    outage: Cluster, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.node.outage.SHORT_OUTAGE_S", 0.1)
    results = Results()
    one = await outage.start_one("one", [Echo()])
    two = await outage.start_one("two", wait_for_connection=True)

    async def kill_server(_one: ServiceBroker) -> None:
        nats_server.kill()

    async with anyio.create_task_group() as tasks, away(one, kill_server):
        await eventually(lambda: two._node.outage.is_long)
        for _ in range(100):
            tasks.start_soon(results, lambda: two.call("echo.where", timeout=60))
        nats_server.start()
        await eventually(lambda: not two.registry.nodes["one"].available)
        assert results == []
    assert results == ["one"] * 100


async def test_a_call_to_a_node_that_cannot_be_queried_waits_until_its_timeout(
    outage: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A JS node cannot report the state of a call. A caller without a timeout must still stop waiting."""
    monkeypatch.setattr("broker.conversation.requests.ANSWER_LOST_S", 0.2)
    results = {"timed": Results(), "not timed": Results()}
    service = {"name": "posts", "actions": {"posts.find": {"name": "posts.find"}}}
    caller = await outage.start_one("caller", heartbeat_timeout=3600)
    js = await outage.raw_peer("js-1", "REQ", "PING", "DISCOVER")
    await js.introduce(service)
    await caller.wait_for_services("posts", timeout=30)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(results["timed"], lambda: caller.call("posts.find", timeout=60))
        tasks.start_soon(results["not timed"], lambda: caller.call("posts.find"))
        asked = [await js.wait_for("REQ", lambda packet: packet["timeout"] > 0)]
        asked.append(await js.wait_for("REQ", lambda packet: packet["timeout"] == 0))
        async with away(caller):
            pass
        await eventually(lambda: results["not timed"])
        assert isinstance(results["not timed"][0], BrokerDisconnectedError)
        assert results["timed"] == []
        answer = {"ver": "5", "sender": "js-1", "id": asked[0]["id"], "success": True, "data": "found"}
        await js.publish(outage.topics.to_node("RES", "caller"), answer)
    assert results["timed"] == ["found"]


async def test_calls_that_wait_for_a_connection_end_with_their_node(outage: Cluster) -> None:
    results = Results()
    await outage.start_one("one", [Echo()])
    two = await outage.start_one("two", wait_for_connection=True, shutdown_timeout=0.1)
    async with anyio.create_task_group() as tasks, away(two):
        tasks.start_soon(results, lambda: two.call("echo.where"))
        await anyio.wait_all_tasks_blocked()
        await two.stop()
        await eventually(lambda: len(results) == 1)
    assert isinstance(results[0], BrokerDisconnectedError)


class Sum(Service):
    name = "sum"

    def __init__(self) -> None:
        self.read = 0

    @action
    async def of(self, ctx: Context) -> int:
        async for chunk in ctx.stream:
            self.read += len(chunk)
        return self.read


async def test_a_call_that_sends_a_stream_fails_as_its_chunks_may_be_lost(outage: Cluster) -> None:
    results, more = Results(), anyio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"one"
        await more.wait()
        yield b"two"

    service = Sum()
    one, two = await outage.start(("one", [service]), ("two", []))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(results, lambda: two.call("sum.of", stream=chunks()))
        await eventually(lambda: service.read == 3)
        async with away(two):
            await eventually(lambda: len(results) == 1)
        await eventually(lambda: not one._node.transit.in_work, "the handler to be cancelled")
    assert isinstance(results[0], BrokerDisconnectedError)
