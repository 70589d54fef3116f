"""Scenario 33: processes that migrate a SQLite file are killed: all or nothing is there, and the next one completes."""

import itertools
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from services.environments_store.defaults import MigrationBudgets
from services.environments_store.schema.migrator import migrate_once
from tests.support.shapes import Lines, make_sqlite, rows_of_sqlite
from tests.support.sqlite_files import query, tables, url
from tests.support.starters import starters

pytestmark = pytest.mark.anyio

BUDGETS = MigrationBudgets(start_s=20, sqlite_busy_ms=20, rebuild_recheck_s=0.05)
LIVE = {f"c0ffee00-0000-4000-8000-00000000000{number}" for number in (1, 3, 4)}
COLUMN = "SELECT count(*) FROM pragma_table_info('environments') WHERE name = 'deletedAt'"
INDEX = "SELECT count(*) FROM sqlite_master WHERE type = 'index' AND sql LIKE '%deletedAt%'"
long = pytest.mark.long
JOURNALS = ("delete", "wal")

KILLED = """
import os, signal, sys
import anyio, logging
from services.environments_store.defaults import MigrationBudgets
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
budgets = MigrationBudgets(rebuild_recheck_s=0.05)
anyio.run(lambda: migrate_once(sys.argv[1], logger=logging.getLogger("killed"), budgets=budgets))
"""


@pytest.mark.parametrize("journal", JOURNALS)
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_m33_a_kill_around_the_commit_leaves_all_or_nothing(
    moment: str, journal: str, path: Path, lines: Lines
) -> None:
    make_sqlite("s_crash_4", path)
    query(path, f"PRAGMA journal_mode = {journal}")

    process = await anyio.to_thread.run_sync(_run_killed, path, moment)
    assert process.returncode == -signal.SIGKILL, process.stderr

    assert query(path, "PRAGMA integrity_check") == [("ok",)]
    assert query(path, COLUMN) == query(path, INDEX) == [(int(moment == "after"),)]
    assert ("environments_backup" in tables(path)) == (moment == "before")
    await migrate_once(url(path), logger=lines.logger, budgets=BUDGETS)
    assert {row[0] for row in query(path, "SELECT id FROM environments")} == LIVE


def _run_killed(path: Path, moment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", KILLED, url(path), moment]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=dict(os.environ))


@pytest.mark.parametrize(
    ("shape", "journal", "moment", "every"),
    [
        ("s_b2", "delete", "during", 3),
        ("s_b2", "wal", "after", 3),
        *(pytest.param("s_b2", *one, 1, marks=long) for one in itertools.product(JOURNALS, ("during", "after"))),
        pytest.param("s_crash_4", "delete", "during", 1, marks=long),
        pytest.param("s_crash_4", "wal", "during", 1, marks=long),
    ],
)
async def test_m33_a_kill_at_any_statement_leaves_what_the_next_start_completes(
    shape: str, journal: str, moment: str, every: int, tmp_path: Path, lines: Lines
) -> None:
    async with starters() as crowd:
        whole = await crowd.run("whole", url(_made(tmp_path, "whole", shape, journal)))
        assert (whole.code, whole.pending) == (0, [])
        assert whole.statements > 10
        for number in range(random.randint(1, every), whole.statements + 1, every):
            path = _made(tmp_path, str(number), shape, journal)
            before = rows_of_sqlite(path) or rows_of_sqlite(path, "environments_backup")
            end = await crowd.run(f"killed-{number}", url(path), kill_at=number, moment=moment)
            # A run may have fewer statements than the first one: how often it looks at a busy file differs.
            assert end.code == -signal.SIGKILL or (end.code == 0 and end.statements < number)

            assert query(path, "PRAGMA integrity_check") == [("ok",)]
            [(done,)] = query(path, COLUMN)
            assert query(path, INDEX) == [(done,)]
            assert ("environments_backup" in tables(path)) == ("crash" in shape and not done)
            status = await migrate_once(url(path), logger=lines.logger, budgets=BUDGETS)
            assert status.state == "ready"
            assert rows_of_sqlite(path) == before


def _made(folder: Path, name: str, shape: str, journal: str) -> Path:
    path = folder / f"{name}.sqlite"
    make_sqlite(shape, path)
    query(path, f"PRAGMA journal_mode = {journal}")
    return path
