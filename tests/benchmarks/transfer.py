"""Import and export of 100,000 documents, and of a tenth of them: how fast, and whether more take more memory.

    python -m tests.benchmarks.transfer [--documents 100000] [--only SQLite|PostgreSQL]

Each is the command of its name in a process of its own, and the action of its name asked of a service in a process of
its own, over NATS; the process tells the most memory it ever had.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio

from broker import ServiceBroker
from tests.benchmarks.measure import temporary_nats
from tests.support.postgres import PostgresDatabase, PostgresServer
from tests.support.processes import REPOSITORY
from tests.support.store_node import store_process

__all__ = ["measure", "measure_actions"]

DOCUMENTS = 100_000
DOCUMENT_BYTES = 1_000
PIECE_BYTES = 65_536
CALL_TIMEOUT_S = 600.0
# The kernel's own account of this program alone: what wait() tells counts the process that started it too.
_MEASURED = """
import sys
from services.environments_store.__main__ import main
try:
    main()
finally:
    status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
    print("peak", status["VmHWM"].split()[0], file=sys.stderr)
"""


def given(folder: Path, documents: int) -> Path:
    """A file of documents alone, as somebody might have collected them: an import needs no more."""
    file = folder / f"given-{documents}.ndjson"
    if file.exists():
        return file
    route = {"method": "get", "endpoint": "users/:id", "responses": [{"statusCode": 200, "body": '{"name": "é"}'}]}
    routes = json.dumps([route] * (DOCUMENT_BYTES // len(json.dumps(route))))
    with file.open("w") as lines:
        for number in range(documents):
            lines.write(f'{{"environment": {{"uuid": "environment-{number}", "routes": {routes}}}}}\n')
    return file


def measure(name: str, url: str, documents: int, folder: Path) -> None:
    """Import so many documents into an empty database and export them again; print rate and memory of each."""
    taken = folder / f"{name}-{documents}.ndjson"
    source = given(folder, documents)
    _run(url, "migrate", "run")
    print(f"{name}, {documents:,} documents of {DOCUMENT_BYTES:,} bytes:")
    for command, file in (("import", source), ("export", taken)):
        seconds, kilobytes = _run(url, command, str(file))
        _show(command, documents / seconds, kilobytes)
    with taken.open("rb") as lines:
        assert sum(1 for _ in lines) == documents


async def measure_actions(url: str, documents: int, source: Path) -> None:
    """The same through the actions of a running service, whose table is empty."""

    async def pieces() -> AsyncIterator[bytes]:
        async with await anyio.open_file(source, "rb") as file:
            while piece := await file.read(PIECE_BYTES):
                yield piece

    async with (
        temporary_nats() as nats_url,
        store_process(url, nats_url, "transfer", "store", warm=False) as process,
        ServiceBroker("caller", namespace="transfer", transporter=nats_url) as broker,
    ):
        await broker.wait_for_services("environments-store")
        started = time.perf_counter()
        await broker.call("environments-store.import", stream=pieces(), timeout=CALL_TIMEOUT_S)
        _show("import, the action", documents / (time.perf_counter() - started), _peak_of(process.pid))
        started, lines = time.perf_counter(), 0
        async for piece in await broker.call("environments-store.export", timeout=CALL_TIMEOUT_S):
            lines += piece.count(b"\n")
        _show("export, the action", documents / (time.perf_counter() - started), _peak_of(process.pid))
    assert lines == documents


def _show(what: str, rate: float, kilobytes: int) -> None:
    print(f"  {what:<34} {rate:>9,.0f} documents/s   {kilobytes / 1024:>7.1f} MiB at most", flush=True)


def _peak_of(pid: int) -> int:
    """The most kilobytes that a process had until now."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _run(url: str, *arguments: str) -> tuple[float, int]:
    """How many seconds the command took, start included, and how many kilobytes it had at most."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, *arguments],
        env={**os.environ, "DATABASE_URL": url, "LOG_LEVEL": "error"},
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed: {done.stderr}")
    return seconds, int(done.stderr.split()[-1])


def main(documents: int, only: str | None) -> None:
    with tempfile.TemporaryDirectory() as name, PostgresServer() as server:
        folder = Path(name)
        for count in (max(documents // 10, 1), documents):
            if only != "PostgreSQL":
                measure("SQLite", f"sqlite:///{folder / f'{count}.sqlite'}", count, folder)
                anyio.run(
                    measure_actions, f"sqlite:///{folder / f'actions-{count}.sqlite'}", count, given(folder, count)
                )
            if only != "SQLite":
                measure("PostgreSQL", PostgresDatabase(server).url, count, folder)
                anyio.run(measure_actions, PostgresDatabase(server).url, count, given(folder, count))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=DOCUMENTS)
    parser.add_argument("--only", choices=("SQLite", "PostgreSQL"))
    options = parser.parse_args()
    main(options.documents, options.only)
