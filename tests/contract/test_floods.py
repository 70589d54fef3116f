"""Many packets at once: a node handles other work in between, and queues a bounded number of them."""

import json
import logging
from collections.abc import AsyncIterator
from functools import partial
from itertools import pairwise
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from broker import Context, Service, action, event
from tests.support.cluster import Cluster, open_cluster, shorten_waits
from tests.support.flood import publish_all
from tests.support.transits import service_info
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


class Counting(Service):
    """Counts events, and keeps slow ones waiting until they are released."""

    name = "counting"

    def __init__(self) -> None:
        self.count = self.slow = 0
        self.release = anyio.Event()

    @event("flood.quick")
    async def on_quick(self, ctx: Context) -> None:
        self.count += 1

    @event("flood.slow")
    async def on_slow(self, ctx: Context) -> None:
        await self.release.wait()
        self.slow += 1

    @action
    async def seen(self, ctx: Context) -> int:
        return self.count


@pytest.fixture
async def cluster(nats_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    shorten_waits(monkeypatch)
    async with open_cluster(nats_url, namespace) as cluster:
        yield cluster


def event_packet(name: str) -> bytes:
    packet: dict[str, Any] = {"ver": "5", "sender": "flood", "id": "1", "event": name, "data": None, "meta": {}}
    return json.dumps(packet | {"broadcast": True, "level": 1, "tracing": None, "groups": None}).encode()


def info_packet(number: int) -> bytes:
    services = [service_info("shared", "a", "b", events=("e.*",)), service_info(f"s-{number}", "c")]
    return json.dumps({"ver": "5", "sender": f"node-{number}", "services": services, "instanceID": "i"}).encode()


TAKING_IN, HANDLING = "broker.transports.nats_intake.SLICE_S", "broker.node.workers.SLICE_S"


@pytest.mark.parametrize(("kind", "sliced"), [("EVENT", TAKING_IN), ("EVENT", HANDLING), ("INFO", TAKING_IN)])
async def test_calls_are_handled_between_the_messages_of_a_flood(
    kind: str, sliced: str, cluster: Cluster, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shortest time slice handles one message. Without slices, a thousand are handled between two local calls."""
    for name in (TAKING_IN, HANDLING):
        monkeypatch.setattr(name, 0.0 if name == sliced else float("inf"))
    counting = Counting()
    (one,) = await cluster.start(("one", [counting]))
    if kind == "EVENT":
        packets, subject = [event_packet("flood.quick")] * 3_000, cluster.topics.to_node("EVENT", "one")
    else:
        packets, subject = [info_packet(number) for number in range(1_000)], cluster.topics.broadcast("INFO")

    def progress() -> int:
        taken_in = len(one._node.workers._due) if sliced == TAKING_IN else 0
        return counting.count + taken_in + len(one.registry.nodes) - 1

    seen = [0]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, partial(publish_all, nats_url, subject, packets))
        while seen[-1] < len(packets):
            await one.call("counting.seen")
            await anyio.lowlevel.checkpoint()
            seen.append(progress())
    assert max(after - before for before, after in pairwise(seen)) < 20


async def test_events_that_arrive_faster_than_they_are_handled_are_bounded(
    cluster: Cluster, nats_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("broker.defaults.EVENTS_IN_WORK", 10)
    monkeypatch.setattr("broker.transports.nats_client.NATS_PENDING_MESSAGES", 20)
    counting = Counting()
    _, two = await cluster.start(("one", [counting]), ("two", []))
    subject = cluster.topics.to_node("EVENT", "one")
    slow = [event_packet("flood.slow")] * 100
    with caplog.at_level(logging.WARNING):
        await anyio.to_thread.run_sync(publish_all, nats_url, subject, slow)
        await eventually(lambda: caplog.records, "the line")
        assert await two.call("counting.seen") == 0
        counting.release.set()
        await eventually(lambda: counting.slow > 20)
        await anyio.to_thread.run_sync(publish_all, nats_url, subject, [event_packet("flood.quick")])
        await eventually(lambda: counting.count)
    assert counting.slow <= 31
    (line,) = [record.getMessage() for record in caplog.records]
    assert "others are dropped until there is room" in line


async def test_events_received_before_a_service_is_removed_are_handled(cluster: Cluster, nats_url: str) -> None:
    counting = Counting()
    (one,) = await cluster.start(("one", [counting]))
    quick = [event_packet("flood.quick")] * 2_000
    await anyio.to_thread.run_sync(publish_all, nats_url, cluster.topics.to_node("EVENT", "one"), quick)
    await eventually(lambda: counting.count)
    begun = counting.count + len(one._node.workers._due)
    await one.remove_service("counting")
    assert counting.count >= begun
