"""The store on a table of 1,000,000 rows: its start, pages, `get`, `stats` and `purge`, on SQLite and on PostgreSQL.

    python -m tests.benchmarks.store_at_size [--rows 1000000] [--only SQLite|PostgreSQL]

One row in a hundred is in the trash. The service runs in this process and is called without a network. The purge takes
another tenth of the rows, put into the trash before it, while somebody goes on reading single environments.
"""

import argparse
import contextlib
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio

from broker import MoleculerError, ServiceBroker
from services.environments_store.operations.list_index import build_list_index
from services.environments_store.schema.migrator import migrate_once
from services.environments_store.service import EnvironmentsStore
from tests.benchmarks.measure import milliseconds, times
from tests.support.operations import LOGGER, fill
from tests.support.postgres import PostgresDatabase, PostgresServer
from tests.support.store import Bench, open_bench

__all__ = ["measure"]

ROWS = 1_000_000
CALLS = 30
PAGE = 50
SHAPES = {"SQLite": "sqlite", "PostgreSQL": "postgresql"}
CALL_TIMEOUT_S = 600.0


async def measure(name: str, url: str, rows: int, log: Callable[[], str] | None = None) -> None:
    """Fill an empty database, migrate it, and print what each call costs. `log` is what PostgreSQL logs of it."""
    print(f"{name}, {rows:,} rows:")
    async with open_bench(SHAPES[name], url) as bench:
        with _stopwatch("fill"):
            await fill(bench, rows - rows // 100)
            await fill(bench, rows // 100, deleted_days=1, prefix="old-")
        with _stopwatch("migration: index and statistics"):
            await migrate_once(url, logger=LOGGER)
        if log is not None:
            await bench.run(
                "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET log_statement = ''all''',"
                " current_database()); END $$"
            )
        before = log() if log else ""
        with _stopwatch("start on the finished database"):
            broker = ServiceBroker("store", services=[EnvironmentsStore(url)])
            await broker.start()
        try:
            if log is not None:
                print(f"  {'  for it':<42} {_costs(log()[len(before) :])}")
                await bench.run(
                    "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET log_statement', current_database()); END $$"
                )
            await _reads(broker, rows)
            with _stopwatch("index for pages of live ones, by wish"):
                await build_list_index(url, LOGGER)
            await _pages(broker, rows)
            await _purge(broker, bench, rows // 10)
        finally:
            await broker.stop()


def _costs(log: str) -> str:
    """Connections and statements in the lines of the server's log."""
    connections, statements = log.count("connection authorized"), log.count("statement: ") + log.count("execute ")
    return f"{connections:>9} connections, {statements} statements"


def _ask(broker: ServiceBroker, action: str, **params: Any) -> Callable[[], Awaitable[Any]]:
    return lambda: broker.call(f"environments-store.{action}", params, timeout=CALL_TIMEOUT_S)


def _nobody(broker: ServiceBroker) -> Callable[[], Awaitable[None]]:
    async def ask() -> None:
        with contextlib.suppress(MoleculerError):  # 404
            await _ask(broker, "get", uuid="nobody")()

    return ask


async def _pages(broker: ServiceBroker, rows: int) -> None:
    for title, call in {
        "page of live ones, the first": _ask(broker, "list", limit=PAGE),
        "page of live ones, after nine tenths": _ask(broker, "list", limit=PAGE, after=f"row-{rows * 9 // 10}"),
    }.items():
        print(milliseconds(title, await times(call, CALLS)))


async def _reads(broker: ServiceBroker, rows: int) -> None:
    await _pages(broker, rows)
    middle = f"old-{max(rows // 200, 1)}"
    for title, call in {
        "page of the trash, the first": _ask(broker, "listDeleted", limit=PAGE),
        "page of the trash, after half": _ask(broker, "listDeleted", limit=PAGE, after=middle),
        "get": _ask(broker, "get", uuid=f"row-{rows * 9 // 10}"),
        "get of nobody": _nobody(broker),
        "stats": _ask(broker, "stats"),
    }.items():
        print(milliseconds(title, await times(call, CALLS)))


async def _purge(broker: ServiceBroker, bench: Bench, rows: int) -> None:
    await fill(bench, rows, deleted_days=100, prefix="purge-")
    done, others = anyio.Event(), []
    started = time.perf_counter()

    async def read() -> None:
        get = _ask(broker, "get", uuid="row-1")
        while not done.is_set():
            others.extend(await times(get, 1))
            await anyio.sleep(0.001)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        answer = await broker.call("environments-store.purge", {"olderThanDays": 90}, timeout=CALL_TIMEOUT_S)
        done.set()
    assert answer == {"deleted": rows, "remaining": 0}
    print(f"  {'purge':<42} {rows / (time.perf_counter() - started):>9,.0f} rows/s")
    print(milliseconds("get meanwhile", others))


@contextmanager
def _stopwatch(title: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    print(f"  {title:<42} {(time.perf_counter() - started) * 1000:>9,.1f} ms", flush=True)


async def main(rows: int, only: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        if only != "PostgreSQL":
            await measure("SQLite", f"sqlite:///{Path(folder) / 'environments.sqlite'}", rows)
        if only != "SQLite":
            with PostgresServer(log_connections="on") as server:
                database = PostgresDatabase(server)
                await measure("PostgreSQL", database.url, rows, database.log)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--only", choices=SHAPES)
    options = parser.parse_args()
    anyio.run(main, options.rows, options.only)
