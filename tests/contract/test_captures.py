"""What real nodes of both versions once said, said again over NATS: our side answers, returns and hears the same.

Each line of tests/golden/protocol-4.jsonl and -5.jsonl is a packet of a running cluster of JS nodes.
"""

import json
from collections.abc import AsyncIterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import anyio
import pytest

from broker import Context, MoleculerError, Service, ServiceBroker, action, event
from broker.streams.reader import StreamReader
from tests.support.tap import Tap, open_tap

pytestmark = pytest.mark.anyio

GOLDEN = Path(__file__).parents[1] / "golden"
VERSIONS = ("4", "5")
EVENT_GROUPS = ("math", "other", "greeter", "mail", "all", "l", "dup")


def lines(ver: str, *commands: str) -> list[tuple[str, dict[str, Any]]]:
    """Topics (without the prefix) and packets of some commands."""
    captured = [json.loads(line) for line in (GOLDEN / f"protocol-{ver}.jsonl").read_text("utf-8").splitlines()]
    told = [(line["subject"].partition(".")[2], line["payload"]) for line in captured]
    return [(topic, packet) for topic, packet in told if topic.split(".")[0] in commands]


class Math(Service):
    name = "math"

    @action
    async def add(self, ctx: Context, a: float, b: float) -> float:
        return a + b

    @action
    async def echo(self, ctx: Context) -> dict[str, Any]:
        names = ("params", "meta", "level", "caller", "tracing", "locals", "id")
        seen = {name: getattr(ctx, name) for name in names}
        return seen | {"requestID": ctx.request_id, "parentID": ctx.parent_id, "nodeID": ctx.node_id}

    @action
    async def setmeta(self, ctx: Context) -> str:
        del ctx.meta["removeMe"]
        ctx.meta |= {"added": 1, "$dollar": 2}
        ctx.response_headers["x-resp"] = "1"
        return "ok"

    @action
    async def slow(self, ctx: Context, ms: float) -> None:
        await anyio.sleep_forever()

    @action
    async def recv(self, ctx: Context) -> dict[str, Any]:
        chunks = [f"B:{len(c)}:{c.decode()}" if isinstance(c, bytes) else c async for c in ctx.stream]
        return {"chunks": chunks, "meta": ctx.meta, "params": ctx.params}


class Plain(Service):
    """Every other action of the captures, under its full name."""

    name = "plain"
    settings: Mapping[str, Any] = {"$noServiceNamePrefix": True}


def _plain(name: str, result: Any) -> Any:
    async def run(self: Plain, ctx: Context) -> Any:
        return result

    return action(name=name)(run)


for _number, (_name, _result) in enumerate(
    {
        **dict.fromkeys(("math.pub", "math.nulvis", "math.renamed", "math.zero"), "ok"),
        **dict.fromkeys(("v2.posts.find", "staging.users.find", "nover.find", "direct.call"), "ok"),
        **dict.fromkeys(("v2.s.flaky", "s.x"), "ok"),
        "v1.greeter.hello": "b",
        "loc.x": "local-x",
    }.items()
):
    setattr(Plain, f"action_{_number}", _plain(_name, _result))


@pytest.fixture
async def tap(nats_url: str, namespace: str) -> AsyncIterator[Tap]:
    async with open_tap(nats_url, namespace) as tap:
        yield tap


def without_places(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer without stacks and the words for people, which are each node's own."""
    plain = json.loads(json.dumps({name: value for name, value in answer.items() if name != "sender"}))
    error = plain.get("error")
    if error:
        error.pop("stack", None)
        for item in error["data"] if isinstance(error.get("data"), list) else ():
            item.pop("message", None)
    return dict(plain)


@pytest.mark.parametrize("ver", VERSIONS)
async def test_c87_captured_requests_are_answered_as_js_answered_them(
    ver: str, nats_url: str, namespace: str, tap: Tap
) -> None:
    answers: dict[str, dict[str, Any]] = {}
    for _, answer in lines(ver, "RES"):
        answers.setdefault(answer["id"], answer)
    requests = lines(ver, "REQ", "REQB")
    services = [Math(), Plain()]
    async with ServiceBroker(
        "node-b", namespace=namespace, transporter=nats_url, services=services, disable_balancer=True
    ):
        await tap.wait_for("INFO", sender="node-b")  # subscribed to what NATS shares out, too
        compared = 0
        for request_id, packets in groupby(requests, key=lambda line: line[1]["id"]):
            mark = await tap.mark()
            sent = list(packets)
            for topic, packet in sent:
                await tap.publish(topic, packet)
            request = sent[0][1]
            answer = await tap.wait_for(f"RES.{request['sender']}", after=mark, id=request_id)
            compared += check_answer(request, answer, answers.get(request_id))
    assert compared == 8, "all that were captured with their answer"


def check_answer(request: dict[str, Any], answer: dict[str, Any], captured: dict[str, Any] | None) -> bool:
    if captured is None:
        assert answer["ver"] == request["ver"]
        if "failing" in json.dumps(request) or answer["success"] is False:
            assert answer["error"]["message"] == "req broke"
        return False
    ours, theirs = without_places(answer), without_places(captured)
    if request["action"] == "math.echo":  # they tell how they hold the timeout; we hold a deadline
        for name in ("timeout", "headers"):
            theirs["data"].pop(name, None)
    if request["action"] == "math.recv" and request["ver"] == "4":
        theirs["data"]["params"] = None  # JS shows the stream there
    if theirs.get("error", {}).get("type") == "VALIDATION_ERROR":
        for error in (ours["error"], theirs["error"]):
            error["data"] = [{name: item.get(name) for name in ("type", "field", "action")} for item in error["data"]]
    assert ours == theirs
    return True


@pytest.mark.parametrize("ver", VERSIONS)
async def test_c87_captured_answers_reach_the_caller(ver: str, nats_url: str, namespace: str, tap: Tap) -> None:
    info = {"ver": ver, "sender": "node-b", "instanceID": "i", "seq": 2, "config": {}}
    actions = {"cap.run": {"name": "cap.run", "rawName": "run"}}
    service = {"name": "cap", "fullName": "cap", "settings": {}, "metadata": {}, "actions": actions, "events": {}}
    results = [list(packets) for _, packets in groupby(lines(ver, "RES"), key=lambda line: line[1]["id"])]
    assert len(results) > 50
    async with ServiceBroker("node-a", namespace=namespace, transporter=nats_url) as broker:
        await tap.publish("INFO", {**info, "services": [service]})
        await broker.wait_for_services("cap", timeout=30)
        for packets in results:
            mark = await tap.mark()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(check_call, broker, [packet for _, packet in packets])
                request = await tap.wait_for("REQ.node-b", after=mark)
                for _, packet in packets:
                    await tap.publish("RES.node-a", {**packet, "id": request["id"], "sender": "node-b"})


async def check_call(broker: ServiceBroker, packets: list[dict[str, Any]]) -> None:
    first, last = packets[0], packets[-1]
    meta: dict[str, Any] = {"kept": 1}
    if last["success"]:
        result = await broker.call("cap.run", meta=meta)
        if isinstance(result, StreamReader):
            assert [item async for item in result] == [chunk(packet["data"]) for packet in packets[1:-1]]
        else:
            assert result == last.get("data")
    else:
        with pytest.raises(MoleculerError) as caught:
            async for _ in await broker.call("cap.run", meta=meta):
                pass
        check_error(caught.value, last["error"])
    shown = {name: value for name, value in first["meta"].items() if name != "$streamObjectMode"}
    assert meta == {"kept": 1, **shown}


def check_error(error: MoleculerError, wire: dict[str, Any]) -> None:
    assert (error.name, error.node_id) == (wire["name"], wire["nodeID"])
    assert error.retryable is bool(wire.get("retryable"))
    for field in ("message", "code", "type", "data"):
        assert getattr(error, field) == wire.get(field)


def chunk(data: Any) -> Any:
    return bytes(data["data"]) if isinstance(data, dict) and data.get("type") == "Buffer" else data


class Listening(Service):
    """Hears everything, as the group of its name."""

    name = "any"

    def __init__(self, group: str, heard: list[tuple[str, str, Any]]) -> None:
        self.name = group  # type: ignore[misc] # a service of its own for each group
        self.heard = heard

    @event("**")
    async def hear(self, ctx: Context) -> None:
        if not (ctx.event or "").startswith(("$node", "$services", "$broker", "$transporter")):
            self.heard.append((self.name, ctx.event or "", ctx.params))


@pytest.mark.parametrize("ver", VERSIONS)
async def test_c87_captured_events_are_heard_by_the_groups_they_name(
    ver: str, nats_url: str, namespace: str, tap: Tap
) -> None:
    heard: list[tuple[str, str, Any]] = []
    services = [Listening(group, heard) for group in EVENT_GROUPS]
    async with ServiceBroker(
        "node-b", namespace=namespace, transporter=nats_url, services=services, disable_balancer=True
    ):
        await tap.wait_for("INFO", sender="node-b")
        for topic, packet in lines(ver, "EVENT", "EVENTB"):
            heard.clear()
            await tap.publish(topic.replace("EVENT.node-c", "EVENT.node-b"), packet)
            await tap.settle("node-b", ver=ver)
            groups = set(packet.get("groups") or EVENT_GROUPS)
            assert sorted(group for group, *_ in heard) == sorted(groups)
            for _, name, data in heard:
                assert (name, data) == (packet["event"], packet["data"])
