"""The SQL for a DBA, before a linter of migrations (squawk) and before SQLite itself."""

import sqlite3
import subprocess
from pathlib import Path

import pytest

from services.environments_store.schema.sql import (
    TIMEOUTS,
    add_column,
    create_index,
    create_list_index,
    create_tables,
    drop_index,
    script,
    to_timestamptz,
)
from tests.support.servers import script_path
from tests.support.shapes import SQLITE_SHAPES, make_sqlite, rows_of_sqlite
from tests.support.sqlite_files import query

VERSIONS = ["13.0", "15.0", "18.0"]
SCHEMAS = ["public", "app", 'odd "name"']
NO_COLUMN = ["s_b1", "s_b2", "s_wal"]


def lint(text: str, version: str, *ignored: str) -> str:
    """What squawk finds in a script, its optional rules included; nothing when it passes."""
    squawk = str(script_path("squawk"))
    options = ["--reporter=gcc", "--include=require-table-schema", f"--pg-version={version}"]
    done = subprocess.run(
        [squawk, *options, *(f"--exclude={rule}" for rule in ignored), "--stdin-filepath=migration.sql"],
        input=text,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stderr
    assert (done.returncode == 1) == bool(done.stdout)
    return done.stdout


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("schema", SCHEMAS)
def test_the_script_passes_the_linter(schema: str, version: str) -> None:
    assert lint(script("postgresql", schema), version) == ""


@pytest.mark.parametrize(
    ("statements", "ignored"),
    [
        pytest.param([TIMEOUTS, add_column("postgresql")], [], id="column"),
        # IF NOT EXISTS would take an INVALID index, or one of another table, for a good one.
        pytest.param([TIMEOUTS, create_index("postgresql")], ["prefer-robust-stmts"], id="index"),
        pytest.param([TIMEOUTS, create_list_index("postgresql")], ["prefer-robust-stmts"], id="index for lists"),
        pytest.param([TIMEOUTS, drop_index("public")], [], id="drop"),
        # The tables are those of the original, type for type; on new ones the index blocks nobody.
        pytest.param(
            [TIMEOUTS, *create_tables("postgresql")],
            ["prefer-text-field", "require-concurrent-index-creation", "prefer-robust-stmts"],
            id="tables",
        ),
        # Without its first statement, which keeps nobody out while it waits and needs no timeout. In UTC nothing is
        # rewritten.
        pytest.param(
            [*to_timestamptz("public").split("; ", 1)[1:]],
            ["changing-column-type", "prefer-robust-stmts"],
            id="zones",
        ),
    ],
)
def test_what_the_service_itself_runs_or_advises_passes_it_too(statements: list[str], ignored: list[str]) -> None:
    text = "\n".join(statement if statement.endswith(";") else f"{statement};" for statement in statements)
    assert lint(text, "18.0", *ignored) == ""


def test_the_linter_would_see_what_it_is_there_for() -> None:
    text = script("postgresql").replace(TIMEOUTS, "").replace("CONCURRENTLY", "")
    for rule in ("require-lock-timeout", "require-statement-timeout", "require-concurrent-index-creation"):
        assert rule in lint(text, "18.0")


@pytest.mark.parametrize("shape", NO_COLUMN)
def test_the_script_for_sqlite_runs_and_changes_no_row(shape: str, tmp_path: Path) -> None:
    path = tmp_path / "environments.sqlite"
    make_sqlite(shape, path)
    before = rows_of_sqlite(path)
    connection = sqlite3.connect(path)
    shown = [row for statement in _statements(script("sqlite")) for row in connection.execute(statement)]
    connection.close()
    assert "deletedAt" in {row[1] for row in shown}
    assert rows_of_sqlite(path) == before
    assert query(path, "SELECT count(*) FROM environments WHERE deletedAt IS NULL") == [(len(before),)]
    assert query(path, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize("shape", sorted({*SQLITE_SHAPES} - {*NO_COLUMN} - {"s_none"} - {"s_crash_3"}))
def test_the_script_for_sqlite_stops_at_a_column_that_is_there(shape: str, tmp_path: Path) -> None:
    path = tmp_path / "environments.sqlite"
    make_sqlite(shape, path)
    had_column = query(path, "SELECT 1 FROM pragma_table_info('environments') WHERE name = 'deletedAt'") != []
    before = rows_of_sqlite(path)
    connection = sqlite3.connect(path)
    if had_column:
        with pytest.raises(sqlite3.OperationalError, match="duplicate column name"):
            connection.executescript(script("sqlite"))
    else:
        connection.executescript(script("sqlite"))
    connection.close()
    assert rows_of_sqlite(path) == before


def _statements(text: str) -> list[str]:
    statements, rest = [], ""
    for line in text.splitlines(keepends=True):
        rest += line
        if sqlite3.complete_statement(rest):
            statements.append(rest)
            rest = ""
    return statements
