"""The migration of real SQLite files: every shape of production, leftovers of killed starts, busy and broken files."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from services.environments_store.defaults import MigrationBudgets
from services.environments_store.errors import DatabaseError, DatabaseUnavailableError
from services.environments_store.schema.messages import ADDED, ADDING, EXISTS, FAILED
from services.environments_store.schema.migrator import Migrator, migrate_once
from tests.support.shapes import SQLITE_SHAPES, Lines, make_sqlite, rows_of_sqlite, until

pytestmark = pytest.mark.anyio

BUDGETS = MigrationBudgets(start_s=20, reinspect_s=0.1, sleep_max_s=0.2, sqlite_busy_ms=20)
NO_COLUMN = ["s_b1", "s_b2", "s_wal"]
WITH_COLUMN = ["s_d1", "s_d2", "s_man", "s_noidx"]
CRASHED = ["s_crash_1", "s_crash_2", "s_crash_3", "s_crash_4", "s_crash_5", "s_crash_6"]
LIVE = {f"c0ffee00-0000-4000-8000-00000000000{number}" for number in (1, 3, 4)}


@pytest.fixture
def lines(request: pytest.FixtureRequest) -> Iterator[Lines]:
    handler = Lines(request.node.name)
    yield handler
    handler.logger.removeHandler(handler)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "environments.sqlite"


def url(path: Path) -> str:
    return f"sqlite:///{path}"


def query(path: Path, text: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(text).fetchall()
    finally:
        connection.close()


def dump(path: Path) -> str:
    connection = sqlite3.connect(path)
    try:
        return "\n".join(connection.iterdump())
    finally:
        connection.close()


def tables(path: Path) -> set[object]:
    return {row[0] for row in query(path, "SELECT name FROM sqlite_master WHERE type = 'table'")}


def test_every_shape_has_its_expectation() -> None:
    assert sorted([*NO_COLUMN, *WITH_COLUMN, *CRASHED, "s_none"]) == SQLITE_SHAPES


@pytest.mark.parametrize("shape", NO_COLUMN + WITH_COLUMN)
async def test_m30_every_shape_is_migrated_with_its_rows_unchanged(shape: str, path: Path, lines: Lines) -> None:
    make_sqlite(shape, path)
    before = rows_of_sqlite(path)

    status = await migrate_once(url(path), logger=lines.logger, budgets=BUDGETS)

    assert status.state == "ready"
    assert {step.state for step in status.steps} == {"done"}
    assert rows_of_sqlite(path) == before
    deleted = query(path, "SELECT id, deletedAt, typeof(deletedAt) FROM environments WHERE deletedAt IS NOT NULL")
    if shape in WITH_COLUMN:
        assert deleted == [("c0ffee00-0000-4000-8000-000000000002", "2025-05-27 08:54:47.123 +00:00", "text")]
    else:
        assert deleted == []
    assert query(path, "SELECT count(*) FROM pragma_index_list('environments') WHERE name LIKE '%deleted_at%'") == [
        (1,)
    ]
    assert query(path, "PRAGMA integrity_check") == [("ok",)]
    assert lines.guide_lines() == ([ADDING, ADDED] if shape in NO_COLUMN else [EXISTS])


@pytest.mark.parametrize("shape", NO_COLUMN + WITH_COLUMN + CRASHED)
async def test_m30_a_second_start_changes_nothing_and_waits_for_nobody(shape: str, path: Path, lines: Lines) -> None:
    make_sqlite(shape, path)
    await migrate_once(url(path), logger=lines.logger, budgets=BUDGETS)
    version = query(path, "PRAGMA schema_version")
    lines.messages.clear()

    writer = sqlite3.connect(path, isolation_level=None)
    try:
        # Whoever wants to write, or only to lock, would be busy.
        writer.execute("BEGIN IMMEDIATE")
        status = await migrate_once(url(path), logger=lines.logger, budgets=BUDGETS)
    finally:
        writer.close()

    assert status.state == "ready"
    assert lines.messages == [EXISTS]
    assert query(path, "PRAGMA schema_version") == version


@pytest.mark.parametrize("made", ["nothing", "folder", "empty file", "s_none"])
async def test_m30_a_new_file_gets_its_tables(made: str, tmp_path: Path, lines: Lines) -> None:
    path = tmp_path / "data" / "environments.sqlite"
    if made != "nothing":
        path.parent.mkdir()
    if made == "empty file":
        path.touch()
    if made == "s_none":
        make_sqlite(made, path)

    status = await migrate_once(url(path), logger=lines.logger, budgets=BUDGETS)

    assert status.state == "ready"
    assert lines.guide_lines() == [EXISTS]
    columns = [row[1] for row in query(path, "PRAGMA table_info(environments)")]
    assert columns == ["id", "environment", "environmentUuid", "timestamp", "deletedAt", "createdAt", "updatedAt"]
    assert {"environments", "metadata"} <= tables(path)


@pytest.mark.parametrize("shape", CRASHED)
async def test_m31_a_killed_start_of_the_original_loses_no_row(shape: str, path: Path, lines: Lines) -> None:
    make_sqlite(shape, path)

    status = await migrate_once(url(path), logger=lines.logger, budgets=BUDGETS)

    assert status.state == "ready"
    expected = LIVE - {f"c0ffee00-0000-4000-8000-00000000000{3}"} if shape == "s_crash_5" else LIVE
    assert {row[0] for row in query(path, "SELECT id FROM environments WHERE deletedAt IS NULL")} == expected
    assert query(path, "SELECT key, value FROM metadata") == [("last_sync", "1748340000999")]
    kept = [name for name in tables(path) if "_backup" in str(name)]
    assert all("_backup_kept_" in str(name) for name in kept)
    if shape != "s_crash_3":
        # A copy is never dropped, so that nobody has to trust our idea of which rows are the right ones.
        assert len(kept) == 1
    if shape == "s_crash_5":
        assert any("1 of its rows are not in" in message for message in lines.messages)
    if shape == "s_crash_6":
        assert query(path, "SELECT deletedAt FROM environments WHERE deletedAt IS NOT NULL") == [
            ("2025-05-27 08:54:47.123 +00:00",)
        ]


async def test_m32_of_eight_starters_all_end_with_one_column(path: Path, lines: Lines) -> None:
    make_sqlite("s_b2", path)
    starters = [
        Migrator(url(path), None, node_id=f"node-{number}", logger=lines.logger, budgets=BUDGETS) for number in range(8)
    ]
    async with anyio.create_task_group() as group:
        for one in starters:
            group.start_soon(one.prepare)

    assert {one.status.state for one in starters} == {"ready"}
    assert lines.guide_lines().count(ADDED) == 1


async def test_m32_a_busy_file_delays_the_column_but_not_the_start(path: Path, lines: Lines) -> None:
    make_sqlite("s_b2", path)
    writer = sqlite3.connect(path, isolation_level=None)
    budgets = MigrationBudgets(start_s=0.3, reinspect_s=0.1, sleep_patient_s=0.1, sqlite_busy_ms=20)
    one = Migrator(url(path), None, node_id="node-1", logger=lines.logger, budgets=budgets)
    try:
        writer.execute("BEGIN IMMEDIATE")
        status = await one.prepare()
        assert (status.state, status.soft_delete) == ("migrating", False)
        assert "locked" in (status.error or "")
        assert lines.guide_lines() == [ADDING, FAILED]
        async with anyio.create_task_group() as group:
            group.start_soon(one.run)
            writer.execute("ROLLBACK")
            await until(lambda: one.status.state == "ready")
            group.cancel_scope.cancel()
    finally:
        writer.close()
    assert lines.guide_lines() == [ADDING, FAILED, ADDED]


async def test_m34_a_file_opened_to_read_is_served_without_the_column(path: Path, lines: Lines) -> None:
    make_sqlite("s_b2", path)
    before = dump(path)

    status = await migrate_once(f"{url(path)}?mode=ro", logger=lines.logger, budgets=BUDGETS)

    assert (status.state, status.reason, status.writable, status.soft_delete) == ("degraded", "read-only", False, False)
    assert lines.guide_lines() == [FAILED]
    assert dump(path) == before


async def test_m34_a_finished_file_opened_to_read_keeps_its_trash(path: Path, lines: Lines) -> None:
    make_sqlite("s_d2", path)
    await migrate_once(url(path), logger=lines.logger, budgets=BUDGETS)

    status = await migrate_once(f"{url(path)}?mode=ro", logger=lines.logger, budgets=BUDGETS)

    assert (status.state, status.reason, status.writable, status.soft_delete) == ("degraded", "read-only", False, True)


@pytest.fixture
def letter(path: Path) -> Path:
    path.write_text("This is a letter, and a rather long one, so that it cannot be taken for a header.\n" * 20)
    return path


@pytest.fixture
def folder(path: Path) -> Path:
    path.mkdir()
    return path


async def test_m34_a_file_that_is_no_database_is_named_with_the_reason(letter: Path, lines: Lines) -> None:
    with pytest.raises(DatabaseError, match="is no SQLite database") as caught:
        await migrate_once(url(letter), logger=lines.logger, budgets=BUDGETS)
    assert str(letter) in str(caught.value)


async def test_m34_a_folder_in_place_of_the_file_is_named(folder: Path, lines: Lines) -> None:
    with pytest.raises(DatabaseUnavailableError, match="it is a folder"):
        await migrate_once(url(folder), logger=lines.logger, budgets=BUDGETS)


async def test_m34_a_file_in_place_of_the_folder_is_named(letter: Path, lines: Lines) -> None:
    with pytest.raises(DatabaseUnavailableError, match=str(letter)):
        await migrate_once(url(letter / "below.sqlite"), logger=lines.logger, budgets=BUDGETS)


async def test_a_view_is_left_alone(path: Path, lines: Lines) -> None:
    make_sqlite("s_b2", path)
    for statement in (
        "ALTER TABLE environments RENAME TO base",
        "CREATE VIEW environments AS SELECT * FROM base",
    ):
        query(path, statement)
    status = await migrate_once(url(path), logger=lines.logger, budgets=BUDGETS)
    assert (status.state, status.reason) == ("degraded", "unsupported")


async def test_m36_a_full_index_gets_statistics_so_that_a_page_of_live_rows_is_not_sorted(
    path: Path, lines: Lines
) -> None:
    make_sqlite("s_d1", path)
    with sqlite3.connect(path) as connection:
        connection.executemany(
            "INSERT INTO environments (id, environment, createdAt, updatedAt) VALUES (?, '{}', '', '')",
            [(f"bulk-{number}",) for number in range(5000)],
        )
    connection.close()
    live = "EXPLAIN QUERY PLAN SELECT id FROM environments WHERE deletedAt IS NULL ORDER BY id LIMIT 50"
    assert "TEMP B-TREE" in str(query(path, live))

    await migrate_once(url(path), logger=lines.logger, budgets=BUDGETS)

    assert "TEMP B-TREE" not in str(query(path, live))


async def test_a_column_that_vanishes_is_lost_and_comes_back_by_a_person_only(path: Path, lines: Lines) -> None:
    make_sqlite("s_b2", path)
    one = Migrator(url(path), None, node_id="node-1", logger=lines.logger, budgets=MigrationBudgets())
    await one.prepare()
    async with anyio.create_task_group() as group:
        group.start_soon(one.run)
        query(path, "DROP INDEX environments_deleted_at_idx")
        query(path, "ALTER TABLE environments DROP COLUMN deletedAt")
        one.report_missing_column()
        await until(lambda: one.status.reason == "lost")
        query(path, "ALTER TABLE environments ADD COLUMN deletedAt DATETIME")
        one.report_missing_column()
        await until(lambda: one.status.state == "ready")
        group.cancel_scope.cancel()
    assert lines.guide_lines() == [ADDING, ADDED, EXISTS]


KILLED = """
import os, signal, sys
import anyio, logging
from services.environments_store.schema import sqlite_migration
from services.environments_store.schema.migrator import migrate_once

real = sqlite_migration.query

async def query(connection, path, text, *arguments):
    if sys.argv[2] == "before" and text == "COMMIT":
        os.kill(os.getpid(), signal.SIGKILL)
    rows = await real(connection, path, text, *arguments)
    if sys.argv[2] == "after" and text == "COMMIT":
        os.kill(os.getpid(), signal.SIGKILL)
    return rows

sqlite_migration.query = query
anyio.run(lambda: migrate_once(sys.argv[1], logger=logging.getLogger("killed")))
"""


@pytest.mark.parametrize("journal", ["delete", "wal"])
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_m33_a_kill_around_the_commit_leaves_all_or_nothing(
    moment: str, journal: str, path: Path, lines: Lines
) -> None:
    make_sqlite("s_crash_4", path)
    query(path, f"PRAGMA journal_mode = {journal}")

    process = await anyio.to_thread.run_sync(_run_killed, path, moment)
    assert process.returncode == -signal.SIGKILL, process.stderr

    assert query(path, "PRAGMA integrity_check") == [("ok",)]
    has_column = bool(query(path, "SELECT 1 FROM pragma_table_info('environments') WHERE name = 'deletedAt'"))
    assert has_column == (moment == "after")
    assert ("environments_backup" in tables(path)) == (moment == "before")
    await migrate_once(url(path), logger=lines.logger, budgets=BUDGETS)
    assert {row[0] for row in query(path, "SELECT id FROM environments")} == LIVE


def _run_killed(path: Path, moment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", KILLED, url(path), moment]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=dict(os.environ))
