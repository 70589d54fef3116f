"""The migration of real SQLite files: every shape of production, and leftovers of killed starts."""

import sqlite3
from pathlib import Path

import anyio
import pytest

from services.environments_store.defaults import MigrationBudgets
from services.environments_store.schema.messages import ADDED, ADDING, EXISTS
from services.environments_store.schema.migrator import Migrator, migrate_once
from tests.support.shapes import SQLITE_SHAPES, Lines, make_sqlite, rows_of_sqlite, until
from tests.support.sqlite_files import query, tables, url

pytestmark = pytest.mark.anyio

BUDGETS = MigrationBudgets(start_s=20, reinspect_s=0.1, sleep_max_s=0.2, sqlite_busy_ms=20, rebuild_recheck_s=0.1)
NO_COLUMN = ["s_b1", "s_b2", "s_wal"]
WITH_COLUMN = ["s_d1", "s_d2", "s_man", "s_noidx"]
CRASHED = ["s_crash_1", "s_crash_2", "s_crash_3", "s_crash_4", "s_crash_5", "s_crash_6"]
LIVE = {f"c0ffee00-0000-4000-8000-00000000000{number}" for number in (1, 3, 4)}


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


async def test_a_view_is_left_alone(path: Path, lines: Lines) -> None:
    make_sqlite("s_b2", path)
    for statement in (
        "ALTER TABLE environments RENAME TO base",
        "CREATE VIEW environments AS SELECT * FROM base",
    ):
        query(path, statement)
    status = await migrate_once(url(path), logger=lines.logger, budgets=BUDGETS)
    assert (status.state, status.reason) == ("degraded", "unsupported")


async def test_a_column_that_vanishes_is_lost_and_comes_back_by_a_person_only(path: Path, lines: Lines) -> None:
    make_sqlite("s_b2", path)
    one = Migrator(url(path), None, node_id="node-1", logger=lines.logger, budgets=MigrationBudgets())
    await one.prepare()
    async with anyio.create_task_group() as group:
        group.start_soon(one.run)
        query(path, "DROP INDEX environments_deleted_at_idx")
        query(path, "ALTER TABLE environments DROP COLUMN deletedAt")
        one.report_mismatch()
        await until(lambda: one.status.reason == "lost")
        query(path, "ALTER TABLE environments ADD COLUMN deletedAt DATETIME")
        one.report_mismatch()
        await until(lambda: one.status.state == "ready")
        group.cancel_scope.cancel()
    assert lines.guide_lines() == [ADDING, ADDED, EXISTS]
