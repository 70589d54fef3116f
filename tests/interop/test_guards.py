"""What protects a node from others and from itself, in both languages: preference for the local node, breakers,
bulkheads, fallbacks and default timeouts (protocol §9.2, §12)."""

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import anyio
import pytest

from broker import Context, MoleculerServerError, QueueIsFullError, RequestTimeoutError, Service, ServiceBroker, action
from tests.support.js_node import VERSIONS, JsError, JsNode, js_node
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

# Twins of `Both` and `Guarded` below.
JS_SERVICES = """
const circuitBreaker = { enabled: true, minRequestCount: 1, halfOpenTime: 60000 };
const where = fails => () => {
    if (fails) throw Object.assign(new Error("broken"), { code: 500 });
    return "js";
};
broker.createService({ name: "both", actions: {
    here: where(false),
    brokenInJs: { circuitBreaker, handler: where(true) },
    brokenInPython: { circuitBreaker, handler: where(false) },
} });
let open;
const opened = new Promise(resolve => (open = resolve));
broker.createService({ name: "jsguarded", actions: {
    narrow: { bulkhead: { enabled: true, concurrency: 1, maxQueueSize: 1 }, handler: () => opened.then(() => "done") },
    open: () => open(),
    excused: { fallback: (ctx, error) => "instead of " + error.message, handler: where(true) },
    late: { timeout: 100, handler: () => new Promise(() => {}) },
} });
await broker.waitForServices(["both", "jsguarded"], 10000, 20);
"""
JS_CROWD = """
const calls = [1, 2, 3].map(() => broker.call("pyguarded.narrow").catch(error => [error.name, error.code]));
const first = await Promise.race(calls);
await broker.call("pyguarded.open");
return [first, (await Promise.all(calls)).filter(answer => answer === "done").length];
"""
BREAKER = {"enabled": True, "min_request_count": 1, "half_open_time": 60}


class Both(Service):
    """On both nodes."""

    name = "both"

    @action
    async def here(self, ctx: Context) -> str:
        return self.broker.node_id

    @action(name="brokenInJs", circuit_breaker=BREAKER)
    async def broken_in_js(self, ctx: Context) -> str:
        return self.broker.node_id

    @action(name="brokenInPython", circuit_breaker=BREAKER)
    async def broken_in_python(self, ctx: Context) -> str:
        raise MoleculerServerError("broken")


class Guarded(Service):
    name = "pyguarded"

    def __init__(self) -> None:
        self.opened = anyio.Event()

    @action(bulkhead={"enabled": True, "concurrency": 1, "max_queue_size": 1})
    async def narrow(self, ctx: Context) -> str:
        await self.opened.wait()
        return "done"

    @action
    async def open(self, ctx: Context) -> None:
        self.opened.set()

    def instead(self, ctx: Context, error: Exception) -> str:
        return f"instead of {error}"

    @action(fallback="instead")
    async def excused(self, ctx: Context) -> str:
        raise MoleculerServerError("broken")

    @action(timeout=0.1)
    async def late(self, ctx: Context) -> None:
        await anyio.sleep_forever()


@dataclass(frozen=True)
class Pair:
    js: JsNode
    broker: ServiceBroker


@pytest.fixture(scope="module", params=VERSIONS)
async def pair(request: pytest.FixtureRequest, nats_url: str, js_modules: object) -> AsyncIterator[Pair]:
    namespace = f"guards-{uuid.uuid4().hex[:12]}"
    async with (
        js_node(request.param, nats_url, namespace, "js") as js,
        ServiceBroker("py", namespace=namespace, transporter=nats_url, services=[Both(), Guarded()]) as broker,
    ):
        await js.run(JS_SERVICES)
        await js.wait_for_services("pyguarded")
        await broker.wait_for_services("jsguarded", timeout=30)
        await eventually(lambda: len(broker.registry.actions["both.here"].members) == 2, "the JS node's own")
        yield Pair(js, broker)


async def test_c76_the_local_node_is_preferred_until_its_breaker_opens(pair: Pair) -> None:
    for call, own, other, broken in (
        (pair.js.call, "js", "py", "both.brokenInJs"),
        (pair.broker.call, "py", "js", "both.brokenInPython"),
    ):
        assert [await call("both.here") for _ in range(6)] == [own] * 6
        with pytest.raises((JsError, MoleculerServerError), match="broken"):
            await call(broken)
        assert [await call(broken) for _ in range(6)] == [other] * 6


async def test_c79_a_full_bulkhead_refuses_callers_of_the_other_language(pair: Pair) -> None:
    assert await pair.js.run(JS_CROWD) == [["QueueIsFullError", 429], 2]
    answers: list[Any] = []

    async def call() -> None:
        try:
            answers.append(await pair.broker.call("jsguarded.narrow"))
        except QueueIsFullError as error:
            answers.append((error.code, error.node_id))

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(call)
        await eventually(lambda: answers, "the third call to be refused")
        await pair.broker.call("jsguarded.open")
    assert answers == [(429, "js"), "done", "done"]


async def test_c79_the_fallback_of_an_action_answers_callers_of_the_other_language(pair: Pair) -> None:
    assert await pair.js.call("pyguarded.excused") == "instead of broken"
    assert await pair.broker.call("jsguarded.excused") == "instead of broken"


async def test_c79_the_timeout_of_an_action_applies_to_callers_of_the_other_language(pair: Pair) -> None:
    with pytest.raises(RequestTimeoutError):
        await pair.broker.call("jsguarded.late")
    with pytest.raises(JsError) as caught:
        await pair.js.call("pyguarded.late")
    assert caught.value.name == "RequestTimeoutError"
