"""Exports side by side over NATS, and imports whose service is killed."""

import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
import msgspec
import pytest

from broker import MoleculerError, ServiceBroker
from services.environments_store.database.connect import open_database
from tests.support.processes import Process
from tests.support.store_node import store_process
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio
STORE = "environments-store"
EXPORTS = 6
ROWS = 600
"""More than one statement stores."""


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'environments.sqlite'}"
    return str(request.getfixturevalue("postgres_url"))


@contextlib.asynccontextmanager
async def serving(database_url: str, nats_url: str, namespace: str) -> AsyncIterator[tuple[Process, ServiceBroker]]:
    """The service as a process of its own, and a Python node that calls it."""
    caller = ServiceBroker("caller", namespace=namespace, transporter=nats_url)
    async with store_process(database_url, nats_url, namespace, "store") as process, caller:
        await caller.wait_for_services(STORE, timeout=60)
        yield process, caller


def lines(count: int, size: int) -> list[bytes]:
    return [msgspec.json.encode({"environment": {"uuid": f"U{n}", "text": "é" * size}}) + b"\n" for n in range(count)]


@pytest.mark.parametrize(
    ("count", "size"), [(120, 5_000), pytest.param(60, 1_000_000, marks=pytest.mark.long)], ids=["small", "large"]
)
async def test_six_exports_at_once_arrive_whole_at_one_node(
    count: int, size: int, database_url: str, nats_url: str, namespace: str
) -> None:
    sent = lines(count, size)
    started = 0
    all_started = anyio.Event()
    exports: list[list[bytes]] = []

    async with serving(database_url, nats_url, namespace) as (_, caller):

        async def read() -> None:
            nonlocal started
            chunks: list[bytes] = []
            async for chunk in await caller.call(f"{STORE}.export", {}, timeout=0):
                chunks.append(chunk)
                if len(chunks) == 1:
                    started += 1
                    if started == EXPORTS:
                        all_started.set()
                    await all_started.wait()
            exports.append(b"".join(chunks).splitlines())

        await caller.call(f"{STORE}.import", stream=b"".join(sent), timeout=0)
        async with anyio.create_task_group() as readers:
            for _ in range(EXPORTS):
                readers.start_soon(read)
            await caller.call(f"{STORE}.create", {"environment": {"uuid": "beside them"}}, timeout=0)
    for export in exports:
        documents = {record["id"]: record["environment"] for record in map(json.loads, export)}
        documents.pop("beside them", None)  # an export is of the moment at which it began
        assert documents == {f"U{n}": {"uuid": f"U{n}", "text": "é" * size} for n in range(count)}


async def test_what_was_acknowledged_before_a_kill_in_an_import_is_there_and_the_next_import_completes_it(
    database_url: str, nats_url: str, namespace: str
) -> None:
    text = b"".join(lines(ROWS, 1_000))
    acknowledged = ["U7", "another"]
    async with serving(database_url, nats_url, namespace) as (process, caller):
        for uuid in acknowledged:
            await caller.call(f"{STORE}.create", {"environment": {"uuid": uuid}})

        async def begin() -> None:
            with contextlib.suppress(MoleculerError):
                await caller.call(f"{STORE}.import", stream=text, timeout=0)
                raise AssertionError("the import ended before it was killed")

        async with anyio.create_task_group() as callers:
            async with storing(database_url, lambda: callers.start_soon(begin)):
                await process.kill()
            callers.cancel_scope.cancel()
    async with serving(database_url, nats_url, namespace) as (_, caller):
        kept = await caller.call(f"{STORE}.list", {"fields": ["id"]})
        assert [record["id"] for record in kept] == acknowledged
        imported = await caller.call(f"{STORE}.import", stream=text, timeout=0)
        assert imported == {"created": ROWS - 1, "skipped": 1, "replaced": 0}
        assert (await caller.call(f"{STORE}.stats"))["active"] == ROWS + 1


SQLITE_HOLDS = f"""CREATE TRIGGER holds AFTER INSERT ON environments WHEN NEW.id = 'U{ROWS - 1}' BEGIN
SELECT (WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n LIMIT 1000000000000) SELECT count(*) FROM n);
END"""
"""The last row of the import takes longer than any test."""


@contextlib.asynccontextmanager
async def storing(database_url: str, begin: Callable[[], object]) -> AsyncIterator[None]:
    """The import that `begin` begins has stored some of its rows, and comes to no commit."""
    if database_url.startswith("sqlite"):
        path = database_url.removeprefix("sqlite:///")
        with contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
            other.execute(SQLITE_HOLDS)
            begin()
            await eventually(lambda: _is_locked(other), "the lock of the import")
            yield
            other.execute("DROP TRIGGER holds")
        return
    database = open_database(database_url)
    await database.open()
    try:
        # It waits for whether its last row will be there.
        async with database.transaction() as transaction:
            columns = 'id, environment, "createdAt", "updatedAt"'
            await transaction.execute(
                f"INSERT INTO environments ({columns}) VALUES ($1, '{{}}', now(), now())", f"U{ROWS - 1}"
            )
            begin()
            waiting = "SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
            with anyio.fail_after(60):
                while await database.fetch_one(waiting) is None:  # noqa: ASYNC110 - no event tells of it
                    await anyio.sleep(0.01)
            yield
            await transaction.execute("DELETE FROM environments WHERE id = $1", f"U{ROWS - 1}")
    finally:
        await database.close()


def _is_locked(connection: sqlite3.Connection) -> bool:
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.OperationalError:
        return True
    return False
