"""Which node gets a call or an event, by each strategy, over memory and over NATS (§9)."""

from collections import Counter
from typing import Any

import pytest

from broker import Context, Service, ServiceSchemaError, action, event
from broker.registry.strategies import Lowest, Ring
from tests.support.cluster import Cluster
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


class Places(Service):
    name = "places"

    def __init__(self) -> None:
        self.received: list[Any] = []

    @action
    async def here(self, ctx: Context) -> str:
        return self.broker.node_id

    @action(strategy="shard", strategy_options={"shard_key": "user.id"})
    async def sharded(self, ctx: Context) -> str:
        return self.broker.node_id

    @action(strategy="CpuUsage", strategy_options={"sample_count": 0})
    async def idle(self, ctx: Context) -> str:
        return self.broker.node_id

    @action(strategy="Latency", strategy_options={"ping_interval": 0.02, "low_latency": 0})
    async def near(self, ctx: Context) -> str:
        return self.broker.node_id

    @event("places.moved", strategy="Shard", strategy_options={"shard_key": "#id"})
    async def on_moved(self, ctx: Context) -> None:
        self.received.append(ctx.meta["id"])


NODES = ("node-a", "node-b", "node-c")


async def three(cluster: Cluster, **options: Any) -> tuple[Any, dict[str, Places]]:
    """A caller and three nodes with the same service."""
    places = {node_id: Places() for node_id in NODES}
    caller, *_ = await cluster.start(("caller", []), *((name, [one]) for name, one in places.items()), **options)
    return caller, places


async def test_c75_round_robin_gives_every_node_the_same_number_of_calls(cluster: Cluster) -> None:
    caller, _ = await three(cluster)
    counts = Counter([await caller.call("places.here") for _ in range(30)])
    assert counts == dict.fromkeys(NODES, 10)


async def test_c75_random_gives_every_node_some_calls(cluster: Cluster) -> None:
    caller, _ = await three(cluster, strategy="Random")
    counts = Counter([await caller.call("places.here") for _ in range(90)])
    assert set(counts) == set(NODES)
    assert len(set(counts.values())) > 1 or counts == dict.fromkeys(NODES, 30)


async def test_c76_a_node_prefers_itself_by_default(cluster: Cluster) -> None:
    one, _ = await cluster.start(("one", [Places()]), ("two", [Places()]))
    assert {await one.call("places.here") for _ in range(4)} == {"one"}
    fair = await cluster.start_one("fair", [Places()], prefer_local=False)
    assert Counter([await fair.call("places.here") for _ in range(6)]) == {"one": 2, "two": 2, "fair": 2}


async def test_c75_shard_sends_a_key_to_the_same_node_from_every_caller(cluster: Cluster) -> None:
    caller, _ = await three(cluster)
    other = await cluster.start_one("other")
    ring = Ring(NODES, 10, None)
    keys: list[tuple[Any, str]] = [("1", "1"), (2, "2"), ("abc", "abc"), (10, "10"), (7.0, "7"), (True, "true")]
    for key, text in keys:
        expected = ring.node_of(text)
        for broker in (caller, other):
            assert {await broker.call("places.sharded", {"user": {"id": key}}) for _ in range(2)} == {expected}
    assert {await caller.call("places.sharded", {"user": {}}) for _ in range(60)} == set(NODES)


async def test_c75_the_keys_of_a_node_that_leaves_go_to_other_nodes(cluster: Cluster) -> None:
    caller, _ = await three(cluster)
    gone = next(broker for broker in cluster.brokers if broker.node_id == "node-b")
    assert await caller.call("places.sharded", {"user": {"id": "7"}}) == "node-b"
    await gone.stop()
    await eventually(lambda: len(caller.registry.actions["places.sharded"].members) == 2)
    expected = Ring(("node-a", "node-c"), 10, None).node_of("7")
    assert await caller.call("places.sharded", {"user": {"id": "7"}}) == expected


async def test_c75_events_are_sharded_by_their_meta(cluster: Cluster) -> None:
    caller, places = await three(cluster)
    ring = Ring(NODES, 10, None)
    for number in range(20):
        await caller.emit("places.moved", {}, meta={"id": number})
    await eventually(lambda: sum(len(one.received) for one in places.values()) == 20)
    for node_id, one in places.items():
        assert one.received == [number for number in range(20) if ring.node_of(str(number)) == node_id]


async def test_c75_cpu_usage_selects_the_node_with_the_lowest_load_in_its_heartbeat(cluster: Cluster) -> None:
    caller, _ = await three(cluster)
    peer = await cluster.raw_peer("busy", "PING")
    for node_id, cpu in (("node-a", 90), ("node-b", 50), ("node-c", 70)):
        heartbeat = {"ver": "5", "sender": node_id, "cpu": cpu}
        await peer.publish(cluster.topics.broadcast("HEARTBEAT"), heartbeat)
    await eventually(lambda: [caller.registry.nodes[node_id].cpu for node_id in NODES] == [90, 50, 70])
    assert {await caller.call("places.idle") for _ in range(5)} == {"node-b"}


async def test_c75_latency_pings_every_node_once_and_then_one_per_host(cluster: Cluster) -> None:
    peer = await cluster.raw_peer("far", "PING")
    caller = cluster.make("caller", strategy="Latency", strategy_options={"ping_interval": 0.02, "low_latency": 0})
    near = cluster.make("near", [Places()])
    await near.start()
    await caller.start()
    await cluster.wait_until_connected()
    service = next(one for one in near.registry.local.services if one["name"] == "places")
    await peer.introduce(service, hostname="far away")
    first = await peer.wait_for("PING", lambda ping: ping["sender"] == "caller")

    def asked() -> int:
        return sum(1 for _, ping in peer.received if ping["sender"] == "caller")

    await eventually(lambda: asked() > 3, "pings in turn")
    pong = {"ver": "5", "sender": "far", "time": first["time"] - 5000, "id": first["id"], "arrived": first["time"]}
    await peer.publish(cluster.topics.to_node("PONG", "caller"), pong)

    def latency_of(node_id: str) -> float | None:
        return caller.registry.latencies.average(caller.registry.nodes[node_id].hostname)

    await eventually(lambda: (latency_of("far") or 0) >= 5 and latency_of("near") is not None)
    assert (latency_of("near") or 0) < 1
    assert isinstance(caller.registry.actions["places.here"].strategy, Lowest)
    assert {await caller.call("places.here") for _ in range(10)} == {"near"}


async def test_c75_no_node_is_pinged_unless_a_strategy_needs_it(cluster: Cluster) -> None:
    peer = await cluster.raw_peer("listener", "PING")
    broker = await cluster.start_one("one")
    assert not broker.registry.latencies.used
    assert [ping for _, ping in peer.received if ping["sender"] == "one"] == []
    await cluster.start_one("two", [Places()])
    await peer.wait_for("PING", lambda ping: ping["sender"] == "one")


async def test_c75_the_first_announcement_of_an_action_decides_its_strategy(cluster: Cluster) -> None:
    broker = await cluster.start_one("caller")
    peer = await cluster.raw_peer("first", "REQ")
    actions = {
        "odd.one": {"name": "odd.one", "rawName": "one", "strategy": "Homemade"},
        "odd.two": {"name": "odd.two", "rawName": "two", "strategy": "CpuUsage", "strategyOptions": "nonsense"},
    }
    await peer.introduce({"name": "odd", "fullName": "odd", "actions": actions, "events": {}})
    await broker.wait_for_services("odd")
    assert type(broker.registry.actions["odd.one"].strategy).__name__ == "RoundRobin"
    assert type(broker.registry.actions["odd.two"].strategy).__name__ == "Lowest"


def test_c25_a_strategy_unknown_to_js_is_refused() -> None:
    with pytest.raises(ServiceSchemaError, match="Homemade"):

        @action(strategy="Homemade")
        async def act(self: Service, ctx: Context) -> None: ...
