"""The programs that the benchmark of calls compares, each a server or a caller in a process of its own.

    python -m tests.benchmarks.contenders floor server nats://127.0.0.1:4222
    python -m tests.benchmarks.contenders floor caller nats://127.0.0.1:4222

A caller reads lines of "CALLS AT_ONCE" from its stdin and answers each with a line of JSON: `rate` (calls a second),
`cpu_us` (of the caller's process, a call), `p50_ms` and `p99_ms`.
"""

import asyncio
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import anyio
import anyio.to_thread
import nats

from broker import Context, Service, ServiceBroker, action
from tests.benchmarks.floor import FloorCaller, serve

__all__ = ["JS_CALLER", "JS_SERVICE", "PARAMS", "Math", "timed"]

PARAMS = {"a": 5, "b": 3}

JS_SERVICE = """
broker.createService({
    name: "math",
    actions: { add: { params: { a: "number", b: "number" }, handler: ctx => ctx.params.a + ctx.params.b } },
});
"""

JS_CALLER = """
const took = [], started = performance.now(), used = process.cpuUsage();
let left = %(calls)d;
const one = async () => {
    while (left-- > 0) {
        const began = performance.now();
        await broker.call("math.add", %(params)s);
        took.push(performance.now() - began);
    }
};
await Promise.all(Array.from({ length: %(at_once)d }, one));
const wall = performance.now() - started, { user, system } = process.cpuUsage(used);
took.sort((a, b) => a - b);
return {
    rate: took.length / wall * 1000, cpu_us: (user + system) / took.length,
    p50_ms: took[Math.floor(took.length * 0.5)], p99_ms: took[Math.floor(took.length * 0.99)],
};
"""


class Math(Service):
    """What is called: two numbers are added."""

    name = "math"

    @action
    async def add(self, ctx: Context, a: int, b: int) -> int:
        return a + b


async def timed(call: Callable[[], Awaitable[Any]], calls: int, at_once: int) -> dict[str, float]:
    """Makes the calls, `at_once` of them open at any moment."""
    took: list[float] = []
    left = calls

    async def one() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            began = time.perf_counter()
            await call()
            took.append(time.perf_counter() - began)

    cpu, started = time.process_time(), time.perf_counter()
    await asyncio.gather(*[one() for _ in range(at_once)])
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    p99 = statistics.quantiles(took, n=100, method="inclusive")[98]
    return {
        "rate": calls / wall,
        "cpu_us": cpu / calls * 1e6,
        "p50_ms": statistics.median(took) * 1000,
        "p99_ms": p99 * 1000,
    }


async def _obey(call: Callable[[], Awaitable[Any]]) -> None:
    """Does what stdin says, to its end."""
    assert await call() == PARAMS["a"] + PARAMS["b"]
    print("ready", flush=True)
    while line := await anyio.to_thread.run_sync(sys.stdin.readline):
        calls, at_once = map(int, line.split())
        print(json.dumps(await timed(call, calls, at_once)), flush=True)


async def _floor_caller(url: str, *, direct: bool) -> None:
    client = await nats.connect(url)
    caller = FloorCaller(client)
    await caller.subscribe(direct=direct)
    await _obey(lambda: caller.call("math.add", PARAMS))


async def _our_caller(url: str, *, local: bool = False) -> None:
    options: dict[str, Any] = {} if local else {"transporter": url}
    services = [Math()] if local else []
    async with ServiceBroker("caller", services=services, heartbeat_timeout=3600, **options) as broker:
        await broker.wait_for_services("math")
        await _obey(lambda: broker.call("math.add", PARAMS))


async def _our_server(url: str) -> None:
    async with ServiceBroker("server", transporter=url, services=[Math()]):
        print("ready", flush=True)
        await asyncio.Event().wait()


async def _pylecular(url: str, role: str) -> None:
    from pylecular.broker import Broker
    from pylecular.decorators import action as their_action
    from pylecular.service import Service as TheirService
    from pylecular.settings import Settings

    class TheirMath(TheirService):  # type: ignore[misc] # pylecular has no types
        name = "math"

        def __init__(self) -> None:
            super().__init__(self.name)

        @their_action(params={"a": "number", "b": "number"})  # type: ignore[untyped-decorator] # nor here
        async def add(self, ctx: Any) -> int:
            return int(ctx.params["a"] + ctx.params["b"])

    broker = Broker(role, settings=Settings(transporter=url, log_level="ERROR"))
    if role == "server":
        await broker.register(TheirMath())
    async with AsyncExitStack() as stack:
        await broker.start()
        stack.push_async_callback(broker.stop)
        if role == "server":
            print("ready", flush=True)
            await asyncio.Event().wait()
        await broker.wait_for_services(["math"])
        await _obey(lambda: broker.call("math.add", PARAMS))


async def _run(kind: str, role: str, url: str) -> None:
    match kind, role:
        case "floor" | "nats-py", "server":
            await serve(url, direct=kind == "floor")
        case "floor" | "nats-py", "caller":
            await _floor_caller(url, direct=kind == "floor")
        case "ours", "server":
            await _our_server(url)
        case "ours", "caller":
            await _our_caller(url)
        case "local", "caller":
            await _our_caller(url, local=True)
        case "pylecular", _:
            await _pylecular(url, role)
        case _:
            raise SystemExit(f"There is no {role} of kind {kind!r}.")


if __name__ == "__main__":
    uvloop = importlib.util.find_spec("uvloop") is not None  # as the commands of the broker use it
    kind, role, url = sys.argv[1:]
    anyio.run(_run, kind, role, url, backend_options={"use_uvloop": uvloop})
