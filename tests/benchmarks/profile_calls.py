"""What a small call costs at the node that makes it and at the node that serves it: function calls and CPU time.

    python -m tests.benchmarks.profile_calls [--calls 2000] [--callers 32] [--top 0] [--loop uvloop]

Both nodes are processes of their own, warm, on a server of their own. CPU time is taken without the profiler, function
calls by cProfile, those of nats-py and asyncio included. `--top N` lists the N functions of each side that are called
most often for one call; functions of the broker are counted, with their files, below the table.
"""

import argparse
import asyncio
import cProfile
import pstats
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

import broker
from broker import Context, Service, ServiceBroker, action
from tests.benchmarks.measure import temporary_nats

CPU_CALLS = 10  # times as many calls as under the profiler
BROKER = str(Path(broker.__file__).parent)
PARAMS = {"a": 5, "b": 3}
OFTEN = 0.5  # a function called less often for one call belongs to something else, such as a heartbeat


class Meter:
    """Measures this process between `begin` and `end`."""

    def __init__(self) -> None:
        self._profile = cProfile.Profile()
        self._profiled = False
        self._cpu = 0.0

    def begin(self, *, profiled: bool) -> None:
        self._profiled, self._cpu = profiled, time.process_time()
        if profiled:
            self._profile.enable()

    def end(self) -> dict[str, Any]:
        cpu = time.process_time() - self._cpu
        if not self._profiled:
            return {"cpu": cpu}
        self._profile.disable()
        stats: Any = pstats.Stats(self._profile)
        rows = [[file, line, name, calls] for (file, line, name), (_, calls, *_) in stats.stats.items()]
        return {"rows": rows}


class Math(Service):
    name = "math"

    def __init__(self) -> None:
        super().__init__()
        self.meter = Meter()

    @action
    async def add(self, ctx: Context, a: int, b: int) -> dict[str, int]:
        return {"sum": a + b}

    @action
    async def begin(self, ctx: Context, profiled: bool) -> None:
        self.meter.begin(profiled=profiled)

    @action
    async def end(self, ctx: Context) -> dict[str, Any]:
        return self.meter.end()


async def make_calls(call: Callable[..., Awaitable[Any]], calls: int, callers: int) -> None:
    async def caller() -> None:
        for _ in range(calls // callers):
            await call("math.add", PARAMS)

    await asyncio.gather(*[caller() for _ in range(callers)])


async def serve(url: str) -> None:
    async with ServiceBroker("server", namespace="profile", transporter=url, services=[Math()]) as node:
        await node.wait_stopped()


@dataclass
class Side:
    """What one call costs at one of its ends."""

    name: str
    cpu_us: float
    functions: float
    """All that cProfile counts, those of C included."""
    python: float
    ours: dict[str, float]
    """The functions of the broker, by file, line and name, and how often each is entered."""

    @property
    def files(self) -> int:
        return len({place.partition(":")[0] for place in self.ours})


async def measure(url: str, calls: int, callers: int) -> list[dict[str, Any]]:
    """The figures of the caller and of the server."""
    caller: dict[str, Any] = {}
    server: dict[str, Any] = {}
    meter = Meter()
    async with ServiceBroker("caller", namespace="profile", transporter=url) as node:
        await node.wait_for_services("math", timeout=20)
        await make_calls(node.call, calls, callers)
        for profiled in (False, True):
            await node.call("math.begin", {"profiled": profiled})
            meter.begin(profiled=profiled)
            await make_calls(node.call, calls * (1 if profiled else CPU_CALLS), callers)
            caller |= meter.end()
            server |= await node.call("math.end")
    return [caller, server]


async def profile(calls: int, callers: int, loop: str = "asyncio") -> tuple[list[Side], list[dict[str, Any]]]:
    """Both sides, with the rows of their profiles."""
    calls = calls // callers * callers
    async with temporary_nats() as url:
        command = [sys.executable, "-m", "tests.benchmarks.profile_calls", "--serve", url, "--loop", loop]
        server = await anyio.open_process(command, stdout=None, stderr=None)
        try:
            found = await measure(url, calls, callers)
        finally:
            server.terminate()
            await server.wait()
    sides = []
    for name, figures in zip(("caller", "server"), found, strict=True):
        rows = figures["rows"]
        own = [
            row for row in rows if "/broker/" in row[0] and "site-packages" not in row[0] and "/tests/" not in row[0]
        ]
        sides.append(
            Side(
                name,
                figures["cpu"] / calls / CPU_CALLS * 1e6,
                sum(row[3] for row in rows) / calls,
                sum(row[3] for row in rows if row[0] != "~") / calls,
                {
                    f"broker{file.removeprefix(BROKER)}:{line} {function}": number / calls
                    for file, line, function, number in sorted(own)
                    if number / calls >= OFTEN
                },
            )
        )
    return sides, found


async def main(options: argparse.Namespace) -> None:
    if options.serve:
        await serve(options.serve)
        return
    sides, found = await profile(options.calls, options.callers, options.loop)
    print(f"{'side':<8} {'CPU':>9} {'functions':>10} {'Python':>8} {'our functions':>14} {'our files':>10}")
    for side in sides:
        print(
            f"{side.name:<8} {side.cpu_us:>6.1f} µs {side.functions:>10.1f} {side.python:>8.1f} "
            f"{len(side.ours):>14} {side.files:>10}"
        )
    for side, figures in zip(sides, found, strict=True):
        for file, line, name, number in sorted(figures["rows"], key=lambda row: -row[3])[: options.top]:
            print(f"  {side.name:<8} {number / options.calls:>6.2f} {'/'.join(file.split('/')[-3:])}:{line} {name}")
    for side in sides:
        for place, number in side.ours.items():
            print(f"  {side.name:<8} {number:>6.2f} {place}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--top", type=int, default=0)
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    anyio.run(main, parsed, backend_options={"use_uvloop": parsed.loop == "uvloop"})
