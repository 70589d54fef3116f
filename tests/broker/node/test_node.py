"""The order of a start and of announcements, with the waits of the reference (protocol §3.3, §4.1)."""

import itertools
import time

import anyio
import pytest

from broker import BrokerDisconnectedError, ServiceBroker
from broker.transports.base import OnMessage
from broker.transports.memory import Hub, MemorySubscription, MemoryTransport
from tests.support.cluster import Cluster
from tests.support.example_services import Echo, Gate, Math
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


class Recording(MemoryTransport):
    """Notes what the node does to it, and when."""

    def __init__(self) -> None:
        super().__init__(Hub())
        self.notes: list[tuple[str, str]] = []
        self.times: list[float] = []

    async def subscribe(self, subject: str, on_message: OnMessage, queue: str = "") -> MemorySubscription:
        self.note("SUB", subject)
        return await super().subscribe(subject, on_message, queue)

    async def publish(self, subject: str, data: bytes, reply_id: str | None = None) -> None:
        self.note("PUB", subject)
        await super().publish(subject, data, reply_id)

    async def close(self) -> None:
        self.note("CLOSE", "")
        await super().close()

    def note(self, what: str, subject: str) -> None:
        self.notes.append((what, subject))
        self.times.append(anyio.current_time())

    def published(self, command: str) -> list[float]:
        return [
            at
            for at, (what, subject) in zip(self.times, self.notes, strict=True)
            if (what, subject) == ("PUB", command)
        ]


async def test_c2_c3_all_subscriptions_are_there_before_the_first_packet_which_is_a_discover() -> None:
    transport = Recording()
    async with ServiceBroker("one", transporter=transport):
        pass
    notes = [note for note in transport.notes if "~" not in note[1]]  # what it asks under another name before
    assert [what for what, _ in notes[:12]] == ["SUB"] * 12
    assert notes[0] == ("SUB", "MOL.EVENT.one")
    assert notes[12] == ("PUB", "MOL.DISCOVER")
    assert notes[-2:] == [("PUB", "MOL.DISCONNECT"), ("CLOSE", "")]


async def test_c4_services_are_announced_once_a_second_after_the_last_change() -> None:
    transport = Recording()
    async with ServiceBroker("one", transporter=transport, services=[Echo(), Math()]) as broker:
        started = anyio.current_time()
        await anyio.sleep(0.3)  # part of what is tested: a change within the second begins it anew
        await broker.add_service(Gate())
        changed = anyio.current_time()
        await eventually(lambda: transport.published("MOL.INFO"))
        (announced,) = transport.published("MOL.INFO")
        assert announced - changed >= 0.99
        assert announced - started >= 1.29
        node = broker.registry.local
        assert node.sequence == 2


async def test_a_node_listens_before_it_asks_and_waits_for_answers() -> None:
    transport = Recording()
    transport.delivers_at_once = False  # as over a network
    begun = anyio.current_time()
    async with ServiceBroker("one", transporter=transport):
        first, second = transport.published("MOL.DISCOVER")
        assert first - begun >= 0.54, "a JS node that starts beside it answers by then"
        assert second - first >= 0.24, "the other version is asked when nobody answered"
        assert anyio.current_time() - first >= 0.49


async def test_a_node_of_one_version_asks_in_that_alone() -> None:
    transport = Recording()
    transport.delivers_at_once = False
    async with ServiceBroker("one", transporter=transport, protocol="4"):
        (asked,) = transport.published("MOL.DISCOVER")
        assert anyio.current_time() - asked >= 0.49


async def test_c26_heartbeats_go_out_in_their_interval() -> None:
    transport = Recording()
    async with ServiceBroker("one", transporter=transport, heartbeat_interval=0.05):
        await eventually(lambda: len(transport.published("MOL.HEARTBEAT")) >= 4)
    beats = transport.published("MOL.HEARTBEAT")
    assert all(later - earlier >= 0.02 for earlier, later in itertools.pairwise(beats))


async def test_an_interval_of_zero_means_no_heartbeat() -> None:
    transport = Recording()
    async with ServiceBroker("one", transporter=transport, heartbeat_interval=0, services=[Echo()]):
        await eventually(lambda: transport.published("MOL.INFO"))
    assert transport.published("MOL.HEARTBEAT") == []


async def test_a_transport_that_fails_in_an_unknown_way_does_not_end_the_node() -> None:
    class Failing(Recording):
        broken = False

        async def publish(self, subject: str, data: bytes, reply_id: str | None = None) -> None:
            if self.broken:
                raise RuntimeError("an error that nobody translated")
            await super().publish(subject, data, reply_id)

    transport = Failing()
    one = ServiceBroker("one", transporter=transport, heartbeat_interval=0.02, services=[Echo()])
    async with one:
        transport.broken = True
        await anyio.sleep(0.1)  # heartbeats fail meanwhile
        transport.broken = False
        before = len(transport.published("MOL.HEARTBEAT"))
        await eventually(lambda: len(transport.published("MOL.HEARTBEAT")) > before)
        assert await one.call("echo.where") == "one"


async def test_a_loop_that_stood_still_is_told_of_and_no_peer_is_blamed(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await cluster.start_one("one", heartbeat_timeout=0.3)
    await (await cluster.raw_peer("peer")).introduce()
    await eventually(lambda: "peer" in one.registry.nodes)
    monkeypatch.setattr("broker.defaults.LOOP_STANDS_STILL_S", 0.3)
    time.sleep(0.5)  # noqa: ASYNC251 - what is tested
    await eventually(lambda: "stood still for 0." in caplog.text)
    assert one.registry.nodes["peer"].available
    await eventually(lambda: not one.registry.nodes["peer"].available)


async def test_work_that_fails_ends_no_other_work(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise ValueError("nobody expected this")

    gate = Gate()
    one, two = await cluster.start(("one", [gate]), ("two", []))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(two.call, "gate.wait")
        await eventually(lambda: gate.inside)
        assert one._node.start_handler(fail())
        await eventually(lambda: "nobody expected this" in caplog.text, "a line about it")
        gate.opened.set()


class Shaky(MemoryTransport):
    """Loses its connection once, right after it was made."""

    lost = False

    async def has_subscribers(self, subject: str, data: bytes) -> bool:
        if not self.lost:
            self.lost = True
            raise BrokerDisconnectedError
        return await super().has_subscribers(subject, data)


async def test_a_start_whose_connection_is_lost_at_once_goes_on(cluster: Cluster, namespace: str) -> None:
    transport = Shaky(Hub.named(namespace))
    node = await cluster.start_one("one", [Echo()], transporter=transport)
    other = await cluster.start_one("two")
    assert await other.call("echo.where") == node.node_id
    assert transport.lost
