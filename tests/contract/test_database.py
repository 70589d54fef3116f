"""What the store may rely on, held by both adapters on real databases."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest

from services.environments_store.database.base import Database, Dialect
from services.environments_store.database.connect import open_database
from services.environments_store.defaults import DatabaseSettings
from services.environments_store.errors import (
    DatabaseError,
    DatabaseReadOnlyError,
    DatabaseRefusedError,
    DatabaseUnavailableError,
    DatabaseValueError,
    MissingColumnError,
)
from tests.support.postgres import PostgresDatabase

pytestmark = pytest.mark.anyio

SETTINGS = DatabaseSettings(pool_size=4, reader_count=3, sqlite_busy_timeout_s=0.2)
DOCUMENT = '{"b":1e+21,  "a":"it\'s é 😀","b":2}'


@pytest.fixture(params=["postgresql", "sqlite"])
def dialect(request: pytest.FixtureRequest) -> Dialect:
    name: Dialect = request.param
    return name


@pytest.fixture
def url(dialect: Dialect, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if dialect == "sqlite":
        return f"sqlite:///{tmp_path / 'contract.sqlite'}"
    database: PostgresDatabase = request.getfixturevalue("postgres_database")
    return database.url


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    database = open_database(url, SETTINGS)
    await database.open()
    await database.execute("CREATE TABLE items (id VARCHAR(255) PRIMARY KEY, body JSON, number INTEGER)")
    yield database
    await database.close()


async def fill(database: Database, count: int) -> None:
    async with database.transaction() as transaction:
        for number in range(count):
            await transaction.execute("INSERT INTO items (id, number) VALUES ($1, $2)", f"item-{number:04}", number)


async def ids(database: Database) -> list[str]:
    return [row["id"] for row in await database.fetch("SELECT id FROM items ORDER BY id")]


async def test_the_dialect_is_that_of_the_url(database: Database, dialect: Dialect) -> None:
    assert database.dialect == dialect


async def test_values_come_back_by_name_and_by_position_as_they_went_in(database: Database) -> None:
    await database.execute("INSERT INTO items (number, body, id) VALUES ($3, $2, $1)", "one", DOCUMENT, 7)
    row = await database.fetch_one("SELECT id, body, number FROM items WHERE id = $1", "one")
    assert row is not None
    assert (row["id"], row[1], row["number"]) == ("one", DOCUMENT, 7)


async def test_a_placeholder_may_be_used_twice(database: Database) -> None:
    await database.execute("INSERT INTO items (id, number) VALUES ($1, $2)", "one", 1)
    row = await database.fetch_one(
        "UPDATE items SET number = $2 WHERE id = $1 AND number <> $2 RETURNING number", "one", 2
    )
    assert row is not None
    assert row["number"] == 2


async def test_no_row_is_none(database: Database) -> None:
    assert await database.fetch_one("SELECT id FROM items") is None
    assert await database.fetch("SELECT id FROM items") == []


async def test_a_write_tells_how_many_rows_it_touched(database: Database) -> None:
    assert await database.execute("INSERT INTO items (id) VALUES ($1), ($2)", "one", "two") == 2
    assert await database.execute("UPDATE items SET number = 1 WHERE id = $1", "none") == 0
    assert await database.execute("DELETE FROM items") == 2


async def test_a_write_that_returns_rows_is_committed(database: Database, url: str) -> None:
    row = await database.fetch_one("INSERT INTO items (id) VALUES ($1) ON CONFLICT DO NOTHING RETURNING id", "one")
    assert row is not None
    other = open_database(url, SETTINGS)
    await other.open()
    assert await ids(other) == ["one"]
    again = await other.fetch_one("INSERT INTO items (id) VALUES ($1) ON CONFLICT DO NOTHING RETURNING id", "one")
    assert again is None
    await other.close()


async def test_a_transaction_is_committed_at_its_end_and_not_seen_before(database: Database) -> None:
    async with database.transaction() as transaction:
        await transaction.execute("INSERT INTO items (id) VALUES ($1)", "one")
        assert await transaction.fetch_one("SELECT id FROM items") is not None
        assert await ids(database) == []
    assert await ids(database) == ["one"]


async def test_a_transaction_that_raises_is_rolled_back(database: Database) -> None:
    async def fail() -> None:
        async with database.transaction() as transaction:
            await transaction.execute("INSERT INTO items (id) VALUES ($1)", "one")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await ids(database) == []
    await fill(database, 1)


async def test_a_transaction_whose_statement_failed_is_rolled_back(database: Database) -> None:
    async def fail() -> None:
        async with database.transaction() as transaction:
            await transaction.execute("INSERT INTO items (id) VALUES ($1)", "one")
            await transaction.execute("INSERT INTO items (id) VALUES ($1)", "one")

    with pytest.raises(DatabaseRefusedError):
        await fail()
    assert await ids(database) == []


async def test_a_cancelled_transaction_is_rolled_back(database: Database) -> None:
    with anyio.CancelScope() as scope:
        async with database.transaction() as transaction:
            await transaction.execute("INSERT INTO items (id) VALUES ($1)", "one")
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert await ids(database) == []
    await fill(database, 1)


async def test_cancelled_calls_leave_the_pool_whole(database: Database, dialect: Dialect) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1000000000) SELECT count(*) FROM n"
    slow = {"postgresql": "SELECT pg_sleep(60)", "sqlite": endless}[dialect]
    for _ in range(3):
        with anyio.move_on_after(0.05):
            async with anyio.create_task_group() as group:
                for _ in range(SETTINGS.pool_size):
                    group.start_soon(database.fetch, slow)
    with anyio.fail_after(30):
        assert await ids(database) == []
        await fill(database, 3)


async def test_concurrent_transactions_do_not_mix(database: Database) -> None:
    await database.execute("INSERT INTO items (id, number) VALUES ($1, $2)", "counter", 0)
    lock = {"postgresql": " FOR UPDATE", "sqlite": ""}[database.dialect]

    async def count() -> None:
        async with database.transaction() as transaction:
            row = await transaction.fetch_one(f"SELECT number FROM items WHERE id = $1{lock}", "counter")
            assert row is not None
            await anyio.lowlevel.checkpoint()
            await transaction.execute("UPDATE items SET number = $1 WHERE id = $2", row["number"] + 1, "counter")

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(count)
    row = await database.fetch_one("SELECT number FROM items")
    assert row is not None
    assert row["number"] == 20


async def test_a_stream_gives_one_snapshot_in_batches(database: Database) -> None:
    await fill(database, 25)
    seen: list[str] = []
    sizes: list[int] = []
    async with database.stream("SELECT id FROM items ORDER BY id", batch=10) as batches:
        async for batch in batches:
            sizes.append(len(batch))
            seen += [row["id"] for row in batch]
            if len(seen) == 10:
                await database.execute("DELETE FROM items WHERE number > $1", 15)
    assert sizes == [10, 10, 5]
    assert seen == [f"item-{number:04}" for number in range(25)]


async def test_a_stream_can_be_left_early_and_blocks_nobody(database: Database) -> None:
    await fill(database, 50)
    for _ in range(SETTINGS.pool_size * 2):
        async with database.stream("SELECT id FROM items WHERE number >= $1 ORDER BY id", 0, batch=5) as batches:
            async for _ in batches:
                await database.execute("UPDATE items SET number = number + 1 WHERE id = $1", "item-0049")
                break
    row = await database.fetch_one("SELECT number FROM items WHERE id = $1", "item-0049")
    assert row is not None
    assert row["number"] == 49 + SETTINGS.pool_size * 2


async def test_streams_leave_a_connection_for_short_reads(database: Database) -> None:
    await fill(database, 20)
    opened = 0
    enough = anyio.Event()

    async def stream() -> None:
        nonlocal opened
        async with database.stream("SELECT id FROM items", batch=1) as batches:
            async for _ in batches:
                opened += 1
                if opened == SETTINGS.reader_count - 1:
                    enough.set()
                await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        for _ in range(SETTINGS.reader_count):
            group.start_soon(stream)
        await enough.wait()
        with anyio.fail_after(10):
            assert len(await ids(database)) == 20
        group.cancel_scope.cancel()


async def test_streams_that_nobody_reads_on_leave_connections_for_the_others_and_are_refused_in_time(url: str) -> None:
    settings = DatabaseSettings(pool_size=4, reader_count=4, acquire_timeout_s=0.1)
    database = open_database(url, settings)
    await database.open()
    try:
        async with AsyncExitStack() as stalled:
            for _ in range(2):
                batches = await stalled.enter_async_context(database.stream("SELECT 1", batch=1, paced=True))
                assert await anext(batches)
            with pytest.raises(DatabaseUnavailableError, match="no connection became free in time"):
                await stalled.enter_async_context(database.stream("SELECT 1", batch=1, paced=True))
            async with database.stream("SELECT 1", batch=1) as batches:
                assert await anext(batches)
                assert await database.fetch("SELECT 1")
        async with database.stream("SELECT 1", batch=1, paced=True) as batches:
            assert await anext(batches)
    finally:
        await database.close()


@pytest.mark.parametrize(
    "query",
    [
        "SELECT nope FROM items",
        "UPDATE items SET nope = 1",
        "INSERT INTO items (nope) VALUES (1)",
        "SELECT 1 FROM nope",
    ],
)
async def test_what_a_query_misses_is_a_missing_column(query: str, database: Database) -> None:
    with pytest.raises(MissingColumnError) as caught:
        await database.fetch(query)
    assert "nope" in str(caught.value)


async def test_a_refused_query_tells_the_databases_own_code(database: Database, dialect: Dialect) -> None:
    await fill(database, 1)
    with pytest.raises(DatabaseRefusedError) as caught:
        await database.execute("INSERT INTO items (id) VALUES ($1)", "item-0000")
    assert caught.value.sqlstate == {"postgresql": "23505", "sqlite": "SQLITE_CONSTRAINT_PRIMARYKEY"}[dialect]
    with pytest.raises(DatabaseError):
        await database.fetch("SELECT FROM WHERE")


async def test_text_that_no_database_can_hold_is_a_refused_query(database: Database) -> None:
    with pytest.raises(DatabaseValueError):
        await database.execute("INSERT INTO items (id) VALUES ($1)", "\ud800")
    assert await ids(database) == []


async def test_a_closed_database_is_unavailable_and_can_be_opened_again(database: Database) -> None:
    await database.close()
    await database.close()
    with pytest.raises(DatabaseUnavailableError):
        await database.fetch("SELECT id FROM items")
    with pytest.raises(DatabaseUnavailableError):
        await database.execute("DELETE FROM items")
    await database.open()
    assert await ids(database) == []


async def test_refresh_keeps_queries_working_across_a_change_of_the_table(database: Database) -> None:
    await fill(database, 1)
    await database.execute("ALTER TABLE items ADD COLUMN moment TEXT")
    await database.refresh()
    row = await database.fetch_one("UPDATE items SET moment = $1 RETURNING moment", "now")
    assert row is not None
    assert row["moment"] == "now"


async def test_documents_keep_every_byte(database: Database) -> None:
    large = json.dumps({"body": "xé😀" * 50_000}, ensure_ascii=False)
    for name, text in (("small", DOCUMENT), ("large", large)):
        await database.execute("INSERT INTO items (id, body) VALUES ($1, $2)", name, text)
        row = await database.fetch_one("SELECT body FROM items WHERE id = $1", name)
        assert row is not None
        assert row["body"] == text


async def test_writes_to_what_only_reads_are_told_apart(
    dialect: Dialect, url: str, database: Database, request: pytest.FixtureRequest
) -> None:
    if dialect == "sqlite":
        reading = open_database(f"{url}?mode=ro", SETTINGS)
    else:
        server: PostgresDatabase = request.getfixturevalue("postgres_database")
        role = server.create_role(options="IN ROLE pg_write_all_data, pg_read_all_data")
        server.run_sql(f'ALTER ROLE "{server.role_name(role)}" SET default_transaction_read_only = on')
        reading = open_database(role, SETTINGS)
    await reading.open()
    assert await ids(reading) == []
    with pytest.raises(DatabaseReadOnlyError):
        await reading.execute("DELETE FROM items")
    await reading.close()


async def test_a_moment_is_stored_in_the_originals_form(database: Database, dialect: Dialect) -> None:
    moment = datetime(2025, 5, 27, 8, 54, 47, 123456, tzinfo=UTC)
    kind = {"postgresql": "TIMESTAMPTZ", "sqlite": "DATETIME"}[dialect]
    await database.execute(f"CREATE TABLE moments (moment {kind})")
    row = await database.fetch_one("INSERT INTO moments VALUES ($1) RETURNING moment", moment)
    assert row is not None
    assert row["moment"] == {"postgresql": moment, "sqlite": "2025-05-27 08:54:47.123 +00:00"}[dialect]
