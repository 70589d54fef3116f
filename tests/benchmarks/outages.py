"""What the loss of a NATS server costs callers: Python nodes, and JS nodes beside them.

    python -m tests.benchmarks.outages [--json] [--only WORDS]

Two nodes of each kind, a caller and a callee, are connected to one server, which then goes away in one of several ways.
The caller makes 50 calls a second, each with a timeout of 5 s. `back` is how long no call succeeded, `failed` how many
of the calls failed, and `waited` the longest time that a call took that succeeded.
"""

import argparse
import json
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import anyio

from broker import Context, MoleculerError, Service, ServiceBroker, action
from tests.support.js_node import JsNode, js_node
from tests.support.nats_server import NatsServer, cluster_of
from tests.support.node import INTEROP, install_packages

__all__ = ["OUTAGES", "Outage", "Result", "measure"]

INTERVAL_S = 0.02
TIMEOUT_S = 5.0
BEFORE_S = 1.0
"""How long the load runs before the outage."""
JS_VERSION = "0.15"


class Call(NamedTuple):
    """Times in seconds since the load began."""

    began: float
    ended: float
    succeeded: bool


JS_LOAD = """
    const begin = Date.now(), calls = [], open = [];
    const since = () => (Date.now() - begin) / 1000;
    for (let at = 0; at < SECONDS; at += INTERVAL) {
        while (since() < at) await new Promise(resolve => setTimeout(resolve, 5));
        const started = since();
        const done = good => calls.push([started, since(), good]);
        open.push(broker.call("ACTION", {}, { timeout: TIMEOUT }).then(() => done(true), () => done(false)));
    }
    await Promise.all(open);
    return calls;
"""
JS_SERVICE = """broker.createService({ name: "NAME", actions: { now: () => "now" } });"""


class Answers(Service):
    name = "answers"

    def __init__(self) -> None:
        self.made = 0

    @action
    async def now(self, ctx: Context) -> str:
        self.made += 1
        return "now"


@dataclass(frozen=True)
class Outage:
    """How a server goes away: `end` takes the one that all nodes are connected to."""

    name: str
    servers: int
    seconds: float
    end: Callable[[NatsServer], Awaitable[None]]


@dataclass(frozen=True)
class Result:
    outage: str
    nodes: str
    calls: int
    failed: int
    back_s: float | None
    """None: not before the end of the load."""
    waited_s: float


async def _killed(server: NatsServer) -> None:
    server.kill()


async def _restarted(server: NatsServer) -> None:
    server.kill()
    await anyio.sleep(1)
    server.start()


async def _frozen(server: NatsServer) -> None:
    server.pause()


async def _lame_duck(server: NatsServer) -> None:
    server.lame_duck()


OUTAGES = (
    Outage("one server, killed and started again after 1 s", 1, 6, _restarted),
    Outage("one of two servers killed", 2, 8, _killed),
    Outage("one of three servers killed", 3, 8, _killed),
    Outage("one of three servers in lame duck mode", 3, 20, _lame_duck),
    Outage("one of three servers frozen", 3, 30, _frozen),
)


async def python_load(caller: ServiceBroker, action: str, seconds: float) -> list[Call]:
    """Call an action again and again, without waiting for its answers."""
    calls: list[Call] = []
    begin = anyio.current_time()

    async def call() -> None:
        began, succeeded = anyio.current_time() - begin, True
        try:
            await caller.call(action, timeout=TIMEOUT_S)
        except MoleculerError:
            succeeded = False
        calls.append(Call(began, anyio.current_time() - begin, succeeded))

    async with anyio.create_task_group() as tasks:
        while anyio.current_time() - begin < seconds:
            tasks.start_soon(call)
            await anyio.sleep(INTERVAL_S)
    return calls


async def js_load(caller: JsNode, action: str, seconds: float) -> list[Call]:
    """The same by a JS node."""
    code = JS_LOAD.replace("SECONDS", str(seconds)).replace("INTERVAL", str(INTERVAL_S)).replace("ACTION", action)
    return [Call(*call) for call in await caller.run(code.replace("TIMEOUT", str(TIMEOUT_S * 1000)))]


def result(outage: str, nodes: str, calls: list[Call], at: float) -> Result:
    """`at`: when the server went away."""
    good = [call for call in calls if call.succeeded]
    ends = sorted(call.ended for call in good)
    gaps = [later - max(earlier, at) for earlier, later in pairwise(ends) if later > at]
    came_back = ends and ends[-1] > max(call.began for call in calls) - 1
    return Result(
        outage=outage,
        nodes=nodes,
        calls=len(calls),
        failed=len(calls) - len(good),
        back_s=max(gaps, default=0.0) if came_back else None,
        waited_s=max((call.ended - call.began for call in good), default=0.0),
    )


async def measure(outage: Outage, kinds: Sequence[str] = ("Python", "JS")) -> list[Result]:
    """One outage, for nodes of these kinds at the same time."""
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {"lame_duck_duration": "30s", "lame_duck_grace_period": "1s"}
        servers = cluster_of(outage.servers, Path(folder), **settings)
        async with AsyncExitStack() as stack:
            for server in servers:  # so that the ports are known
                stack.enter_context(server)
            for server in servers[1:]:
                server.stop()
            urls = ",".join(server.url for server in servers)
            loads = [await LOADS[kind](stack, urls) for kind in kinds]
            for server in servers[1:]:
                server.start()
            await anyio.sleep(1)  # for the routes between them
            results: list[Result] = []

            async def run(kind: str, load: Callable[[float], Awaitable[list[Call]]]) -> None:
                results.append(result(outage.name, kind, await load(BEFORE_S + outage.seconds), BEFORE_S))

            async with anyio.create_task_group() as tasks:
                for kind, load in zip(kinds, loads, strict=True):
                    tasks.start_soon(run, kind, load)
                await anyio.sleep(BEFORE_S)
                await outage.end(servers[0])
    return sorted(results, key=lambda one: kinds.index(one.nodes))


async def python_nodes(stack: AsyncExitStack, urls: str) -> Callable[[float], Awaitable[list[Call]]]:
    """A caller and a callee; what makes the load."""
    callee = ServiceBroker("callee", namespace="python", transporter=urls, services=[Answers()])
    caller = ServiceBroker("caller", namespace="python", transporter=urls)
    for broker in (callee, caller):
        await stack.enter_async_context(broker)
    await caller.wait_for_services("answers", timeout=30)
    return lambda seconds: python_load(caller, "answers.now", seconds)


async def js_nodes(stack: AsyncExitStack, urls: str) -> Callable[[float], Awaitable[list[Call]]]:
    install_packages(INTEROP)
    callee, caller = [
        await stack.enter_async_context(js_node(JS_VERSION, urls, "js", node_id)) for node_id in ("callee", "caller")
    ]
    await callee.run(JS_SERVICE.replace("NAME", "answers"))
    await caller.wait_for_services("answers")
    return lambda seconds: js_load(caller, "answers.now", seconds)


LOADS = {"Python": python_nodes, "JS": js_nodes}


def line(one: Result) -> str:
    back = "   never back" if one.back_s is None else f"back after {one.back_s:5.2f} s"
    return (
        f"  {one.outage:<48} {one.nodes:<7} {back:<18}   failed {one.failed:>5} of {one.calls:<5}"
        f"   waited {one.waited_s:.2f} s"
    )


async def main(only: str, as_json: bool) -> None:
    for outage in OUTAGES:
        if only in outage.name:
            for one in await measure(outage):
                print(json.dumps(asdict(one)) if as_json else line(one), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", default="", metavar="WORDS", help="only the outages whose names contain this")
    given = parser.parse_args()
    anyio.run(main, given.only, given.json)
