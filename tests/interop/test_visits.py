"""The commands of `broker` in clusters of JS nodes see every node, and leave at most one line in a JS log."""

import json
import re
import signal
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import anyio
import pytest

from broker import ServiceBroker
from tests.interop.services import PythonMath
from tests.support.js_node import JsNode, js_node
from tests.support.processes import Process, run_python, start_python
from tests.support.tap import open_tap
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

NAMES = {"0.14": "old", "0.15": "new"}
SHAPES = {
    "0.14 and Python": (["0.14"], True),
    "0.15 and Python": (["0.15"], True),
    "0.14, 0.15 and Python": (["0.14", "0.15"], True),
    "0.14 and 0.15": (["0.14", "0.15"], False),
}


with_and_without_python = pytest.mark.parametrize(
    "visited",
    [
        *("0.14, 0.15 and Python", "0.14 and 0.15"),
        *(pytest.param(f"{version} and Python", marks=pytest.mark.long) for version in NAMES),
    ],
    indirect=True,
)
"""For what depends on whether a Python node can say whom it knows, and not on the versions."""


@dataclass(frozen=True)
class Visited:
    """A cluster, and a way to run commands in it."""

    js: dict[str, JsNode]
    """By node id."""
    python: ServiceBroker | None
    environment: dict[str, str]

    @property
    def names(self) -> list[str]:
        return sorted([*self.js, *(["py"] if self.python else [])])

    def command(self, *arguments: str) -> tuple[str, ...]:
        return ("-m", "broker", *arguments)

    async def run(self, *arguments: str) -> Process:
        return await run_python(*self.command(*arguments), environment=self.environment)

    def visitors_in(self, name: str) -> list[str]:
        """The lines of a JS node about nodes other than these."""
        lines = self.js[name].logged("warn", "error", "fatal")
        named = [re.search(r"sender: '([^']+)'|from '([^']+)'", line) for line in lines]
        return [line for line, match in zip(lines, named, strict=True) if not match or match[1] not in self.names]


@pytest.fixture(scope="module", params=SHAPES)
async def visited(request: pytest.FixtureRequest, nats_url: str, js_modules: object) -> AsyncIterator[Visited]:
    versions, with_python = SHAPES[request.param]
    namespace = f"visits-{uuid.uuid4().hex[:12]}"
    quick = {"heartbeatInterval": 1}
    async with AsyncExitStack() as stack:
        js = {
            NAMES[version]: await stack.enter_async_context(
                js_node(version, nats_url, namespace, NAMES[version], **quick)
            )
            for version in versions
        }
        for name, node in js.items():
            await node.create_service("echo", version=name)
            await node.create_service("recorder", name=f"recorder-{name}", patterns=["visit.*"])
        python = None
        if with_python:
            options: dict[str, Any] = {"namespace": namespace, "transporter": nats_url, "heartbeat_interval": 1}
            python = await stack.enter_async_context(ServiceBroker("py", services=[PythonMath()], **options))
            for node in js.values():
                await node.wait_for_services("pymath")
            await eventually(lambda: set(python.registry.nodes) == {*js, "py"} and python._node.joining)
            joining = python._node.joining
            assert joining is not None
            await eventually(lambda: joining._answering, "the node to answer whom it knows")
        yield Visited(js, python, {"NATS_URL": nats_url, "NAMESPACE": namespace})


def result(process: Process) -> Any:
    assert process.returncode == 0, process.report("failed")
    assert process.stderr == [], "as a tool that found all it looked for"
    return json.loads(process.stdout[0])


async def test_every_command_sees_every_node_and_leaves_at_most_one_line_in_a_js_log(visited: Visited) -> None:
    commands = {
        "nodes": ["nodes"],
        "services": ["services"],
        "actions": ["actions"],
        "ping": ["ping"],
        "emit": ["emit", "visit.emit"],
        "broadcast": ["broadcast", "visit.broadcast", '{"a": 1}'],
        **{f"call {name}": ["call", f"{name}.echo.params", '{"a": 1}'] for name in visited.js},
        **{f"ping {name}": ["ping", name] for name in visited.js},
    }
    before = {name: len(visited.visitors_in(name)) for name in visited.js}
    results: dict[str, Any] = {}

    async def run(name: str) -> None:
        results[name] = result(await visited.run(*commands[name]))

    async with anyio.create_task_group() as tasks:
        for name in commands:
            tasks.start_soon(run, name)
    assert [row["id"] for row in results["nodes"]] == visited.names
    assert all(row["available"] for row in results["nodes"])
    names = {row["name"]: row["nodes"] for row in results["services"]}
    assert names.items() >= {f"{name}.echo": [name] for name in visited.js}.items()
    assert {f"{name}.echo.params" for name in visited.js} <= {row["name"] for row in results["actions"]}
    assert [(row["node"], row["alive"]) for row in results["ping"]] == [(name, True) for name in visited.names]
    groups = [{"group": f"recorder-{name}", "nodes": [name]} for name in sorted(visited.js)]
    assert results["emit"] == results["broadcast"] == groups
    for name, node in visited.js.items():
        assert results[f"call {name}"] == {"a": 1}
        assert [row["alive"] for row in results[f"ping {name}"]] == [True]
        for event in ("emit", "broadcast"):
            await node.recorded(f"visit.{event}")
        allowed = 0 if visited.python else len(commands)
        assert len(visited.visitors_in(name)) - before[name] <= allowed
        assert set(await node.nodes()) == {name, *(["py"] if visited.python else [])}, "no node joined"


async def test_listening_leaves_a_log_line_only_in_a_cluster_of_both_versions(visited: Visited) -> None:
    """Apart from lines about its heartbeats, which every node causes."""
    before = {name: len(visited.visitors_in(name)) for name in visited.js}
    listen = visited.command("listen", "visit.*", "--count", str(len(visited.names)))
    environment = {**visited.environment, "BROKER_HEARTBEAT_INTERVAL": "60"}
    async with start_python(*listen, environment=environment) as process:
        await process.line("Listening")
        for node in visited.js.values():
            await node.broadcast("visit.event", node.node_id)
        if visited.python:
            await visited.python.broadcast("visit.event", "py")
        assert await process.wait() == 0, process.report("failed")
    received = [json.loads(line) for line in process.stdout]
    assert sorted((event["sender"], event["payload"]) for event in received) == [(name, name) for name in visited.names]
    (visitor,) = {node for name in visited.js for node in await gone(visited.js[name])}
    for name in visited.js:
        asked, left = 0 if visited.python else 1, len(visited.js) - 1
        assert len(visited.visitors_in(name)) - before[name] <= asked + left
    if visited.python:
        await eventually(lambda: not visited.python.registry.nodes[visitor].available, "the DISCONNECT")  # type: ignore[union-attr]


async def gone(node: JsNode) -> list[str]:
    """The node whose DISCONNECT this one has received."""
    return [(await node.local_event("$node.disconnected"))["node"]]


async def test_a_call_to_one_node_reaches_no_other(visited: Visited) -> None:
    """Like the call of the image's health check."""
    target, action = ("py", "pymath.add") if visited.python else ("old", "old.echo.params")
    async with open_tap(visited.environment["NATS_URL"], visited.environment["NAMESPACE"]) as tap:
        mark = await tap.mark()
        assert result(await visited.run("call", action, "-p", "a=1", "--node", target)) in (2, {"a": 1})
        await tap.catch_up()
        sent = {seen.topic for seen in tap.seen[mark:] if seen.packet.get("sender") not in visited.names}
    others = sent - {"PEERS", f"DISCOVER.{target}", f"REQ.{target}"}
    assert {topic.split(".")[0] for topic in others} <= {"PING", "REPLY"}, "the id probe, and packets to itself"
    assert not [topic for topic in others for name in visited.names if topic.endswith(f".{name}")]


@with_and_without_python
async def test_an_unknown_node_is_reported_with_a_similar_name(visited: Visited) -> None:
    name = next(iter(visited.js))
    before = len(visited.visitors_in(name))
    for arguments in (["ping", f"{name}x"], ["call", f"{name}.echo.params", "--node", f"{name}x"]):
        process = await visited.run(*arguments)
        assert process.returncode == 1
        assert process.stdout == []
        hint = f" Did you mean {name}?" if visited.python else ""
        assert process.stderr[0] == f"Error: MoleculerError 404 NODE_NOT_FOUND: There is no node '{name}x'.{hint}"
    assert len(visited.visitors_in(name)) == before


@with_and_without_python
async def test_a_node_that_does_not_answer_is_not_reported_as_missing(visited: Visited) -> None:
    name, node = next(iter(visited.js.items()))
    node.process.send_signal(signal.SIGSTOP)
    try:
        listed = result(await visited.run("nodes"))
        pinged = await visited.run("ping", name, "--timeout", "0.1")
        called = await visited.run("call", f"{name}.echo.params", "--node", name)
    finally:
        node.process.send_signal(signal.SIGCONT)
    if visited.python:
        assert [row["available"] for row in listed if row["id"] == name] == [False]
    assert (pinged.returncode, [row["alive"] for row in json.loads(pinged.stdout[0])]) == (1, [False])
    assert called.returncode == 1
    assert f"The node '{name}' did not say what it offers" in called.stderr[0]


@with_and_without_python
async def test_an_unknown_action_is_reported_with_a_similar_name(visited: Visited) -> None:
    name = next(iter(visited.js))
    process = await visited.run("call", f"{name}.echo.param", '{"a": 1}')
    assert process.returncode == 1
    assert f"Did you mean {name}.echo.params" in process.stderr[0]
