"""Import and export of 100,000 documents, and of a tenth of them: how fast, and whether more take more memory.

    python -m tests.benchmarks.transfer [--documents 100000] [--only SQLite|PostgreSQL]

Each is the command of its name in a process of its own, which tells the most memory it ever had.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.postgres import PostgresDatabase, PostgresServer
from tests.support.processes import REPOSITORY

__all__ = ["measure"]

DOCUMENTS = 100_000
DOCUMENT_BYTES = 1_000
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


def write_lines(file: Path, documents: int) -> None:
    """Documents alone, as somebody might have collected them: an import needs no more."""
    route = {"method": "get", "endpoint": "users/:id", "responses": [{"statusCode": 200, "body": '{"name": "é"}'}]}
    routes = json.dumps([route] * (DOCUMENT_BYTES // len(json.dumps(route))))
    with file.open("w") as lines:
        for number in range(documents):
            lines.write(f'{{"environment": {{"uuid": "environment-{number}", "routes": {routes}}}}}\n')


def measure(name: str, url: str, documents: int, folder: Path) -> None:
    """Import so many documents into an empty database and export them again; print rate and memory of each."""
    given, taken = folder / f"given-{documents}.ndjson", folder / f"{name}-{documents}.ndjson"
    write_lines(given, documents)
    _run(url, "migrate", "run")
    print(f"{name}, {documents:,} documents of {DOCUMENT_BYTES:,} bytes:")
    for command, file in (("import", given), ("export", taken)):
        seconds, kilobytes = _run(url, command, str(file))
        rate = f"{documents / seconds:>9,.0f} documents/s"
        print(f"  {command:<34} {rate}   {kilobytes / 1024:>7.1f} MiB at most", flush=True)
    with taken.open("rb") as lines:
        assert sum(1 for _ in lines) == documents


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
            if only != "SQLite":
                measure("PostgreSQL", PostgresDatabase(server).url, count, folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=DOCUMENTS)
    parser.add_argument("--only", choices=("SQLite", "PostgreSQL"))
    options = parser.parse_args()
    main(options.documents, options.only)
