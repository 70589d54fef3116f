"""Small typed calls from one node to another, beside the least that they can cost and beside other nodes.

    python -m tests.benchmarks.calls [--calls 20000] [--rounds 5] [--json FILE] [--plots FOLDER]

Each contender is a server and a caller in processes of their own, over a NATS server of this machine. In each round
every contender makes the same calls, one after the other, so that a busy moment of the machine hits all; a figure is
the median of the rounds. `floor` is nats-py and msgspec without a node (`tests.benchmarks.floor`), `nats-py` the same
by ordinary subscriptions. CPU is that of the server and of the caller, in microseconds a call. `local` calls stay in
one process. pylecular takes part where it is installed, and uvloop is used where it is. Plots need pygal:
`pip install '.[bench]'`.
"""

import argparse
import contextlib
import importlib.util
import json
import platform
import statistics
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import anyio
import nats

from tests.benchmarks.contenders import JS_CALLER, JS_SERVICE, PARAMS
from tests.benchmarks.measure import cpu_seconds, temporary_nats
from tests.support.js_node import JsNode, js_node
from tests.support.node import INTEROP, install_packages
from tests.support.processes import Process, start_python

AT_ONCE = (1, 32, 128)
NODES, SERVICES = 200, 50

Round = dict[str, float]


class Contender(Protocol):
    """A server and a caller that are running."""

    name: str
    server_pid: int | None

    async def make(self, calls: int, at_once: int) -> Round: ...


@dataclass
class PythonPair:
    name: str
    server_pid: int | None
    caller: Process

    async def make(self, calls: int, at_once: int) -> Round:
        seen = len(self.caller.lines)
        await self.caller.write_line(f"{calls} {at_once}")
        line = await self.caller.line('{"rate"', after=seen, deadline_s=300)
        measured: Round = json.loads(line)
        return measured


@dataclass
class JavaScriptPair:
    name: str
    server_pid: int | None
    caller: JsNode

    async def make(self, calls: int, at_once: int) -> Round:
        code = JS_CALLER % {"calls": calls, "at_once": at_once, "params": json.dumps(PARAMS)}
        measured: Round = await self.caller.command("run", code=code, deadline_s=300)
        return measured


@asynccontextmanager
async def python_pair(name: str, kind: str, url: str, *, server: str | None = None) -> AsyncIterator[PythonPair]:
    """`server` is the kind of the server; None for a contender that calls itself."""
    async with AsyncExitStack() as stack:
        pid = None
        if server is not None:
            process = await stack.enter_async_context(_program(server, "server", url))
            pid = process.pid
        caller = await stack.enter_async_context(_program(kind, "caller", url))
        yield PythonPair(name, pid, caller)


@asynccontextmanager
async def _program(kind: str, role: str, url: str) -> AsyncIterator[Process]:
    async with start_python("-m", "tests.benchmarks.contenders", kind, role, url) as process:
        await process.line("ready", deadline_s=60)
        yield process


@asynccontextmanager
async def javascript_pair(name: str, url: str, *, local: bool = False) -> AsyncIterator[JavaScriptPair]:
    async with js_node("0.15", url, "js-local" if local else "js", "caller") as caller, AsyncExitStack() as stack:
        server = caller if local else await stack.enter_async_context(js_node("0.15", url, "js", "server"))
        await server.command("run", code=JS_SERVICE)
        await caller.wait_for_services("math")
        yield JavaScriptPair(name, None if local else server.process.pid, caller)


async def introduce_nodes(url: str, nodes: int, services: int) -> None:
    """Make the nodes of a cluster know as many more, each with services of its own."""
    client = await nats.connect(url)
    for number in range(nodes):
        names = [f"service{number}x{one}" for one in range(services)]
        actions = [{f"{name}.act": {"name": f"{name}.act", "rawName": "act"}} for name in names]
        offered = [
            {"name": name, "fullName": name, "settings": {}, "metadata": {}, "actions": action, "events": {}}
            for name, action in zip(names, actions, strict=True)
        ]
        info = {
            **{"ver": "5", "sender": f"known-{number}", "services": offered, "ipList": [], "hostname": "h", "seq": 1},
            **{"config": {}, "metadata": {}, "instanceID": f"i{number}", "client": {"type": "nodejs", "version": "0"}},
        }
        await client.publish("MOL.INFO", json.dumps(info).encode())
    await client.flush()
    await client.close()


async def measure(
    contenders: Sequence[Contender], at_once: int, *, calls: int, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """All figures of each contender in each round."""
    results: dict[str, dict[str, list[float]]] = {one.name: {} for one in contenders}
    for one in contenders:  # warm up
        await one.make(max(calls // 10, 100), at_once)
    for _ in range(rounds):
        for one in contenders:
            number = calls if at_once > 1 else max(calls // 5, 100)
            before = cpu_seconds(one.server_pid) if one.server_pid else 0.0
            figures = await one.make(number, at_once)
            if one.server_pid:
                figures["server_us"] = (cpu_seconds(one.server_pid) - before) / number * 1e6
            for key, value in figures.items():
                results[one.name].setdefault(key, []).append(value)
    return results


def table(at_once: int, results: dict[str, dict[str, list[float]]]) -> str:
    heading = f"{at_once} call{'s' * (at_once > 1)} at once"
    columns = f"{'calls/s':>9} {'× JS':>6} {'server µs':>10} {'caller µs':>10} {'p50 ms':>8} {'p99 ms':>8}"
    lines = [f"{heading:<22} {columns}"]
    medians = {name: {key: statistics.median(value) for key, value in one.items()} for name, one in results.items()}
    js = medians.get("JS 0.15", {}).get("rate")
    for name, one in medians.items():
        ratio = f"{one['rate'] / js:.2f}" if js else ""
        server = f"{one['server_us']:.1f}" if "server_us" in one else ""
        lines.append(
            f"  {name:<20} {one['rate']:>9,.0f} {ratio:>6} {server:>10} {one['cpu_us']:>10.1f}"
            f" {one['p50_ms']:>8.2f} {one['p99_ms']:>8.2f}"
        )
    return "\n".join(lines)


async def _import_ms() -> float:
    """What `import broker` adds to the start of Python."""
    code = "import time; began = time.perf_counter(); import broker; print((time.perf_counter() - began) * 1000)"
    times = []
    for _ in range(5):
        async with start_python("-c", code) as process:
            await process.wait()
            times.append(float(process.stdout[0]))
    return statistics.median(times)


def memory_mib(pid: int) -> float:
    """What a process holds of the machine's memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"The process {pid} has no memory.")


def plot(results: dict[int, dict[str, dict[str, list[float]]]], folder: Path) -> None:
    """One picture of calls/s and one of latencies over the callers at once, as SVG."""
    import pygal  # the extra `bench`

    folder.mkdir(parents=True, exist_ok=True)
    for name, keys, title in (
        ("calls-rate.svg", ("rate",), "calls/s"),
        ("calls-latency.svg", ("p50_ms", "p99_ms"), "milliseconds, p50 and p99"),
    ):
        chart = pygal.Line(title=title, x_title="calls at once", logarithmic=True)
        chart.x_labels = [str(at_once) for at_once in results]
        for contender in next(iter(results.values())):
            for key in keys:
                label = contender if len(keys) == 1 else f"{contender} {key.removesuffix('_ms')}"
                chart.add(label, [statistics.median(one[contender][key]) for one in results.values()])
        (folder / name).write_bytes(chart.render())


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plots", type=Path)
    given = parser.parse_args()
    install_packages(INTEROP)
    results: dict[int, dict[str, dict[str, list[float]]]] = {}
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        url, crowded = await enter(temporary_nats()), await enter(temporary_nats())
        ours = await enter(python_pair("ours", "ours", url, server="ours"))
        many = await enter(python_pair(f"ours, {NODES} nodes known", "ours", crowded, server="ours"))
        await introduce_nodes(crowded, NODES, SERVICES)
        contenders: list[Contender] = [
            await enter(python_pair("floor", "floor", url, server="floor")),
            await enter(python_pair("nats-py", "nats-py", await enter(temporary_nats()), server="nats-py")),
            ours,
            many,
            await enter(javascript_pair("JS 0.15", url)),
        ]
        if importlib.util.find_spec("pylecular") is not None:
            other = await enter(temporary_nats())
            contenders.append(await enter(python_pair("pylecular", "pylecular", other, server="pylecular")))
        contenders.append(await enter(python_pair("ours, local", "local", url)))
        contenders.append(await enter(javascript_pair("JS 0.15, local", url, local=True)))
        assert ours.server_pid is not None
        loop = "uvloop" if importlib.util.find_spec("uvloop") else "asyncio"
        print(
            f"Python {platform.python_version()} ({loop}), {platform.machine()}; {given.rounds} × {given.calls} calls"
        )
        print(f"import broker: {await _import_ms():.0f} ms   an idle node: {memory_mib(ours.server_pid):.1f} MiB")
        for at_once in AT_ONCE:
            results[at_once] = await measure(contenders, at_once, calls=given.calls, rounds=given.rounds)
            print(table(at_once, results[at_once]), flush=True)
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")
    if given.plots:
        plot(results, given.plots)


if __name__ == "__main__":
    sys.exit(anyio.run(main))
