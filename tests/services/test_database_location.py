"""Database URLs: what they mean, how they are shown, and what is said of a wrong one."""

from pathlib import Path

import pytest

from services.environments_store.database.connect import open_database
from services.environments_store.database.location import masked, read_location
from services.environments_store.database.statements import changes_rows, is_read, touched_rows
from services.environments_store.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "path", "read_only"),
    [
        ("sqlite:///data/environments.sqlite", "data/environments.sqlite", False),
        ("sqlite:////var/lib/environments.sqlite", "/var/lib/environments.sqlite", False),
        ("sqlite:///with%20space.sqlite?mode=ro", "with space.sqlite", True),
        ("sqlite:///100%25.sqlite", "100%.sqlite", False),
    ],
)
def test_a_sqlite_url_names_a_file(url: str, path: str, read_only: bool) -> None:
    location = read_location(url)
    assert (location.dialect, location.path, location.read_only) == ("sqlite", Path(path), read_only)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:password@host:5432/database",
        "postgres://host/database",
        "postgresql://user@/database?host=/var/run/postgresql",
        "postgresql://user@[::1]:5432/database",
        "postgresql://user:password@one:5432,two:5433/database",
    ],
)
def test_a_postgresql_url_names_a_server(url: str) -> None:
    location = read_location(url)
    assert location.dialect == "postgresql"
    assert location.several_hosts == ("," in url)
    assert open_database(url).dialect == "postgresql"


@pytest.mark.parametrize(
    ("url", "dsn"),
    [
        ("postgresql://host/database?connect_timeout=3", "postgresql://host/database"),
        (
            "postgresql://u:p%40@one:1,two:2/database?sslmode=require&keepalives_idle=30&application_name=x",
            "postgresql://u:p%40@one:1,two:2/database?sslmode=require&application_name=x",
        ),
        ("postgresql:///database?host=/var/run/postgresql", "postgresql:///database?host=/var/run/postgresql"),
        ("postgresql://host/database?pgbouncer=true&connection_limit=1", "postgresql://host/database"),
        ("postgresql://host/database?schema=public&statement_cache_size=0", "postgresql://host/database"),
        (
            "postgresql://host/database?schema=app&sslmode=require",
            "postgresql://host/database?search_path=app&sslmode=require",
        ),
    ],
)
def test_what_only_libpq_or_another_driver_understands_is_left_out(url: str, dsn: str) -> None:
    assert read_location(url).dsn == dsn


@pytest.mark.parametrize(
    "url",
    [
        "",
        "environments.sqlite",
        "mysql://user:secret@host/database",
        "postgresql+asyncpg://user:secret@host/database",
        "postgresql:user:secret@host/database",
        "postgresql:///",
        "postgresql://user:secret@host:port/database",
        "postgresql://user:secret@host:99999/database",
        "sqlite:",
        "sqlite://environments.sqlite",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///environments.sqlite?mode=memory",
        "sqlite:///environments.sqlite?cache=shared",
        "sqlite:///a%00b",
    ],
)
def test_a_wrong_url_is_one_line_that_shows_right_ones_and_no_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_database(url)
    text = str(caught.value)
    assert "\n" not in text
    assert "postgresql://user:password@host:5432/database" in text
    assert "secret" not in text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://user:secret@host/database", "postgresql://user:***@host/database"),
        ("postgresql://user:se:cr@et@host/database", "postgresql://user:***@host/database"),
        ("postgresql://user:se/cr@host/database", "postgresql://***@host/database"),
        (
            "postgresql://user@host/database?password=secret&sslmode=require",
            "postgresql://user@host/database?password=***&sslmode=require",
        ),
        ("postgresql:user:secret@host/database", "postgresql:***@host/database"),
        ("postgresql://host/database", "postgresql://host/database"),
        ("sqlite:///data/environments.sqlite", "sqlite:///data/environments.sqlite"),
    ],
)
def test_a_password_is_never_shown(url: str, shown: str) -> None:
    assert masked(url) == shown


@pytest.mark.parametrize(
    ("query", "reads"),
    [
        ("SELECT 1", True),
        ("  select id from environments -- delete\n", True),
        ("/* note */ WITH a AS (SELECT 1) SELECT * FROM a", True),
        ("SELECT 'insert into'", True),
        ('SELECT "update" FROM t', True),
        ("VALUES (1)", True),
        ("WITH gone AS (DELETE FROM t RETURNING id) SELECT * FROM gone", False),
        ("SELECT id INTO copy FROM t", False),
        ("INSERT INTO t VALUES (1) RETURNING id", False),
        ("UPDATE t SET a = 1", False),
        ("CREATE TABLE t (id int)", False),
        ("PRAGMA journal_mode = WAL", False),
        ("", False),
    ],
)
def test_only_what_surely_reads_may_run_twice(query: str, reads: bool) -> None:
    assert is_read(query) is reads


@pytest.mark.parametrize(
    ("query", "changes"),
    [
        ("INSERT INTO t VALUES (1) RETURNING id", True),
        (" -- why\n update t SET a = 1", True),
        ("DELETE FROM t", True),
        ("WITH gone AS (SELECT 1) DELETE FROM t", True),
        ("WITH a AS (SELECT 1) SELECT * FROM a", False),
        ("SELECT 1", False),
        ("PRAGMA journal_mode = WAL", False),
        ("CREATE TABLE t (id int)", False),
        ("VACUUM INTO 'file'", False),
        ("", False),
    ],
)
def test_changes_of_rows_are_told_from_all_else(query: str, changes: bool) -> None:
    assert changes_rows(query) is changes


@pytest.mark.parametrize(("tag", "count"), [("UPDATE 3", 3), ("INSERT 0 1", 1), ("CREATE TABLE", 0), ("", 0)])
def test_a_command_tag_tells_the_rows(tag: str, count: int) -> None:
    assert touched_rows(tag) == count
