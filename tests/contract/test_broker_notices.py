"""Internal events reach the services of their node, with the payloads of JS nodes (protocol §7.4)."""

import logging
from collections.abc import Mapping
from typing import Any

import pytest

from broker import Context, PayloadTooLargeError, Service, action, event
from tests.support.cluster import Cluster, open_cluster, shorten_waits
from tests.support.example_services import Echo
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

# The documented fields of a node in the payloads.
NODE = {
    *("id", "instanceID", "available", "local", "lastHeartbeatTime", "config", "client", "metadata", "ipList"),
    *("hostname", "cpu", "cpuSeq", "seq", "offlineSince", "services", "rawInfo"),
}


class Watching(Service):
    name = "watching"

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []

    @event("$**")
    async def on_internal(self, ctx: Context) -> None:
        self.seen.append((ctx.event or "", ctx.params))

    def payloads(self, name: str) -> list[Any]:
        return [payload for seen, payload in self.seen if seen == name]

    async def payload(self, name: str, number: int = 0) -> Any:
        await eventually(lambda: len(self.payloads(name)) > number, name)
        return self.payloads(name)[number]


async def test_c23_nodes_that_join_change_and_leave_are_notified_with_their_details(cluster: Cluster) -> None:
    watching = Watching()
    one = await cluster.start_one("one", [watching], metadata={"zone": "z1"})
    two = await cluster.start_one("two", [Echo()], metadata={"zone": "z2"})
    connected = await watching.payload("$node.connected")
    assert connected["reconnected"] is False
    node = connected["node"]
    assert node.keys() >= NODE
    assert (node["id"], node["available"], node["local"], node["metadata"]) == ("two", True, False, {"zone": "z2"})
    assert node["rawInfo"]["sender"] == "two"
    assert isinstance(node["lastHeartbeatTime"], int)

    await two.remove_service("echo")
    await eventually(
        lambda: [s["name"] for p in watching.payloads("$node.updated")[-1:] for s in p["node"]["services"]] == ["$node"]
    )
    await eventually(lambda: {"localService": False} in watching.payloads("$services.changed"))

    await two.stop()
    disconnected = await watching.payload("$node.disconnected")
    assert disconnected["unexpected"] is False
    assert disconnected["node"]["available"] is False
    assert isinstance(disconnected["node"]["offlineSince"], int)

    await cluster.start_one("two", [Echo()])
    assert (await watching.payload("$node.connected", 1))["reconnected"] is True
    assert one.registry.nodes["two"].available


async def test_c23_changes_of_local_services_are_notified_as_local(cluster: Cluster) -> None:
    watching = Watching()
    one = await cluster.start_one("one", [watching])
    before = watching.payloads("$services.changed").count({"localService": True})
    await one.add_service(Echo())
    await one.remove_service("echo")
    await eventually(lambda: watching.payloads("$services.changed").count({"localService": True}) == before + 2)


async def test_a_pong_is_notified(cluster: Cluster) -> None:
    watching = Watching()
    one, _ = await cluster.start(("one", [watching]), ("two", []))
    await one.ping("two", 10)
    pong = await watching.payload("$node.pong")
    assert pong.keys() == {"nodeID", "elapsedTime", "timeDiff", "id"}
    assert pong["nodeID"] == "two"


async def test_the_life_cycle_of_the_broker_is_notified_to_the_end(cluster: Cluster) -> None:
    class Failing(Service):
        name = "failing"

        @event("$broker.stopped")
        async def on_stopped(self, ctx: Context) -> None:
            raise ValueError("a handler of the last event")

    watching = Watching()
    one = await cluster.start_one("one", [Failing(), watching])
    await watching.payload("$broker.started")
    await one.stop()
    assert [seen for seen in watching.seen if seen[0] in ("$transporter.disconnected", "$broker.stopped")] == [
        ("$transporter.disconnected", {"graceFul": True}),
        ("$broker.stopped", {}),
    ]


async def test_a_broker_without_a_transporter_notifies_no_connection() -> None:
    watching = Watching()
    async with open_cluster("", "") as cluster:
        await cluster.start_one("one", [watching], transporter=None)
    assert "$broker.stopped" in [name for name, _ in watching.seen]
    assert "$transporter.disconnected" not in [name for name, _ in watching.seen]


class Seeing:
    """A middleware that records local broadcasts, and fails at the last one."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def broadcast_local(self, call_next: Any, event: str, data: Any, options: Mapping[str, Any]) -> None:
        self.seen.append(event)
        if event == "$broker.stopped":
            raise ValueError("a hook of the last event")
        await call_next(event, data, options)


async def test_c66_internal_events_are_local_broadcasts_that_never_leave_the_node(cluster: Cluster) -> None:
    seeing, watching = Seeing(), Watching()
    one = await cluster.start_one("one", [watching], middlewares=[seeing])
    peer = await cluster.raw_peer("peer", "EVENT")
    await peer.introduce({"name": "spy", "events": {"$**": {"name": "$**"}}})
    await one.wait_for_services("spy", timeout=30)
    await watching.payload("$node.connected")
    await one.broadcast_local("user.done")
    await one.broadcast("$user.last")
    await peer.wait_for("EVENT")
    await one.stop()
    life = ["$broker.started", "$node.connected", "user.done", "$transporter.disconnected", "$broker.stopped"]
    assert [event for event in seeing.seen if event in life] == life
    assert {"$services.changed", "$transporter.connected"} < set(seeing.seen)
    assert [packet["event"] for _, packet in peer.received] == ["$user.last"]
    assert watching.payloads("$transporter.disconnected") == [{"graceFul": True}]
    assert watching.payloads("$broker.stopped") == []


async def test_an_unusable_packet_is_notified(cluster: Cluster) -> None:
    watching = Watching()
    await cluster.start_one("one", [watching])
    peer = await cluster.raw_peer("peer", "RES")
    await peer.publish(cluster.topics.to_node("REQ", "one"), b"no packet")
    await peer.publish(cluster.topics.to_node("EVENT", "one"), {"ver": "3", "sender": "peer", "event": "x"})
    first, second = await watching.payload("$transit.error"), await watching.payload("$transit.error", 1)
    assert {(p["module"], p["type"]) for p in (first, second)} == {("transit", "failedProcessingPacket")}
    assert {type(p["error"]).__name__ for p in (first, second)} == {
        "InvalidPacketDataError",
        "ProtocolVersionMismatchError",
    }


async def test_a_service_that_fails_to_stop_is_notified(cluster: Cluster) -> None:
    class Clinging(Service):
        name = "clinging"

        async def stopped(self) -> None:
            raise ValueError("no")

    watching = Watching()
    one = await cluster.start_one("one", [watching, Clinging()])
    await one.remove_service("clinging")
    payload = await watching.payload("$broker.error")
    assert (payload["module"], payload["type"], str(payload["error"])) == ("broker", "failedServiceDestruction", "no")


class Large(Service):
    """More settings than fit into a message of the server."""

    name = "large"
    settings: Mapping[str, Any] = {"text": "x" * 1_500_000}

    @action
    async def ping(self, ctx: Context) -> str:
        return "pong"


async def test_a_node_too_large_to_announce_logs_it_once_keeps_running_and_retries(
    nats_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shorten_waits(monkeypatch)

    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]

    async with open_cluster(nats_url, namespace) as cluster:
        watching = Watching()
        one = cluster.make("one", [Large(), Echo(), watching])
        await one.start()
        await eventually(lines)
        peer = await cluster.raw_peer("peer", "RES", "INFO")
        for _ in range(3):
            await peer.publish(cluster.topics.broadcast("DISCOVER"), {"ver": "5", "sender": "peer"})
        assert (await peer.ask("one", "large.ping"))["data"] == "pong"
        [line] = lines()
        assert "max_payload" in line
        assert "1048576" in line
        error = await watching.payload("$transit.error")
        assert error["type"] == "failedSendInfoPacket"
        assert isinstance(error["error"], PayloadTooLargeError)

        await one.remove_service("large")
        info = await peer.wait_for("INFO")
        assert [service["name"] for service in info["services"]] == ["$node", "echo", "watching"]
