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
from typing import Any

import anyio

from broker import Context, Service, ServiceBroker, action
from tests.benchmarks.measure import temporary_nats

WARM_UP = 500
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
    async with ServiceBroker("server", namespace="profile", transporter=url, services=[Math()]) as broker:
        await broker.wait_stopped()


async def measure(url: str, calls: int, callers: int) -> dict[str, dict[str, Any]]:
    """The figures of both sides."""
    found: dict[str, dict[str, Any]] = {"caller": {}, "server": {}}
    meter = Meter()
    async with ServiceBroker("caller", namespace="profile", transporter=url) as broker:
        await broker.wait_for_services("math", timeout=20)
        await make_calls(broker.call, WARM_UP * callers, callers)
        for profiled in (False, True):
            await broker.call("math.begin", {"profiled": profiled})
            meter.begin(profiled=profiled)
            await make_calls(broker.call, calls * (1 if profiled else 10), callers)
            found["caller"] |= meter.end()
            found["server"] |= await broker.call("math.end")
    return found


def print_table(found: dict[str, dict[str, Any]], calls: int, top: int) -> None:
    print(f"{'side':<8} {'CPU':>9} {'functions':>10} {'Python':>8} {'ours':>6} {'our functions':>14} {'our files':>10}")
    ours: dict[str, list[list[Any]]] = {}
    for side, figures in found.items():
        rows = figures["rows"]
        python = [row for row in rows if row[0] != "~"]
        ours[side] = [row for row in python if "/broker/" in row[0] and "site-packages" not in row[0]]
        often = [row for row in ours[side] if row[3] / calls >= OFTEN]
        counts = (sum(row[3] for row in some) / calls for some in (rows, python, ours[side]))
        print(
            f"{side:<8} {figures['cpu'] / calls / 10 * 1e6:>6.1f} µs {next(counts):>10.1f} {next(counts):>8.1f} "
            f"{next(counts):>6.1f} {len(often):>14} {len({row[0] for row in often}):>10}"
        )
    for side, figures in found.items():
        for file, line, name, number in sorted(figures["rows"], key=lambda row: -row[3])[:top]:
            print(f"  {side:<8} {number / calls:>6.2f} {'/'.join(file.split('/')[-3:])}:{line} {name}")
    for side, rows in ours.items():
        for file, line, name, number in sorted(rows):
            if number / calls >= OFTEN:
                print(f"  {side:<8} {number / calls:>6.2f} broker/{file.rpartition('/broker/')[2]}:{line} {name}")


async def main(options: argparse.Namespace, arguments: list[str]) -> None:
    if options.serve:
        await serve(options.serve)
        return
    async with temporary_nats() as url:
        command = [sys.executable, "-m", "tests.benchmarks.profile_calls", *arguments, "--serve", url]
        server = await anyio.open_process(command, stdout=None, stderr=None)
        try:
            found = await measure(url, options.calls // options.callers * options.callers, options.callers)
        finally:
            server.terminate()
            await server.wait()
    print_table(found, options.calls // options.callers * options.callers, options.top)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--top", type=int, default=0)
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    anyio.run(main, parsed, sys.argv[1:], backend_options={"use_uvloop": parsed.loop == "uvloop"})
