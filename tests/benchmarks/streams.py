"""Bytes from a JS node through a transform and back: how fast, what CPU time, and how far the transform falls behind.

The transform runs in a Python node, and in another JS node to compare with.

    python -m tests.benchmarks.streams [--megabytes 100]

A JS node cannot be slowed down (README, Limits). What the Python node has not read yet waits at the NATS server, which
ends the connection of a node that is 64 MiB behind: 18 MB of a stream, as JSON has some 3.6 bytes for one.
"""

import argparse
import json
import os
import re
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio

from tests.interop.test_streams import JS_CALLER
from tests.support.js_node import VERSIONS, js_node
from tests.support.nats_server import NatsServer
from tests.support.node import INTEROP, install_packages
from tests.support.processes import start_python

__all__ = ["measure"]

DEADLINE_S = 300
SERVER: dict[str, str | int | bool] = {"http": "127.0.0.1:-1", "max_pending": "1GB"}
"""A JS node sends as fast as it can: more may wait for its reader than the 64 MB that a server holds by default."""
LOOK_S = 0.02
_MONITOR = re.compile(r"Starting http monitor on (\S+)")


class Backlog:
    """The most bytes that ever waited at a server for a node."""

    def __init__(self, server: NatsServer, name: str) -> None:
        monitor = _MONITOR.search(server.log())
        assert monitor is not None, server.log()
        self._url = f"http://{monitor[1]}/connz"
        self._name = name
        self.peak = 0

    def look(self) -> None:
        with urllib.request.urlopen(self._url) as answer:
            connections = json.load(answer)["connections"]
        waiting = [connection["pending_bytes"] for connection in connections if connection.get("name") == self._name]
        self.peak = max([self.peak, *waiting])

    async def watch(self) -> None:
        while True:
            await anyio.to_thread.run_sync(self.look)
            await anyio.sleep(LOOK_S)


JS_TRANSFORM = """
const { Transform } = process.getBuiltinModule("node:stream");
broker.createService({ name: "jsinvert", actions: { invert: ctx => (ctx.stream || ctx.params).pipe(new Transform({
    transform(chunk, _, done) {
        const inverted = Buffer.allocUnsafe(chunk.length);
        for (let i = 0; i < chunk.length; i++) inverted[i] = 255 - chunk[i];
        done(null, inverted);
    }
})) } });
"""


@dataclass(frozen=True)
class Measured:
    """What a transform took."""

    seconds: float
    cpu_s: float
    behind: int
    memory_kb: int


async def measure(version: str, size: int, server: NatsServer) -> None:
    """Send so many bytes through each transform; print rate, CPU time, backlog and memory."""
    megabytes = size / 1e6
    print(f"JS {version}, {megabytes:,.0f} MB through a transform:")
    for transform in (python_transform, js_transform):
        async with transform(version, server.url, f"bench-{version}") as (name, action, pid):
            took = await _through(version, server, action, pid, size)
        behind = f"   {took.behind / 1e6:.1f} MB behind" if name == "Python" else ""  # no other connection has a name
        print(
            f"  {name:<7} {megabytes / took.seconds:>6.1f} MB/s   {took.cpu_s:>6.2f} s of CPU   "
            f"{took.memory_kb // 1000} MB memory{behind}"
        )


@asynccontextmanager
async def python_transform(version: str, url: str, namespace: str) -> AsyncIterator[tuple[str, str, int]]:
    arguments = ("-m", "broker", "run", "tests.interop.test_streams:Streams", "--nats-url", url)
    async with start_python(*arguments, "--namespace", namespace, "--node-id", "transform", warm=False) as process:
        yield "Python", "pystream.invert", process.pid


@asynccontextmanager
async def js_transform(version: str, url: str, namespace: str) -> AsyncIterator[tuple[str, str, int]]:
    async with js_node(version, url, namespace, "transform") as js:
        await js.run(JS_TRANSFORM)
        yield "JS", "jsinvert.invert", js.process.pid


async def _through(version: str, server: NatsServer, action: str, pid: int, size: int) -> Measured:
    given = json.dumps({"action": action, "size": size})
    code = JS_CALLER.replace("GIVEN", given).replace("VERSION", json.dumps(version))
    namespace = f"bench-{version}"
    async with js_node(version, server.url, namespace, "js") as js:
        await js.wait_for_services(action.partition(".")[0], deadline_s=DEADLINE_S)
        backlog = Backlog(server, "transform")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(backlog.watch)
            started, cpu_s = time.perf_counter(), _cpu_s(pid)
            answer = await js.command("run", code=code, deadline_s=DEADLINE_S)
            seconds, cpu_s = time.perf_counter() - started, _cpu_s(pid) - cpu_s
            tasks.cancel_scope.cancel()
        peak = re.search(r"VmHWM:\s+(\d+) kB", await anyio.Path(f"/proc/{pid}/status").read_text())
    assert answer["size"] == size, answer
    assert peak is not None
    return Measured(seconds, cpu_s, backlog.peak, int(peak[1]))


def _cpu_s(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=100)
    size = parser.parse_args().megabytes * 1_000_000
    install_packages(INTEROP)
    with tempfile.TemporaryDirectory() as folder, NatsServer(Path(folder) / "nats", **SERVER) as server:
        for version in VERSIONS:
            await measure(version, size, server)


if __name__ == "__main__":
    anyio.run(main)
