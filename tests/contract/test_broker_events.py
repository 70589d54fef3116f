"""Events reach one node of each group, or every subscribed node (protocol §7)."""

import logging
from typing import Any

import anyio
import pytest

from broker import (
    BrokerDisconnectedError,
    Context,
    MoleculerError,
    PayloadTooLargeError,
    Service,
    ServiceBroker,
    action,
    event,
)
from broker.transports.memory import Hub
from tests.support.cluster import Cluster
from tests.support.example_services import Listener
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


async def quiet(*brokers: ServiceBroker) -> None:
    """Wait until all packets sent so far have arrived: packets between two nodes keep their order."""
    for broker in brokers:
        for other in brokers:
            if other is not broker:
                assert await broker.ping(other.node_id, 10) is not None


def handlers(listener: Listener) -> list[str]:
    return [handler for handler, _, _ in listener.received]


async def test_c60_an_emitted_event_runs_on_one_node_of_a_group(cluster: Cluster) -> None:
    one, two, other = Listener(), Listener(), Listener("other")
    brokers = await cluster.start(("one", [one]), ("two", [two]), ("three", [other]), ("sender", []))
    await brokers[-1].emit(
        "user.removed"
    )  # the two patterns of the group are now at different positions of their round-robin
    await eventually(lambda: len(one.received) + len(two.received) >= 1 and len(other.received) >= 1)
    for listener in (one, two, other):
        listener.received.clear()
    for number in range(4):
        await brokers[-1].emit("user.created", {"id": number})
    await eventually(lambda: len(one.received) + len(two.received) >= 8 and len(other.received) >= 8)
    await quiet(*brokers)
    for number in range(4):
        ran = [listener for listener in (one, two) if ("star", "user.created", {"id": number}) in listener.received]
        assert len(ran) == 1, "one node of the group"
        assert ("exact", "user.created", {"id": number}) in ran[0].received, "with all its handlers"
    assert len(one.received) == len(two.received) == 4, "the nodes alternate"
    assert len(other.received) == 8, "another group alternates independently"


class NextListener(Listener):
    version = 2


@pytest.mark.parametrize("sender", ["afar", "home"])
async def test_c60_services_of_one_node_that_share_a_group_take_turns(cluster: Cluster, sender: str) -> None:
    first, second = Listener(), NextListener()  # their group is the name without the version
    brokers = await cluster.start(("home", [first, second]), ("afar", []))
    by_name = {broker.node_id: broker for broker in brokers}
    for number in range(4):
        await by_name[sender].emit("user.created", {"id": number})
    await eventually(lambda: len(first.received) + len(second.received) >= 8)
    await quiet(*brokers)
    for listener in (first, second):
        assert sorted(handlers(listener)) == ["exact", "exact", "star", "star"], "each handler's pattern has its turns"


async def test_c61_a_broadcast_runs_on_every_node(cluster: Cluster) -> None:
    one, two = Listener(), Listener()
    brokers = await cluster.start(("one", [one]), ("two", [two]), ("sender", []))
    await brokers[-1].broadcast("user.created", {"id": 1})
    await brokers[0].broadcast("user.created", {"id": 2})
    expected = sorted([(handler, number) for handler in ("exact", "star") for number in (1, 2)])
    for listener in (one, two):
        await eventually(lambda listener=listener: len(listener.received) >= 4)  # type: ignore[misc]  # a lambda's default
        assert sorted((handler, params["id"]) for handler, _, params in listener.received) == expected


async def test_groups_restrict_the_receivers_of_an_event(cluster: Cluster) -> None:
    one, other = Listener(), Listener("other")
    brokers = await cluster.start(("one", [one]), ("two", [other]), ("sender", []))
    await brokers[-1].emit("user.created", 1, groups=["other"])
    await brokers[-1].broadcast("user.created", 2, groups=["other"])
    await eventually(lambda: len(other.received) >= 4)
    await quiet(*brokers)
    assert one.received == []
    assert sorted((handler, params) for handler, _, params in other.received) == [
        ("exact", 1),
        ("exact", 2),
        ("star", 1),
        ("star", 2),
    ]


async def test_a_local_broadcast_stays_on_the_node(cluster: Cluster) -> None:
    one, two = Listener(), Listener()
    brokers = await cluster.start(("one", [one]), ("two", [two]))
    await brokers[0].broadcast_local("user.created", 1)
    await eventually(lambda: sorted(handlers(one)) == ["exact", "star"])
    await quiet(*brokers)
    assert two.received == []


async def test_an_emitted_event_prefers_the_local_node(cluster: Cluster) -> None:
    one, two = Listener(), Listener()
    brokers = await cluster.start(("one", [one]), ("two", [two]))
    for number in range(3):
        await brokers[0].emit("user.a", number)
    await eventually(lambda: [params for *_, params in one.received] == [0, 1, 2])
    await quiet(*brokers)
    assert two.received == []


class Jobs(Service):
    name = "jobs"

    def __init__(self) -> None:
        self.done: list[str] = []

    @event("*.done", group="every")
    async def star(self, ctx: Context) -> None:
        self.done.append(f"star {ctx.params}")

    @event("**.done")
    async def same_group(self, ctx: Context) -> None:
        self.done.append(f"same {ctx.params}")

    @event("$job.*")
    async def dollar(self, ctx: Context) -> None:
        self.done.append(f"dollar {ctx.params}")


async def test_c66_events_of_any_name_reach_other_nodes_and_patterns_with_a_dollar_prefer_their_node(
    cluster: Cluster,
) -> None:
    one, two = Jobs(), Jobs()
    for node_id, services in (("one", [one]), ("two", [two])):
        await cluster.start_one(node_id, services, prefer_local=False)
    await cluster.start_one("sender", [])
    for broker in cluster.brokers:
        for _ in range(2):
            await broker.emit("$job.done", broker.node_id)
        await broker.broadcast("$job.done", f"{broker.node_id} to all")
    await eventually(lambda: len(one.done + two.done) == 3 * (2 * 3 + 2 * 3))
    await quiet(*cluster.brokers)
    for jobs, own, other in ((one, "one", "two"), (two, "two", "one")):
        taking_turns = [f"star {node}" for node in (own, other, "sender")]
        to_all = [
            f"{handler} {node} to all" for handler in ("star", "same", "dollar") for node in (own, other, "sender")
        ]
        in_group = [f"{handler} {node}" for handler in ("same", "dollar") for node in (own, own, "sender")]
        assert sorted(jobs.done) == sorted([*taking_turns, *to_all, *in_group])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("user.created", ["exact", "star"]),
        ("user.removed", ["star"]),
        ("user.a.b", []),
        ("order.", ["deep"]),
        ("order.a.b.c", ["deep"]),
        ("user", []),
        ("other", []),
    ],
)
async def test_c63_patterns_choose_local_and_remote_handlers(cluster: Cluster, name: str, expected: list[str]) -> None:
    listener = Listener()
    brokers = await cluster.start(("one", [listener]), ("two", []))
    for times, broker in enumerate(brokers, 1):
        await broker.emit(name, {})
        await quiet(*brokers)
        await eventually(lambda times=times: sorted(handlers(listener)) == sorted(expected * times))  # type: ignore[misc]  # a lambda's default


@pytest.mark.parametrize("data", [None, 0, "", [], {"a": [1]}, "text", False])
async def test_c65_event_data_of_any_shape_arrives_unchanged(cluster: Cluster, data: Any) -> None:
    listener = Listener()
    brokers = await cluster.start(("one", [listener]), ("two", []))
    for broker in brokers:
        await broker.emit("user.a", data)
    await eventually(lambda: len(listener.received) == 2)
    assert [params for *_, params in listener.received] == [data, data]


async def test_c65_a_failing_handler_is_logged_and_affects_no_other(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    listener = Listener()
    brokers = await cluster.start(("one", [listener]), ("two", []))
    await brokers[1].emit("bad.thing")
    await brokers[0].emit("bad.thing")
    await brokers[1].emit("user.a")
    await eventually(lambda: handlers(listener).count("star") == 1 and handlers(listener).count("failing") == 2)
    await quiet(*brokers)
    lines = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [line.getMessage() for line in lines] == ["The handler of 'bad.thing' in service 'listener' failed"] * 2
    assert all(line.exc_info for line in lines)


async def test_a_slow_handler_delays_no_other_event(cluster: Cluster) -> None:
    slow = Slow()
    brokers = await cluster.start(("one", [slow]), ("two", []))
    for _ in range(20):
        await brokers[1].emit("slow.thing")
    await eventually(lambda: slow.inside == 20)
    assert await brokers[1].call("slow.inside_now") == 20
    slow.release()


class Slow(Service):
    name = "slow"

    def __init__(self) -> None:
        self.inside = 0
        self._released = anyio.Event()

    def release(self) -> None:
        self._released.set()

    @event("slow.*")
    async def on_thing(self, ctx: Context) -> None:
        self.inside += 1
        await self._released.wait()

    @action
    async def inside_now(self, ctx: Context) -> int:
        return self.inside


class Sender(Service):
    name = "sender"
    version = 2

    @action
    async def emit(self, ctx: Context) -> list[Any]:
        await ctx.emit("user.a", 1, meta={"more": 2})
        await ctx.broadcast("user.b", 2, headers={"h": 1})
        return [ctx.id, ctx.request_id]


async def test_an_event_from_a_context_belongs_to_its_request(cluster: Cluster) -> None:
    local, remote = Listener("local"), Listener("remote")
    _, _, root = await cluster.start(("one", [Sender(), local]), ("two", [remote]), ("root", []))
    id, request_id = await root.call("v2.sender.emit", meta={"user": 7}, headers={"not": "inherited"})
    for listener in (local, remote):
        await eventually(lambda listener=listener: len(listener.contexts) == 2)  # type: ignore[misc]  # a lambda's default
        first, second = sorted(listener.contexts, key=lambda context: context["event"])
        for context in (first, second):
            assert (context["request_id"], context["parent_id"], context["level"]) == (request_id, id, 2)
            assert (context["caller"], context["node_id"]) == ("v2.sender", "one")
        assert first["meta"] == {"user": 7, "more": 2}
        assert (first["headers"], second["headers"]) == ({}, {"h": 1})


async def test_an_event_without_subscribers_is_not_an_error(cluster: Cluster) -> None:
    one, _ = await cluster.start(("one", []), ("two", [Listener()]))
    await one.emit("no.subscribers")
    await one.broadcast("no.subscribers")


async def test_event_data_that_cannot_be_encoded_is_an_error_at_the_sender(cluster: Cluster) -> None:
    one, _ = await cluster.start(("one", []), ("two", [Listener()]))
    for options in ({"data": {"odd": object()}}, {"data": 1, "meta": {"odd": object()}}):
        with pytest.raises(MoleculerError) as caught:
            await one.emit("user.created", **options)
        assert caught.value.type == "UNSERIALIZABLE"


async def test_internal_events_reach_the_services_of_their_node(cluster: Cluster) -> None:
    watching = Watching()
    one, two = await cluster.start(("one", [watching]), ("two", [Listener()]))
    await eventually(lambda: ("$node.connected", "two") in watching.seen)
    await two.stop()
    await eventually(lambda: ("$node.disconnected", "two") in watching.seen)
    assert ("$broker.started", None) in watching.seen
    assert ("$services.changed", None) in watching.seen
    assert one.registry.nodes["two"].available is False


class Watching(Service):
    name = "watching"

    def __init__(self) -> None:
        self.seen: list[tuple[str | None, str | None]] = []

    @event("$**")
    async def on_internal(self, ctx: Context) -> None:
        node = (ctx.params or {}).get("node")
        self.seen.append((ctx.event, node["id"] if node else None))


async def test_a_broker_that_is_not_running_sends_nothing(cluster: Cluster) -> None:
    broker = cluster.make("one")
    for use in (broker.emit, broker.broadcast, broker.broadcast_local):
        with pytest.raises(BrokerDisconnectedError, match="not running"):
            await use("user.created")


async def test_an_event_above_the_size_limit_is_an_error_at_the_sender(cluster: Cluster) -> None:
    hub = Hub.named(cluster.transporter.removeprefix("memory://"))
    hub.max_payload = 1 << 20  # as NATS has by default
    one, _ = await cluster.start(("one", []), ("two", [Listener()]))
    with pytest.raises(PayloadTooLargeError):
        await one.emit("user.created", "x" * (1 << 20))


async def test_services_can_send_events_while_they_stop(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    parting, staying, listening = Parting(), Listener("remote"), Listener("local")
    one, _ = await cluster.start(("one", [listening, parting]), ("two", [staying]))
    await one.stop()
    await eventually(lambda: ("star", "user.parted", None) in staying.received)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


class Parting(Service):
    name = "parting"

    async def stopped(self) -> None:
        await self.broker.broadcast("user.parted")


class Blank(Listener):
    name = "blank"

    @event("not for NATS")
    async def blank(self, ctx: Context) -> None: ...


async def test_c80_an_event_name_that_nats_cannot_balance_leaves_other_events_working(
    nats_url: str, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    blank, other = Blank("blank"), Listener("other")
    options: dict[str, Any] = {"namespace": namespace, "transporter": nats_url, "disable_balancer": True}
    async with (
        ServiceBroker("sender", **options) as sender,
        ServiceBroker("one", services=[blank, other], **options),  # is known when it has announced itself
    ):
        await sender.wait_for_services("blank", "other", timeout=30)
        await sender.emit("user.created", 1)
        await eventually(lambda: set(handlers(blank)) == set(handlers(other)) == {"exact", "star"})
    assert any("'MOL-" in message and "not for NATS" in message for message in caplog.messages)
