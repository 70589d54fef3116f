"""`disable_balancer`: NATS balances calls and events among JS and Python nodes (protocol §5.7, §7.1)."""

import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import anyio
import pytest

from broker import Context, Service, ServiceBroker, ServiceNotFoundError, action, event
from tests.support.js_node import PROTOCOLS, VERSIONS, JsNode, js_node
from tests.support.tap import Tap, open_tap

pytestmark = pytest.mark.anyio
DEADLINE_S = 30


class Shared(Service):
    name = "shared"

    def __init__(self) -> None:
        self.events: list[str] = []
        self.came = anyio.Event()

    @action
    async def who(self, ctx: Context) -> str:
        return self.broker.node_id

    @event("user.**", group="workers")
    async def on_user(self, ctx: Context) -> None:
        self.events.append(ctx.event or "")
        self.came.set()

    @event("user.one", group="helpers")
    async def on_one(self, ctx: Context) -> None: ...


@dataclass(frozen=True)
class Balanced:
    js: JsNode
    brokers: tuple[ServiceBroker, ServiceBroker]
    services: tuple[Shared, Shared]
    tap: Tap


@pytest.fixture(scope="module", params=VERSIONS)
async def balanced(request: pytest.FixtureRequest, nats_url: str, js_modules: object) -> AsyncIterator[Balanced]:
    namespace = f"balanced-{uuid.uuid4().hex[:12]}"
    services = (Shared(), Shared())
    async with AsyncExitStack() as stack:
        tap = await stack.enter_async_context(open_tap(nats_url, namespace))
        js = await stack.enter_async_context(js_node(request.param, nats_url, namespace, "js", disableBalancer=True))
        await js.create_service("math")
        one, two = [
            await stack.enter_async_context(
                ServiceBroker(
                    f"py-{number}",
                    namespace=namespace,
                    transporter=nats_url,
                    disable_balancer=True,
                    protocol=PROTOCOLS[request.param],  # NATS would deliver packets to nodes of either version (§2.4)
                    services=[service],
                )
            )
            for number, service in enumerate(services)
        ]
        await js.wait_for_services("shared")
        await one.wait_for_services("math", timeout=DEADLINE_S)
        with anyio.fail_after(DEADLINE_S):
            # Nodes subscribe before they announce (§1.3): when both know each other, NATS has both subscriptions.
            while any(len(broker.registry.actions["shared.who"].members) < 2 for broker in (one, two)):
                await one.registry_changed()
        yield Balanced(js, (one, two), services, tap)


async def test_c81_calls_of_js_and_python_are_balanced_among_all_nodes_including_the_caller(balanced: Balanced) -> None:
    one, _ = balanced.brokers
    from_python = Counter([await one.call("shared.who") for _ in range(100)])
    from_js = Counter([await balanced.js.call("shared.who") for _ in range(100)])
    assert set(from_python) == set(from_js) == {"py-0", "py-1"}
    assert await one.call("math.add", {"a": 1, "b": 2}) == 3


async def test_c81_a_call_to_a_named_node_reaches_that_node(balanced: Balanced) -> None:
    one, two = balanced.brokers
    assert {await one.call("shared.who", node_id="py-1") for _ in range(5)} == {"py-1"}
    assert await two.call("shared.who", node_id="py-1") == "py-1"
    with pytest.raises(ServiceNotFoundError):
        await one.call("shared.who", node_id="js")


async def test_c82_an_emitted_event_reaches_one_node_of_its_group(balanced: Balanced) -> None:
    one, _ = balanced.brokers
    for service in balanced.services:
        service.events.clear()
    for number in range(40):
        await one.emit(f"user.{number}")
        await balanced.js.emit(f"user.js.{number}")
    with anyio.fail_after(DEADLINE_S):
        while sum(len(service.events) for service in balanced.services) < 80:
            await anyio.lowlevel.checkpoint()
    seen = [name for service in balanced.services for name in service.events]
    assert len(seen) == len(set(seen)) == 80
    assert all(service.events for service in balanced.services)


async def test_c82_a_broadcast_reaches_every_node_once(balanced: Balanced) -> None:
    one, _ = balanced.brokers
    for service in balanced.services:
        service.events.clear()
        service.came = anyio.Event()
    await one.broadcast("user.gone")
    with anyio.fail_after(DEADLINE_S):
        for service in balanced.services:
            await service.came.wait()
    assert [service.events for service in balanced.services] == [["user.gone"], ["user.gone"]]


async def test_c81_c82_packets_are_sent_to_the_subjects_that_js_uses(balanced: Balanced) -> None:
    """Even if the sender offers the action itself: NATS selects the receiver."""
    one, _ = balanced.brokers
    tap, ver = balanced.tap, PROTOCOLS[balanced.js.version]
    for called, params in (("shared.who", {}), ("math.add", {"a": 1, "b": 2})):
        mark = await tap.mark()
        await one.call(called, params)
        await balanced.js.call(called, params)
        await tap.catch_up()
        for node in ("py-0", "js"):
            (request,) = tap.find(f"REQB.{called}", after=mark, sender=node)
            assert request["ver"] == ver
            assert len(tap.find(f"RES.{node}", after=mark, id=request["id"])) == 1
        assert tap.find("REQ.", after=mark) == []
    mark = await tap.mark()
    await one.call("shared.who", node_id="py-1")
    await balanced.js.call("shared.who", nodeID="py-1")
    await tap.catch_up()
    assert [request["sender"] for request in tap.find("REQ.py-1", after=mark)] == ["py-0", "js"]

    cases: list[tuple[str, dict[str, Any]]] = [
        ("emit", {}),
        ("broadcast", {}),
        ("broadcast", {"groups": ["workers"]}),
    ]
    for kind, options in cases:
        mark = await tap.mark()
        await getattr(one, kind)("user.one", {"a": 1}, **options)
        await getattr(balanced.js, kind)("user.one", {"a": 1}, **options)
        for node in ("py-0", "py-1", "js"):
            await tap.settle(node, ver=ver)
        ours, theirs = [
            sorted(
                (seen.topic, sorted(seen.packet["groups"]), seen.packet["broadcast"])
                for seen in tap.seen[mark:]
                if seen.topic.startswith("EVENT") and seen.packet["sender"] == node
            )
            for node in ("py-0", "js")
        ]
        assert ours == theirs
        if kind == "emit":
            expected = [("EVENTB.helpers.user.one", ["helpers"]), ("EVENTB.workers.user.one", ["workers"])]
        else:
            groups = options.get("groups", ["helpers", "workers"])
            expected = [("EVENT.py-0", groups), ("EVENT.py-1", groups)]
        assert [(topic, groups) for topic, groups, _ in ours] == expected


async def test_c80_a_node_that_leaves_gets_no_more_calls(balanced: Balanced) -> None:
    one, _ = balanced.brokers
    leaving = ServiceBroker(
        "py-leaving",
        namespace=one.options.namespace,
        transporter=one.options.transporter,
        disable_balancer=True,
        protocol=one.options.protocol,
        services=[Shared()],
    )
    async with leaving:
        with anyio.fail_after(DEADLINE_S):
            while len(one.registry.actions["shared.who"].members) < 3:
                await one.registry_changed()
    assert "py-leaving" not in {await one.call("shared.who", timeout=DEADLINE_S) for _ in range(60)}


async def test_c90_the_js_node_logs_no_errors(balanced: Balanced) -> None:
    assert balanced.js.logged() == []
