"""Loosely typed values that JS nodes accept in a packet are also accepted and passed on by Python (protocol §2.3)."""

import uuid
from typing import Any

import pytest

from broker import Context, Service, ServiceBroker, action, event
from tests.support.js_node import PROTOCOLS, VERSIONS, js_node

pytestmark = pytest.mark.anyio

SETUPS = [(version, "JSON") for version in VERSIONS]
SETUPS += [("0.15", "CBOR"), ("0.14", "MsgPack"), ("0.14", "Notepack"), ("0.15", "JSONExt")]
TELLING = 3  # both versions in text, and one in bytes

# A JS node with the service `js`, and this one with `log`, which sends calls and events of every kind to `js` and `py`.
JS = """
const seen = ctx => ({ id: ctx.id, requestID: ctx.requestID, parentID: ctx.parentID, caller: ctx.caller,
    level: ctx.level, meta: { ...ctx.meta }, headers: { ...ctx.headers } });
const received = {};
const peer = new broker.constructor({ ...broker.options, nodeID: "js-2", logger: false });
peer.createService({ name: "js",
    actions: { async echo(ctx) { return { ...seen(ctx), next: await ctx.call("log.echo") }; } },
    events: { async "js.event"(ctx) { await ctx.call("log.received", { by: "js", ...seen(ctx) }); } } });
broker.createService({ name: "log", actions: { echo: seen, received(ctx) { received[ctx.params.by] = ctx.params; } } });
await peer.start();
await broker.waitForServices(["js", "py", "log"], 20000, 20);
for (const node of ["js-2", "py"])
    while (!(await broker.call("$node.services", {}, { nodeID: node })).some(({ name }) => name === "log"))
        await new Promise(resolve => setTimeout(resolve, 20));
let number = 17e12;
const numbered = () => ({ uidGenerator: () => number++ });
const parent = { id: 7, level: 1, requestID: 8, meta: {}, headers: {}, options: {}, tracing: false, service: null };
const cases = {
    "a number as requestID": { requestID: 42 }, "0 as requestID": { requestID: 0 }, "no requestID": { requestID: null },
    "an object as requestID": { requestID: { x: 1 } }, "an object as caller": { caller: { a: 1 } },
    "an array as meta": { meta: [1] }, "an empty array as meta": { meta: [] }, "an array as headers": { headers: [1] },
    "text as timeout": { timeout: "5000" }, "text as groups": { groups: "js" },
    "numbers as ids": numbered(), "a parent with numbers as ids": { parentCtx: parent },
};
const steady = value => JSON.parse(JSON.stringify(value, (key, item) =>
    typeof item === "string" && /^[\\da-f-]{36}$/.test(item) ? "a UUID" : item >= 17e12 ? "a number" : item));
const found = {};
for (const [name, { uidGenerator, ...options }] of Object.entries(cases)) {
    broker.options.uidGenerator = uidGenerator;
    for (const node of ["js", "py"]) {
        delete received[node];
        const answer = await broker.call(`${node}.echo`, {}, { timeout: 9000, ...options }).catch(String);
        await broker.emit(`${node}.event`, {}, options);
        for (let n = 0; n < 500 && !received[node]; n++) await new Promise(resolve => setTimeout(resolve, 10));
        const { by, ...event } = received[node] || {};
        (found[name] = found[name] || {})[node] = steady({ answer, event });
    }
}
await peer.stop();
return found;
"""


class Loose(Service):
    name = "py"

    def seen(self, ctx: Context) -> dict[str, Any]:
        ids = {"id": ctx.id, "requestID": ctx.request_id, "parentID": ctx.parent_id, "caller": ctx.caller}
        return {**ids, "level": ctx.level, "meta": ctx.meta, "headers": ctx.headers}

    @action
    async def echo(self, ctx: Context) -> dict[str, Any]:
        return {**self.seen(ctx), "next": await ctx.call("log.echo")}

    @event("py.event", group="js")
    async def on_event(self, ctx: Context) -> None:
        await ctx.call("log.received", {"by": "py", **self.seen(ctx)})


@pytest.mark.parametrize(
    ("version", "serializer"),
    [pytest.param(*setup, marks=[pytest.mark.long] * (number >= TELLING)) for number, setup in enumerate(SETUPS)],
    ids=[" ".join(setup) for setup in SETUPS],
)
async def test_c13_c45_loosely_typed_values_of_a_js_caller_pass_through_python_as_through_js(
    version: str, serializer: str, nats_url: str, js_modules: object
) -> None:
    namespace = f"loose-{uuid.uuid4().hex[:12]}"
    options: dict[str, Any] = {"namespace": namespace, "transporter": nats_url, "serializer": serializer}
    async with (
        ServiceBroker("py", services=[Loose()], protocol=PROTOCOLS[version], **options),
        js_node(version, nats_url, namespace, "js-1", serializer=serializer) as js,
    ):
        found = await js.run(JS)
    assert len(found) == 12
    for name, (in_js, in_python) in {name: case.values() for name, case in found.items()}.items():
        assert in_python == steady(in_js), name
        assert in_js["answer"]["next"]["level"] > 1, "a call went through"
        assert in_js["event"]["level"] > 0, "an event was received"


def steady(in_js: Any) -> Any:
    """The service whose calls JS names in `caller` has the name of the Python one."""
    in_js["answer"]["next"]["caller"] = "py"
    return in_js
