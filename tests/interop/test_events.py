"""Events between JS and Python nodes, seen at the handlers and on the wire (protocol §7)."""

import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from broker import Context, Service, ServiceBroker, event
from tests.broker.registry.test_patterns import TABLE
from tests.support.js_node import PROTOCOLS, VERSIONS, JsNode, js_node
from tests.support.tap import Tap, open_tap

pytestmark = pytest.mark.anyio

EVENTS = sorted({name for _, matching, others in TABLE for name in (*matching, *others) if not name.startswith("$")})
PATTERNS = [pattern for pattern, _, _ in TABLE]
Emit = Callable[..., Any]


class Workers(Service):
    """Two patterns in one group."""

    name = "workers"

    def __init__(self) -> None:
        self.received: list[tuple[str, str, Any]] = []
        self.contexts: list[Context] = []

    def take(self, handler: str, ctx: Context) -> None:
        self.received.append((handler, ctx.event or "", ctx.params))
        self.contexts.append(ctx)

    @event("task.*")
    async def on_task(self, ctx: Context) -> None:
        self.take("star", ctx)

    @event("task.done")
    async def on_done(self, ctx: Context) -> None:
        self.take("done", ctx)

    @event("task.broken")
    async def on_broken(self, ctx: Context) -> None:
        raise RuntimeError("broken on purpose")


class SharedOne(Service):
    """Versions of a service share their group."""

    name = "shared"
    version: ClassVar[str | int | None] = 1

    @event("shared.it")
    async def on_it(self, ctx: Context) -> None: ...


class SharedTwo(SharedOne):
    version = 2


class EveryPattern(Service):
    """Each pattern in a group of its own."""

    name = "patterns"

    def __init__(self) -> None:
        self.matched: set[tuple[str, str]] = set()

    def take(self, pattern: str, ctx: Context) -> None:
        self.matched.add((pattern, ctx.event or ""))


def _handler(pattern: str) -> Any:
    async def handle(self: EveryPattern, ctx: Context) -> None:
        self.take(pattern, ctx)

    return event(pattern, group=f"group of {PATTERNS.index(pattern)}".replace(" ", "-"))(handle)


for number, pattern in enumerate(PATTERNS):
    setattr(EveryPattern, f"on_{number}", _handler(pattern))


@dataclass(frozen=True)
class Bus:
    """`js` subscribes in the group "audience"; `py-1` and `py-2` share a group; `py-3` has no subscriptions."""

    js: JsNode
    workers: dict[str, Workers]
    patterns: EveryPattern
    sender: ServiceBroker
    tap: Tap
    ver: str

    def emits(self, kind: str) -> dict[str, Emit]:
        """`emit` or `broadcast` of the JS node and of the Python node without subscriptions."""
        return {"js": getattr(self.js, kind), "py-3": getattr(self.sender, kind)}

    async def settle(self) -> None:
        for node in ("js", "py-1", "py-2", "py-3"):
            await self.tap.settle(node, ver=self.ver)
        await self.js.nodes()  # everything it printed before this answer has been read

    def received(self) -> Counter[tuple[str, str, str]]:
        return Counter(
            (node, handler, name) for node, workers in self.workers.items() for handler, name, _ in workers.received
        )

    def forget(self) -> None:
        for workers in self.workers.values():
            workers.received.clear()
            workers.contexts.clear()


@pytest.fixture(scope="module", params=VERSIONS)
async def bus(request: pytest.FixtureRequest, nats_url: str, js_modules: object) -> AsyncIterator[Bus]:
    namespace = f"events-{uuid.uuid4().hex[:12]}"
    ver, workers, patterns = PROTOCOLS[request.param], {"py-1": Workers(), "py-2": Workers()}, EveryPattern()
    services: dict[str, list[Service]] = {
        "py-1": [workers["py-1"], SharedOne()],
        "py-2": [workers["py-2"], SharedTwo(), patterns],
        "py-3": [],
    }
    async with AsyncExitStack() as stack:
        tap = await stack.enter_async_context(open_tap(nats_url, namespace))
        js = await stack.enter_async_context(js_node(request.param, nats_url, namespace, "js"))
        await js.create_service("recorder", name="audience", patterns=["task.*"])
        await js.create_service("recorder", name="second", patterns=["task.both"])
        await js.create_service("recorder", name="patterns-js", patterns=PATTERNS)
        brokers = [
            await stack.enter_async_context(
                ServiceBroker(node, namespace=namespace, transporter=nats_url, protocol=ver, services=offered)
            )
            for node, offered in services.items()
        ]
        await js.wait_for_services("workers", "v1.shared", "v2.shared", "patterns")
        await brokers[2].wait_for_services("patterns-js", "v1.shared", "v2.shared", "patterns", timeout=30)
        yield Bus(js, workers, patterns, brokers[2], tap, ver)


def sent(bus: Bus, mark: int, sender: str) -> list[tuple[str, Any]]:
    """The receivers and groups of a sender's events, without those of the pattern services."""
    packets = [(topic.topic, topic.packet) for topic in bus.tap.seen[mark:] if topic.topic.startswith("EVENT.")]
    found = []
    for topic, packet in packets:
        if packet["sender"] == sender:
            groups = packet.get("groups")
            kept = None if groups is None else [group for group in groups if group not in OWN_GROUPS]
            if kept or groups is None:
                found.append((topic.removeprefix("EVENT."), kept))
    return sorted(found)


OWN_GROUPS = {"patterns-js", *(f"group-of-{number}" for number in range(len(PATTERNS)))}


async def test_c60_an_emitted_event_goes_to_one_node_of_each_group(bus: Bus) -> None:
    for sender, emit in bus.emits("emit").items():
        bus.forget()
        mark = await bus.tap.mark()
        for number in range(4):
            await emit("task.one", {"n": number})
        await bus.settle()
        assert sorted(bus.received().values()) == [2, 2], "the nodes alternate"
        to_workers = [node for node, groups in sent(bus, mark, sender) if groups == ["workers"]]
        assert Counter(to_workers) == {"py-1": 2, "py-2": 2}
        for packet in bus.tap.find("EVENT.", after=mark, sender=sender):
            assert packet["broadcast"] is False
    await emit("task.both")
    await bus.settle()
    to_js = bus.tap.find("EVENT.js", after=mark, event="task.both")
    assert len(to_js) == 1, "one packet for all groups of a node"
    assert set(to_js[0]["groups"]) >= {"audience", "second"}


async def test_c60_c64_a_group_with_two_patterns_gets_an_event_on_one_node(bus: Bus) -> None:
    bus.forget()
    mark = await bus.tap.mark()
    for number in range(4):
        await bus.sender.emit("task.done", {"n": number})
    await bus.settle()
    for packet in bus.tap.find("EVENT.", after=mark, sender="py-3"):
        assert len(packet["groups"]) == len(set(packet["groups"]))
    for number in range(4):
        ran = [
            (node, handler)
            for node, workers in bus.workers.items()
            for handler, _, data in workers.received
            if data == {"n": number}
        ]
        assert len({node for node, _ in ran}) == 1
        assert sorted(handler for _, handler in ran) == ["done", "star"]


async def test_c61_a_broadcast_goes_to_every_node_once(bus: Bus) -> None:
    for sender, broadcast in bus.emits("broadcast").items():
        for options, expected in (({}, None), ({"groups": ["workers"]}, ["workers"])):
            bus.forget()
            mark = await bus.tap.mark()
            await broadcast("task.all", {"a": 1}, **options)
            await bus.settle()
            assert bus.received() == {("py-1", "star", "task.all"): 1, ("py-2", "star", "task.all"): 1}
            packets = bus.tap.find("EVENT.", after=mark, sender=sender)
            assert {packet["broadcast"] for packet in packets} == {True}
            assert [packet.get("groups") for packet in packets] == [expected] * len(packets)
            others = ["py-1", "py-2"] if sender == "js" or options else ["js", "py-1", "py-2"]
            assert [node for node, _ in sent(bus, mark, sender)] == others


async def test_c36_c60_an_event_has_the_fields_that_js_sends(bus: Bus) -> None:
    for kind in ("emit", "broadcast"):
        for data in ({"a": 1}, None):
            mark = await bus.tap.mark()
            for emit in bus.emits(kind).values():
                await emit("task.fields", data, meta={"m": 1}, headers={"h": "1"}, groups=["workers"])
            await bus.settle()
            theirs = bus.tap.find("EVENT.", after=mark, sender="js")[0]
            ours = bus.tap.find("EVENT.", after=mark, sender="py-3")[0]
            own = dict.fromkeys(("id", "sender", "requestID"))
            assert {**ours, **own} == {**theirs, **own}
            assert ours["requestID"] != ours["id"]
            assert ours.get("headers") == ({"h": "1"} if bus.ver == "5" else None)


async def test_c62_versions_of_a_service_share_its_unversioned_name_as_their_group(bus: Bus) -> None:
    for sender, emit in bus.emits("emit").items():
        mark = await bus.tap.mark()
        for _ in range(4):
            await emit("shared.it")
        await bus.settle()
        went = Counter(node for node, groups in sent(bus, mark, sender) if groups == ["shared"])
        assert went == {"py-1": 2, "py-2": 2}


async def test_c63_each_pattern_matches_the_same_events_in_python_and_in_js(bus: Bus) -> None:
    bus.patterns.matched.clear()
    for name in EVENTS:
        await bus.js.broadcast(name)
        await bus.sender.broadcast(name, "from python")
    await bus.settle()
    matched_in_js = {
        (line["pattern"], line["name"])
        for line in bus.js.recorded_lines("patterns-js")
        if line["payload"]["params"] == "from python"
    }
    assert bus.patterns.matched == matched_in_js
    for pattern, matching, others in TABLE:
        for name in set(EVENTS) & {*matching, *others}:
            assert ((pattern, name) in matched_in_js) == (name in matching), (pattern, name)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("absent", ["done", "star"]),
        (None, ["done", "star"]),
        ([], ["done", "star"]),
        (["workers"], ["done", "star"]),
        (["workers", "other", "workers"], ["done", "star"]),
        (["other"], []),
    ],
    ids=repr,
)
async def test_c64_the_receiver_runs_only_the_named_groups(bus: Bus, groups: Any, expected: list[str]) -> None:
    """The JS node does the same, which confirms the expectation."""
    for is_broadcast in (True, False):
        bus.forget()
        mark = bus.js.mark()
        packet = {"ver": bus.ver, "sender": "tap", "id": "1", "event": "task.done", "broadcast": is_broadcast}
        for node, own in (("py-1", "workers"), ("js", "audience")):
            named = groups if not isinstance(groups, list) else [own if g == "workers" else g for g in groups]
            await bus.tap.publish(f"EVENT.{node}", packet if groups == "absent" else {**packet, "groups": named})
        await bus.settle()
        assert sorted(handler for handler, _, _ in bus.workers["py-1"].received) == expected
        in_js = [line for line in bus.js.recorded_lines("audience", after=mark) if line["name"] == "task.done"]
        assert len(in_js) == (1 if expected else 0)


async def test_c65_event_data_may_be_missing_and_a_failing_handler_sends_nothing(bus: Bus) -> None:
    bus.forget()
    packet = {"ver": bus.ver, "sender": "tap", "id": "1", "event": "task.one", "broadcast": True}
    await bus.tap.publish("EVENT.py-1", packet)
    await bus.tap.publish("EVENT.py-1", {**packet, "data": None})
    await bus.js.broadcast("task.one")
    await bus.settle()
    assert [data for _, _, data in bus.workers["py-1"].received] == [None, None, None]
    mark = await bus.tap.mark()
    await bus.js.broadcast("task.broken", {"a": 1})
    await bus.settle()
    for node in bus.workers:
        assert ("star", "task.broken", {"a": 1}) in bus.workers[node].received, "the other handler ran"
        assert [topic for topic in bus.tap.topics(after=mark, sender=node) if topic not in QUIET] == []


QUIET = ("HEARTBEAT", "PONG.tap")


async def test_c45_an_event_sent_by_a_handler_belongs_to_its_request(bus: Bus) -> None:
    bus.forget()
    await bus.js.broadcast("task.one", {"a": 1}, meta={"m": 1}, headers={"h": "1"}, groups=["workers"])
    await bus.settle()
    ctx = bus.workers["py-1"].contexts[-1]
    packet = bus.tap.find("EVENT.py-1", sender="js")[-1]
    assert (ctx.node_id, ctx.level, ctx.meta, ctx.request_id) == ("js", 1, {"m": 1}, packet["requestID"])
    assert ctx.headers == ({"h": "1"} if bus.ver == "5" else {})
    assert ctx.id != packet["id"], "each handler has its own context"
    await ctx.broadcast("task.next", groups=["audience"])
    await bus.settle()
    nested = bus.tap.find("EVENT.js", sender="py-1")[-1]
    assert (nested["level"], nested["requestID"], nested["parentID"]) == (2, packet["requestID"], ctx.id)
    assert (nested["caller"], nested["meta"]) == ("workers", {"m": 1})
