"""Bytes from a JS node through a Python transform and back: how fast, and how far the transform falls behind.

    python -m tests.benchmarks.streams [--megabytes 100]

A JS node cannot be slowed down (README, Limits). What the Python node has not read yet waits at the NATS server, which
ends the connection of a node that is 64 MiB behind: 18 MB of a stream, as JSON has some 3.6 bytes for one.
"""

import argparse
import json
import re
import tempfile
import time
import urllib.request
from pathlib import Path

import anyio

from tests.interop.test_streams import JS_CALLER
from tests.support.js_node import VERSIONS, js_node
from tests.support.nats_server import NatsServer
from tests.support.node import INTEROP, install_packages
from tests.support.processes import start_python

__all__ = ["measure"]

DEADLINE_S = 300
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


async def measure(version: str, size: int, server: NatsServer) -> None:
    """Send so many bytes through the transform; print rate, backlog and memory."""
    url, namespace = server.url, f"bench-{version}"
    given = json.dumps({"action": "pystream.invert", "size": size})
    code = JS_CALLER.replace("GIVEN", given).replace("VERSION", json.dumps(version))
    arguments = ("-m", "broker", "run", "tests.interop.test_streams:Streams", "--nats-url", url)
    async with (
        start_python(*arguments, "--namespace", namespace, "--node-id", namespace, warm=False) as process,
        js_node(version, url, namespace, "js") as js,
    ):
        await js.wait_for_services("pystream", deadline_s=DEADLINE_S)
        backlog = Backlog(server, namespace)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(backlog.watch)
            started = time.perf_counter()
            answer = await js.command("run", code=code, deadline_s=DEADLINE_S)
            seconds = time.perf_counter() - started
            tasks.cancel_scope.cancel()
        peak = re.search(r"VmHWM:\s+(\d+) kB", await anyio.Path(f"/proc/{process.pid}/status").read_text())
    assert answer["size"] == size, answer
    assert peak is not None
    megabytes = size / 1e6
    print(f"JS {version}, {megabytes:,.0f} MB through a Python transform:")
    print(f"  {megabytes / seconds:>9.1f} MB/s   {backlog.peak / 1e6:.1f} MB behind   {int(peak[1]) // 1000} MB memory")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=100)
    size = parser.parse_args().megabytes * 1_000_000
    install_packages(INTEROP)
    with tempfile.TemporaryDirectory() as folder, NatsServer(Path(folder) / "nats", http="127.0.0.1:-1") as server:
        for version in VERSIONS:
            await measure(version, size, server)


if __name__ == "__main__":
    anyio.run(main)
