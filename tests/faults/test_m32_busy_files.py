"""Scenario 32: a SQLite file that others use while the service starts: other starters, a writer, an open reader."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from services.environments_store.defaults import DatabaseSettings, MigrationBudgets
from services.environments_store.errors import DatabaseUnavailableError
from services.environments_store.schema.messages import ADDED, ADDING, EXISTS, FAILED
from services.environments_store.schema.migrator import Migrator, migrate_once
from tests.support.served import Serving, serving
from tests.support.shapes import SQLITE_SHAPES, Lines, make_sqlite, rows_of_sqlite
from tests.support.sqlite_files import query, tables, url
from tests.support.starters import starters

pytestmark = pytest.mark.anyio

STARTERS = 8
BUDGETS = MigrationBudgets(start_s=0.5, reinspect_s=0.1, sleep_patient_s=0.1, sqlite_busy_ms=20)
PATIENT = MigrationBudgets(start_s=60, sqlite_busy_ms=20)
IMPATIENT = DatabaseSettings(sqlite_busy_timeout_s=0.1, sqlite_wal_timeout_s=0.1)
LIVE = "c0ffee00-0000-4000-8000-000000000001"
HOLD_S = 60
HAS_COLUMN = {"s_none", "s_d1", "s_d2", "s_man", "s_noidx"}  # or gets it with the table
INDEXES = "SELECT count(*) FROM sqlite_master WHERE type = 'index' AND sql LIKE '%deletedAt%'"


@pytest.mark.parametrize("rounds", [1, pytest.param(5, marks=pytest.mark.long)])
@pytest.mark.parametrize("shape", SQLITE_SHAPES)
async def test_m32_of_eight_processes_at_once_all_end_with_one_column_and_every_row(
    shape: str, rounds: int, tmp_path: Path
) -> None:
    async with starters() as crowd:
        for number in range(rounds):
            path = tmp_path / f"{number}.sqlite"
            make_sqlite(shape, path)
            # An empty table, or none, beside a copy of the original's is what a killed start of it left.
            before = rows_of(path, "environments") or rows_of(path, "environments_backup")
            names = [f"round-{number}-node-{one}" for one in range(STARTERS)]
            for name in names:
                await crowd.start(name, url(path))
            ends = [await crowd.ended(name) for name in names]

            assert [(end.code, end.state, end.pending) for end in ends] == [(0, "ready", [])] * STARTERS
            said = [line for end in ends for line in end.guide_lines]
            assert said.count(ADDED) == (shape not in HAS_COLUMN)
            assert said.count(ADDED) + said.count(EXISTS) == STARTERS
            assert rows_of_sqlite(path) == before
            assert query(path, "SELECT count(*) FROM pragma_table_info('environments')") == [(7,)]
            assert query(path, INDEXES) == [(1,)]
            assert query(path, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize("hold_s", [0, pytest.param(HOLD_S, marks=pytest.mark.long)])
@pytest.mark.parametrize("journal", ["delete", "wal"])
async def test_m32_a_writer_that_holds_the_file_delays_the_column_and_writes_but_neither_the_start_nor_reads(
    journal: str, hold_s: float, path: Path
) -> None:
    make_sqlite("s_b2", path)
    query(path, f"PRAGMA journal_mode = {journal}")
    with somebody(path) as writer:
        writer.execute("BEGIN IMMEDIATE")
        async with serving(url(path), budgets=BUDGETS, settings=IMPATIENT) as service:
            await assert_degraded(service)
            await anyio.sleep(hold_s)
            await assert_degraded(service)
            error = await service.failure("create", environment={"name": "while somebody writes"})
            assert (error.code, error.type, error.retryable) == (503, "DATABASE_UNAVAILABLE", True)
            writer.execute("ROLLBACK")
            await assert_healed(service)


async def test_m32_an_open_reader_of_a_file_in_delete_mode_delays_the_column_and_writes_but_not_the_start(
    path: Path,
) -> None:
    """There whoever writes has to wait for everybody who reads. Nobody who reads sees half of the migration."""
    make_sqlite("s_b2", path)
    before = rows_of_sqlite(path)
    with somebody(path) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM environments").fetchall()
        async with serving(url(path), budgets=BUDGETS, settings=IMPATIENT) as service:
            await assert_degraded(service)
            assert sum("stays in its journal mode" in line for line in service.lines) == 1
            # A reader who comes meanwhile gets through between the attempts.
            assert rows_of_sqlite(path) == before
            assert len(reader.execute("PRAGMA table_info(environments)").fetchall()) == 6
            reader.execute("ROLLBACK")
            await assert_healed(service)
    assert query(path, "PRAGMA journal_mode") == [("delete",)]


async def test_m32_a_file_that_is_locked_against_readers_too_is_waited_for(path: Path, lines: Lines) -> None:
    make_sqlite("s_b2", path)
    one = Migrator(url(path), None, node_id="node-1", logger=lines.logger, budgets=PATIENT)
    with somebody(path) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DatabaseUnavailableError, match="locked"):
            await migrate_once(url(path), logger=lines.logger, budgets=BUDGETS)
        async with anyio.create_task_group() as group:
            group.start_soon(one.prepare)
            await anyio.wait_all_tasks_blocked()
            writer.execute("ROLLBACK")
    assert one.status.state == "ready"
    assert lines.guide_lines() == [ADDING, ADDED]


def rows_of(path: Path, table: str) -> list[tuple[object, ...]]:
    return rows_of_sqlite(path, table) if table in tables(path) else []


@contextmanager
def somebody(path: Path) -> Iterator[sqlite3.Connection]:
    """Another process's connection, as far as SQLite can tell."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


async def assert_degraded(service: Serving) -> None:
    """Every row is listed; soft delete says that it cannot be done now, and why."""
    schema = await service.ask("schema")
    assert schema["state"] == "migrating"
    assert "has to wait for another session" in schema["error"]
    assert any("is locked by another process" in line for line in service.lines)
    assert LIVE in {record["id"] for record in await service.ask("list", fields=["id"])}
    error = await service.failure("remove", uuid=LIVE)
    assert (error.code, error.type, error.retryable) == (503, "SOFT_DELETE_UNAVAILABLE", True)
    assert service.guide_lines() == [ADDING, FAILED]


async def assert_healed(service: Serving) -> None:
    await service.until_state("ready", steps=True)
    assert await service.ask("remove", uuid=LIVE) == {"success": True}
    assert [record["id"] for record in await service.ask("listDeleted")] == [LIVE]
    assert service.guide_lines() == [ADDING, FAILED, ADDED]
