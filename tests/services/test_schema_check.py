"""What `migrate check` finds and what `migrate sql` prints, on real databases."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from services.environments_store.errors import ConfigError, DatabaseError, DatabaseUnavailableError
from services.environments_store.schema.check import Report, check
from services.environments_store.schema.migrator import migrate_once
from services.environments_store.schema.sql import script
from tests.support.postgres import PostgresDatabase
from tests.support.postgres_pooler import PostgresPooler
from tests.support.shapes import SQLITE_SHAPES, Lines, make_sqlite, postgres_sql

pytestmark = pytest.mark.anyio


@pytest.fixture
def lines(request: pytest.FixtureRequest) -> Iterator[Lines]:
    handler = Lines(request.node.name)
    yield handler
    handler.logger.removeHandler(handler)


def subjects(report: Report) -> list[str]:
    return [finding.subject for finding in report.findings]


def missing(report: Report) -> list[str]:
    return [step.name for step in report.steps if step.state != "done"]


async def test_a_pending_column_and_who_blocks_it_now(postgres_database: PostgresDatabase) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    reader = await asyncpg.connect(postgres_database.url, server_settings={"application_name": "pg_dump"})
    try:
        async with reader.transaction():
            await reader.fetchval("SELECT count(*) FROM environments")
            report = await check(postgres_database.url)
    finally:
        await reader.close()
    assert report.pending
    assert missing(report) == ["column", "index"]
    assert subjects(report) == ["blocker"]
    assert "(pg_dump) holds AccessShareLock" in report.findings[0].message
    assert report.table == "public.environments"
    assert "superuser-password" not in report.database


async def test_a_finished_database_has_nothing_to_report(postgres_database: PostgresDatabase, lines: Lines) -> None:
    await migrate_once(postgres_database.url, logger=lines.logger)
    report = await check(postgres_database.url)
    assert not report.pending
    assert (missing(report), report.findings) == ([], ())


async def test_a_check_changes_nothing(postgres_database: PostgresDatabase) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    log = postgres_database.log()
    await check(postgres_database.url)
    assert postgres_database.log() == log


@pytest.mark.parametrize(
    ("shape", "expected", "pending"),
    [
        ("p_low", ["twin"], True),
        ("p_low_and_right", ["twin"], True),
        ("p_man", ["timestamp"], True),  # its new index has brought a row count, but nobody has analysed the column
        ("p_inv", ["index"], True),
        ("p_odd_view", ["unsupported", "index"], True),
        ("p_odd_partitioned", ["unsupported", "index"], True),
        ("p_none", [], True),
    ],
)
async def test_every_odd_shape_is_named(
    shape: str, expected: list[str], pending: bool, postgres_database: PostgresDatabase
) -> None:
    postgres_database.run_sql(postgres_sql(shape))
    report = await check(postgres_database.url)
    assert subjects(report) == expected
    assert report.pending == pending


async def test_the_remedy_for_a_timestamp_makes_it_a_timestamptz_with_the_same_moments(
    postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_man"))
    remedy = (await check(postgres_database.url)).findings[0].remedy or ""
    statements = remedy.removeprefix("To change it, run: ").partition("; then")[0]
    postgres_database.run_sql(f"SET TimeZone = 'Asia/Bangkok'; {statements}")
    moment = 'SELECT "deletedAt" AT TIME ZONE \'UTC\' FROM environments WHERE "deletedAt" IS NOT NULL'
    assert postgres_database.run_sql(moment) == "2025-05-27 08:54:47.123"
    status = await migrate_once(postgres_database.url, logger=lines.logger)
    assert status.deleted_at_zone
    assert not (await check(postgres_database.url)).pending


async def test_missing_rights_come_with_the_grants_that_give_them(
    postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    url = postgres_database.create_role()
    report = await check(url)
    assert report.pending
    assert subjects(report) == ["forbidden", "rights", "index"]
    rights = next(finding for finding in report.findings if finding.subject == "rights")
    postgres_database.run_sql((rights.remedy or "").removeprefix("As its owner run: "))
    postgres_database.run_sql(script("postgresql"))
    report = await check(url)
    assert not report.pending
    assert report.findings == ()


async def test_row_security_is_not_taken_for_an_empty_table(postgres_database: PostgresDatabase) -> None:
    postgres_database.run_sql(postgres_sql("p_dnew"))
    postgres_database.run_sql("ALTER TABLE environments ENABLE ROW LEVEL SECURITY")
    url = postgres_database.create_role()
    postgres_database.run_sql(f'GRANT ALL ON environments TO "{postgres_database.role_name(url)}"')
    report = await check(url)
    assert subjects(report) == ["row-security"]
    assert report.pending


async def test_a_read_only_database_and_a_pooler_are_named(postgres_database: PostgresDatabase, lines: Lines) -> None:
    await migrate_once(postgres_database.url, logger=lines.logger)
    postgres_database.run_sql(f'ALTER DATABASE "{postgres_database.name}" SET default_transaction_read_only = on')
    async with PostgresPooler(postgres_database.url).running() as proxy:
        report = await check(proxy.url)
    assert subjects(report) == ["read-only", "pooler"]


async def test_no_server_and_no_database_url_are_told_apart() -> None:
    with pytest.raises(DatabaseUnavailableError):
        await check("postgresql://user:secret@127.0.0.1:1/none")
    with pytest.raises(ConfigError):
        await check("mysql://127.0.0.1/none")


@pytest.mark.parametrize("shape", ["p_a", "p_c", "p_dnew", "p_half"])
async def test_the_printed_sql_brings_postgresql_to_where_nothing_is_missing(
    shape: str, postgres_database: PostgresDatabase
) -> None:
    postgres_database.run_sql(postgres_sql(shape))
    text = script("postgresql")
    if shape == "p_dnew":
        # Its index is there under the right name: the script says so by an error, and everything stays as it was.
        text = text.replace("CREATE INDEX CONCURRENTLY", "CREATE INDEX CONCURRENTLY IF NOT EXISTS")
    shown = postgres_database.run_sql(text)
    assert "deletedAt|timestamp with time zone" in shown
    assert "environments_deleted_at_idx|t" in shown
    assert not (await check(postgres_database.url)).pending


async def test_the_printed_sql_brings_sqlite_to_where_nothing_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "environments.sqlite"
    make_sqlite("s_b2", path)
    connection = sqlite3.connect(path)
    connection.executescript(script("sqlite"))
    connection.close()
    assert not (await check(f"sqlite:///{path}")).pending


@pytest.mark.parametrize("shape", SQLITE_SHAPES)
async def test_a_check_of_a_file_names_what_is_missing_and_changes_nothing(shape: str, tmp_path: Path) -> None:
    path = tmp_path / "environments.sqlite"
    make_sqlite(shape, path)
    before = sqlite3.connect(path)
    text = list(before.iterdump())
    before.close()

    report = await check(f"sqlite:///{path}")

    expected = {
        "s_b1": ["column", "index"],
        "s_b2": ["column", "index"],
        "s_wal": ["column", "index"],
        "s_noidx": ["index"],
        "s_none": ["table", "column", "index"],
        "s_d1": ["statistics"],
        "s_d2": ["statistics"],
        "s_man": ["statistics"],
        "s_crash_3": ["leftovers", "table", "column", "index"],
    }
    assert missing(report) == expected.get(shape, ["leftovers", "column", "index"])
    assert ("leftover" in subjects(report)) == ("crash" in shape)
    after = sqlite3.connect(path)
    assert list(after.iterdump()) == text
    after.close()


async def test_a_check_makes_no_file(tmp_path: Path) -> None:
    report = await check(f"sqlite:///{tmp_path / 'new' / 'environments.sqlite'}")
    assert missing(report) == ["table", "column", "index"]
    assert not list(tmp_path.iterdir())  # noqa: ASYNC240 # one look at a folder of the test


async def test_a_check_of_no_database_says_so(letter: Path) -> None:
    with pytest.raises(DatabaseError, match="is not a SQLite database"):
        await check(f"sqlite:///{letter}")


@pytest.fixture
def letter(tmp_path: Path) -> Path:
    path = tmp_path / "letter"
    path.write_text("Dear database, I am a letter and nothing else, and I am long enough to be read as a page.\n" * 20)
    return path
