"""Events per second that a node takes in, and the CPU that each costs, beside a JS node.

    python -m tests.benchmarks.events [--events 100000]

The handler does nothing but count. The packets are written to the NATS server at once; meanwhile another node calls the
one that takes them in, again and again.
"""

import argparse
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import repeat

import anyio

from broker import Context, Service, ServiceBroker, action, event
from tests.benchmarks.measure import cpu_seconds, temporary_nats
from tests.support.flood import publish_all
from tests.support.js_node import js_node
from tests.support.node import INTEROP, install_packages
from tests.support.processes import start_python

__all__ = ["Counting", "measure"]

JS_SERVICE = """
let seen = 0;
broker.createService({
    name: "counting",
    events: { "flood.one": { handler() { seen++; } } },
    actions: { seen: () => seen },
});
"""


class Counting(Service):
    name = "counting"
    count = 0

    @event("flood.one")
    async def on_flood(self, ctx: Context) -> None:
        self.count += 1

    @action
    async def seen(self, ctx: Context) -> int:
        return self.count


PACKET = {
    **{"id": "0b5c1a5e-6a1e-4a1f-a1c5-2d9d3d5c2d11", "event": "flood.one", "data": {"id": 1}, "groups": ["counting"]},
    **{"broadcast": False, "meta": {}, "headers": {}, "level": 1, "tracing": None, "parentID": None},
    **{"requestID": "0b5c1a5e-6a1e-4a1f-a1c5-2d9d3d5c2d11", "caller": None, "ver": "5", "sender": "caller"},
}


def flood(url: str, events: int) -> None:
    publish_all(url, "MOL.EVENT.taker", repeat(json.dumps(PACKET).encode(), events))


@asynccontextmanager
async def python_node(url: str) -> AsyncIterator[int]:
    arguments = ("-m", "broker", "run", "tests.benchmarks.events:Counting", "--nats-url", url)
    async with start_python(*arguments, "--node-id", "taker", warm=False) as process:
        yield process.pid


@asynccontextmanager
async def javascript_node(url: str) -> AsyncIterator[int]:
    async with js_node("0.15", url, "", "taker") as node:
        await node.command("run", code=JS_SERVICE)
        yield node.process.pid


async def measure(name: str, taker: Callable[[str], AbstractAsyncContextManager[int]], url: str, events: int) -> None:
    async with taker(url) as pid, ServiceBroker("caller", transporter=url, request_timeout=60) as caller:
        await caller.wait_for_services("counting")
        cpu, began = cpu_seconds(pid), time.perf_counter()
        slowest, seen = 0.0, 0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, flood, url, events)
            while seen < events:
                asked = time.perf_counter()
                seen = await caller.call("counting.seen")
                slowest = max(slowest, time.perf_counter() - asked)
                await anyio.sleep(0.02)
        cpu, seconds = cpu_seconds(pid) - cpu, time.perf_counter() - began
    print(
        f"  {name:<12} {events / seconds:>9,.0f} events/s   {cpu / events * 1e6:>6.1f} µs of CPU each   "
        f"calls meanwhile within {slowest:.2f} s"
    )


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    events = parser.parse_args().events
    install_packages(INTEROP)
    async with temporary_nats() as url:
        await measure("Python", python_node, url, events)
    async with temporary_nats() as url:
        await measure("JS 0.15", javascript_node, url, events)


if __name__ == "__main__":
    anyio.run(main)
