"""The SQLite pool when the file is busy, full, read-only, or no database at all."""

import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest

from services.environments_store.database.sqlite import SqliteDatabase
from services.environments_store.defaults import DatabaseSettings
from services.environments_store.errors import DatabaseError, DatabaseUnavailableError, OutcomeUnknownError
from services.environments_store.queries.sqlite import SQLITE
from services.environments_store.schema.check import look

pytestmark = pytest.mark.anyio

SETTINGS = DatabaseSettings(reader_count=2, sqlite_busy_timeout_s=0.1, sqlite_wal_timeout_s=0.2)
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1000000000) SELECT count(*) FROM n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "items.sqlite"


@pytest.fixture
async def database(path: Path) -> AsyncIterator[SqliteDatabase]:
    database = SqliteDatabase(path, SETTINGS)
    await database.open()
    await database.execute("CREATE TABLE items (id TEXT PRIMARY KEY, body TEXT)")
    yield database
    await database.close()


@pytest.fixture
def other(path: Path) -> Iterator[sqlite3.Connection]:
    """Another process's connection, as far as SQLite can tell."""
    connection = sqlite3.connect(path, isolation_level=None)
    yield connection
    connection.close()


async def pragma(database: SqliteDatabase, name: str) -> object:
    rows = await database.fetch(f"PRAGMA {name}")
    return rows[0][0]


async def test_an_acknowledged_write_is_on_the_disk(database: SqliteDatabase) -> None:
    assert await pragma(database, "journal_mode") == "wal"
    assert await pragma(database, "synchronous") == 2  # FULL


async def test_a_slow_read_delays_neither_a_write_nor_another_read(database: SqliteDatabase) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(database.fetch, ENDLESS)
        await anyio.wait_all_tasks_blocked()
        assert await database.execute("INSERT INTO items (id) VALUES ($1)", "one") == 1
        assert len(await database.fetch("SELECT id FROM items")) == 1
        group.cancel_scope.cancel()


def resident() -> int:
    """The bytes of memory that this process takes now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_a_connection_keeps_no_document_that_it_has_given(database: SqliteDatabase) -> None:
    size = 40_000_000  # so large that its memory goes back to the system at once
    columns = "id, environment, environmentUuid, timestamp, createdAt, updatedAt, deletedAt"
    await database.execute(f"CREATE TABLE environments ({columns})")
    row = "$1, $2, $1, 1, $1, $1, NULL"
    for id, document in (("1", "x" * size), ("2", "{}"), ("3", "{}")):
        await database.execute(f"INSERT INTO environments VALUES ({row})", id, document)
    await database.fetch("SELECT id FROM environments")
    before = resident()
    assert len((await database.fetch(SQLITE.get, "1"))[0]["environment"]) == size
    assert resident() - before < size / 2
    seen = 0
    async with database.stream(SQLITE.listing.first, -1, batch=1, documents=SQLITE.documents) as batches:
        async for rows in batches:
            seen += len(rows[0]["environment"])
            rows = ()
            if seen > size:  # the first document was followed by another
                assert resident() - before < size / 2
    assert seen == size + 4


async def test_a_file_that_somebody_else_writes_is_a_retryable_error_and_nothing_is_stored(
    database: SqliteDatabase, other: sqlite3.Connection
) -> None:
    async def write() -> None:
        async with database.transaction() as transaction:
            await transaction.execute("INSERT INTO items (id) VALUES ($1)", "one")

    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseUnavailableError, match="locked") as caught:
        await database.execute("INSERT INTO items (id) VALUES ($1)", "one")
    assert caught.value.retryable
    assert not isinstance(caught.value, OutcomeUnknownError)
    with pytest.raises(DatabaseUnavailableError, match="locked"):
        await write()
    assert await database.fetch("SELECT id FROM items") == []
    other.execute("ROLLBACK")
    await write()


async def test_m34_a_full_disk_is_a_retryable_error_and_nothing_is_stored(database: SqliteDatabase) -> None:
    # The limit on pages fails as a full disk does.
    await database.fetch("PRAGMA max_page_count = 5")

    async def write() -> None:
        async with database.transaction() as transaction:
            await transaction.execute("INSERT INTO items (id) VALUES ($1)", "small")
            await transaction.execute("INSERT INTO items (id, body) VALUES ($1, $2)", "large", "x" * 100_000)

    with pytest.raises(DatabaseUnavailableError, match="disk is full"):
        await write()
    assert await database.fetch("SELECT id FROM items") == []
    assert await database.execute("INSERT INTO items (id) VALUES ($1)", "small") == 1


async def test_without_a_moment_alone_the_file_keeps_its_journal_mode_and_serves(
    path: Path, other: sqlite3.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    other.execute("CREATE TABLE items (id TEXT PRIMARY KEY)")
    other.execute("BEGIN")
    other.execute("SELECT * FROM items").fetchall()
    database = SqliteDatabase(path, SETTINGS)
    with caplog.at_level(logging.WARNING):
        await database.open()
    assert await pragma(database, "journal_mode") == "delete"
    assert "stays in its journal mode" in caplog.text
    other.execute("ROLLBACK")
    assert await database.execute("INSERT INTO items VALUES ($1)", "one") == 1
    await database.close()


async def test_a_file_that_is_no_database_is_told_with_its_path(letter: Path) -> None:
    database = SqliteDatabase(letter, SETTINGS)
    with pytest.raises(DatabaseError, match="is not a SQLite database"):
        await database.open()
    with pytest.raises(DatabaseUnavailableError, match="not open"):
        await database.fetch("SELECT 1")


@pytest.fixture
def letter(tmp_path: Path) -> Path:
    path = tmp_path / "letter"
    path.write_text("Dear database, I am a letter and nothing else, and I am long enough to be read as a page.\n" * 20)
    return path


async def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "a" / "b" / "items.sqlite", SETTINGS)
    await database.open()
    await database.close()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a"]  # noqa: ASYNC240 # one look at the test's folder


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + "/items.sqlite"])
async def test_a_name_that_no_file_can_have_is_told_with_the_reason(name: str, tmp_path: Path) -> None:
    for read_only in (False, True):
        database = SqliteDatabase(tmp_path / name, SETTINGS, read_only=read_only)
        with pytest.raises(DatabaseUnavailableError, match="File name too long"):
            await database.open()
    with pytest.raises(DatabaseUnavailableError, match="File name too long"):
        await look(f"sqlite:///{tmp_path / name}")


async def test_a_missing_file_is_not_made_to_be_read(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "items.sqlite", SETTINGS, read_only=True)
    with pytest.raises(DatabaseUnavailableError, match="does not exist"):
        await database.open()
    assert not list(tmp_path.iterdir())  # noqa: ASYNC240 # one look at the test's folder
