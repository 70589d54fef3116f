"""Balancing and fault tolerance across languages: nodes honour each other's policies and select alike (§9, §12).

For each version of Moleculer: a JS and a Python node that call, a JS and a Python node that serve the same service.
"""

import json
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from broker import Context, MoleculerServerError, Service, ServiceBroker, ServiceNotAvailableError, action
from broker.registry.strategies import Ring
from tests.support.js_node import VERSIONS, JsError, JsNode, js_node
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

SHARD = {"shardKey": "id"}

# The JS twin of `Where` and `Flaky` below. Latency comes first: it does not start in a JS node that has used Shard.
JS_SERVICES = """
broker.createService({
    name: "where",
    actions: {
        near: {
            strategy: "Latency",
            strategyOptions: { pingInterval: 1 },
            handler() { return this.broker.nodeID; },
        },
        here() { return this.broker.nodeID; },
        sharded: { strategy: "Shard", strategyOptions: { shardKey: "id" }, handler() { return this.broker.nodeID; } },
        ringed: {
            strategy: "Shard",
            strategyOptions: { shardKey: "id", ringSize: 20 },
            handler() { return this.broker.nodeID; },
        },
        idle: { strategy: "CpuUsage", strategyOptions: { sampleCount: 0 }, handler() { return this.broker.nodeID; } },
    },
});
const seen = (broker.seen = []);
broker.failures = 0;
function attempt(ctx) {
    seen.push({ id: ctx.id, requestID: ctx.requestID });
    if (broker.failures-- > 0) throw Object.assign(new Error("flaky"), { code: 503, retryable: true });
    return seen.length;
}
broker.createService({
    name: "jsflaky",
    actions: {
        patient: { retryPolicy: { enabled: true, retries: 2, delay: 5, maxDelay: 5 }, handler: attempt },
        guarded: { circuitBreaker: { enabled: true, minRequestCount: 2, halfOpenTime: 60000 }, handler: attempt },
    },
});
await broker.waitForServices(["where", "jsflaky"], 10000, 20);
"""


class Where(Service):
    name = "where"

    @action(strategy="Latency", strategy_options={"ping_interval": 1})
    async def near(self, ctx: Context) -> str:
        return self.broker.node_id

    @action
    async def here(self, ctx: Context) -> str:
        return self.broker.node_id

    @action(strategy="Shard", strategy_options={"shard_key": "id"})
    async def sharded(self, ctx: Context) -> str:
        return self.broker.node_id

    @action(strategy="Shard", strategy_options={"shard_key": "id", "ring_size": 20})
    async def ringed(self, ctx: Context) -> str:
        return self.broker.node_id

    @action(strategy="CpuUsage", strategy_options={"sample_count": 0})
    async def idle(self, ctx: Context) -> str:
        return self.broker.node_id


class Flaky(Service):
    name = "pyflaky"

    def __init__(self) -> None:
        self.failures = 0
        self.seen: list[tuple[str, str]] = []

    async def attempt(self, ctx: Context) -> int:
        self.seen.append((ctx.id, ctx.request_id))
        self.failures -= 1
        if self.failures >= 0:
            raise MoleculerServerError("flaky", 503)
        return len(self.seen)

    @action(retry_policy={"enabled": True, "retries": 2, "delay": 0.005, "max_delay": 0.005})
    async def patient(self, ctx: Context) -> int:
        return await self.attempt(ctx)

    @action(circuit_breaker={"enabled": True, "min_request_count": 2, "half_open_time": 60})
    async def guarded(self, ctx: Context) -> int:
        return await self.attempt(ctx)

    @action
    async def plain(self, ctx: Context) -> int:
        return await self.attempt(ctx)


@dataclass(frozen=True)
class Fleet:
    """`js` and `py` call; `js-b` and `py-b` serve."""

    js: JsNode
    py: ServiceBroker
    js_b: JsNode
    py_b: ServiceBroker
    flaky: Flaky
    options: dict[str, Any]


@pytest.fixture(scope="module", params=VERSIONS)
async def fleet(request: pytest.FixtureRequest, nats_url: str, js_modules: object) -> AsyncIterator[Fleet]:
    namespace = f"fleet-{uuid.uuid4().hex[:12]}"
    flaky = Flaky()
    common: dict[str, Any] = {"namespace": namespace, "transporter": nats_url, "heartbeat_interval": 1}
    async with (
        js_node(request.param, nats_url, namespace, "js", heartbeatInterval=1) as js,
        js_node(request.param, nats_url, namespace, "js-b", heartbeatInterval=1) as js_b,
        ServiceBroker("py-b", services=[Where(), flaky], **common) as py_b,
        ServiceBroker("py", **common) as py,
    ):
        await js.create_service("recorder", name="supervisor", patterns=["$circuit-breaker.*"])
        await js_b.run(JS_SERVICES)
        await js.wait_for_services("where", "jsflaky", "pyflaky")
        await py.wait_for_services("where", "jsflaky", "supervisor", timeout=30)
        await eventually(lambda: len(py.registry.actions["where.here"].members) == 2, "both servers at the Python node")
        await js.run(
            "const list = broker.registry.actions.get('where.here');"
            "while (list.endpoints.length < 2) await new Promise(r => setTimeout(r, 20));"
        )
        yield Fleet(js, py, js_b, py_b, flaky, common)


async def test_c75_round_robin_gives_js_and_python_nodes_the_same_number_of_calls(fleet: Fleet) -> None:
    from_python = Counter([await fleet.py.call("where.here") for _ in range(20)])
    from_js = Counter([await fleet.js.call("where.here") for _ in range(20)])
    assert from_python == from_js == {"js-b": 10, "py-b": 10}


async def test_c75_shard_selects_the_same_node_in_both_languages(fleet: Fleet) -> None:
    keys: list[Any] = ["1", "2", "abc", "user-42", 7, 10, 1.5, 1e21, 1e-7, -0.25, 2**53, True, [1, None, "x"], {"a": 1}]
    keys += [f"key {number}" for number in range(20)]
    ring = Ring(("js-b", "py-b"), 10, None)
    from_python = [await fleet.py.call("where.sharded", {"id": key}) for key in keys]
    from_js = [await fleet.js.call("where.sharded", {"id": key}) for key in keys]
    assert from_python == from_js
    assert from_python[:3] == [ring.node_of(key) for key in ("1", "2", "abc")]
    assert set(from_python) == {"js-b", "py-b"}


async def test_c75_a_hash_on_the_boundary_of_two_slices_belongs_to_the_lower_one(fleet: Fleet) -> None:
    """On a ring of 20, two nodes with 10 slices each: every hash but 0 is a border."""
    ring = Ring(("js-b", "py-b"), 10, 20)
    assert ring.keys == list(range(1, 21))
    keys = [f"key {number}" for number in range(60)]
    assert {ring.hash_of(key) for key in keys} >= {0, 1, 2, 18, 19}
    from_js = [await fleet.js.call("where.ringed", {"id": key}) for key in keys]
    assert [await fleet.py.call("where.ringed", {"id": key}) for key in keys] == from_js
    assert ["js-b" if ring.hash_of(key) in (0, *range(1, 20, 2)) else "py-b" for key in keys] == from_js


async def test_c75_cpu_usage_reads_the_heartbeats_of_the_other_language(fleet: Fleet) -> None:
    nodes = fleet.py.registry.nodes
    await eventually(lambda: None not in (nodes["js-b"].cpu, nodes["py-b"].cpu), "heartbeats")
    seen_by_js = await fleet.js.run(
        "const cpu = id => broker.registry.nodes.get(id).cpu;"
        "while (cpu('py-b') == null) await new Promise(r => setTimeout(r, 20)); return cpu('py-b');"
    )
    assert isinstance(seen_by_js, int)
    cpu = {node_id: nodes[node_id].cpu for node_id in ("js-b", "py-b")}
    nodes["js-b"].cpu, nodes["py-b"].cpu = 50, 40
    assert await fleet.py.call("where.idle") == "py-b"
    assert all(0 <= (value or 0) <= 100 for value in cpu.values())


async def test_c75_latency_is_measured_across_languages(fleet: Fleet) -> None:
    registry = fleet.py.registry
    await eventually(
        lambda: registry.latencies.average(registry.nodes["js-b"].hostname) is not None, "pongs of JS nodes"
    )
    measured = await fleet.js.run(
        "const strategy = broker.registry.actions.get('where.near').strategy;"
        "while (!strategy.hostAvgLatency.size) {"
        "    await broker.transit.sendPing('py-b');"
        "    await new Promise(r => setTimeout(r, 20));"
        "}"
        "return Array.from(strategy.hostAvgLatency.values());"
    )
    assert all(isinstance(value, int | float) and value >= 0 for value in measured)
    assert await fleet.py.call("where.near") in ("js-b", "py-b")


async def test_c77_python_honours_the_retry_policy_that_js_announces(fleet: Fleet) -> None:
    await fleet.js_b.run("broker.seen.length = 0; broker.failures = 2;")
    assert await fleet.py.call("jsflaky.patient") == 3
    seen = await fleet.js_b.run("return broker.seen;")
    assert len({one["id"] for one in seen}) == 3
    assert len({one["requestID"] for one in seen}) == 1
    await fleet.js_b.run("broker.seen.length = 0; broker.failures = 9;")
    with pytest.raises(Exception, match="flaky"):
        await fleet.py.call("jsflaky.patient")
    assert len(await fleet.js_b.run("return broker.seen;")) == 3


async def test_c77_js_honours_the_retry_policy_that_python_announces(fleet: Fleet) -> None:
    fleet.flaky.seen.clear()
    fleet.flaky.failures = 2
    assert await fleet.js.call("pyflaky.patient") == 3
    assert len({one for one, _ in fleet.flaky.seen}) == 3
    assert len({request for _, request in fleet.flaky.seen}) == 1
    fleet.flaky.seen.clear()
    fleet.flaky.failures = 9
    with pytest.raises(JsError, match="flaky"):
        await fleet.js.call("pyflaky.patient")
    assert len(fleet.flaky.seen) == 3


async def test_c78_each_honours_the_circuit_breaker_that_the_other_announces(fleet: Fleet) -> None:
    await fleet.js_b.run("broker.failures = 9;")
    for _ in range(2):
        with pytest.raises(Exception, match="flaky"):
            await fleet.py.call("jsflaky.guarded")
    with pytest.raises(ServiceNotAvailableError):
        await fleet.py.call("jsflaky.guarded")
    fleet.flaky.failures = 9
    for _ in range(2):
        with pytest.raises(JsError, match="flaky"):
            await fleet.js.call("pyflaky.guarded")
    with pytest.raises(JsError) as refused:
        await fleet.js.call("pyflaky.guarded")
    assert refused.value.name == "ServiceNotAvailableError"


async def test_c66_c78_a_js_supervisor_sees_the_breakers_of_python_nodes(fleet: Fleet) -> None:
    mark = fleet.js.mark()
    fleet.flaky.failures = 2
    breaker = {"enabled": True, "min_request_count": 2, "half_open_time": 0.1}
    async with ServiceBroker("guarded", circuit_breaker=breaker, **fleet.options) as guarded:
        await guarded.wait_for_services("pyflaky", "supervisor", timeout=30)
        for _ in range(2):
            with pytest.raises(MoleculerServerError):
                await guarded.call("pyflaky.plain")
        with pytest.raises(ServiceNotAvailableError):
            await guarded.call("pyflaky.plain")
        endpoint = guarded.registry.actions["pyflaky.plain"].members[0]
        await eventually(lambda: endpoint.available, "the breaker to be half open")
        await guarded.call("pyflaky.plain")
        await fleet.js.recorded("$circuit-breaker.closed", after=mark)
    about = {"nodeID": "py-b", "service": "pyflaky", "action": "pyflaky.plain"}
    expected = {"opened": about | {"failures": 2, "count": 2, "rate": 1}, "half-opened": about, "closed": about}
    for name, params in expected.items():
        event = await fleet.js.recorded(
            f"$circuit-breaker.{name}", lambda one: one["params"]["action"] == "pyflaky.plain", after=mark
        )
        assert (event["params"], event["nodeID"], event["type"]) == (params, "guarded", "broadcast")


async def test_c25_js_reads_the_policies_that_python_announces(fleet: Fleet) -> None:
    actions = await fleet.js.actions()
    described = json.dumps({name: entry["action"] for name, entry in actions.items()})
    assert "fallback" not in described
    assert actions["pyflaky.patient"]["action"]["retryPolicy"] == {
        "enabled": True,
        "retries": 2,
        "delay": 5,
        "maxDelay": 5,
    }
    logged = [*fleet.js.logged(), *fleet.js_b.logged()]
    assert [line for line in logged if "Protocol version mismatch" not in line] == []
