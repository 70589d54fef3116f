"""The PostgreSQL pool when connections die, servers restart, poolers stand between and zones differ."""

import gc
from collections.abc import AsyncIterator, Callable

import anyio
import anyio.lowlevel
import asyncpg
import msgspec
import pytest

from services.environments_store.database.failures import service_errors
from services.environments_store.database.postgres import PostgresDatabase
from services.environments_store.database.postgres_session import PostgresSession, _name_left_out, driver_failures
from services.environments_store.defaults import DatabaseSettings
from services.environments_store.errors import (
    DatabaseError,
    DatabaseReadOnlyError,
    DatabaseRefusedError,
    DatabaseUnavailableError,
    OutcomeUnknownError,
)
from tests.support.postgres import PostgresDatabase as ServerDatabase
from tests.support.postgres import PostgresServer
from tests.support.postgres_pooler import PostgresPooler
from tests.support.postgres_proxy import PostgresProxy
from tests.support.shapes import until

pytestmark = pytest.mark.anyio

SETTINGS = DatabaseSettings(pool_size=3, acquire_timeout_s=1, connect_timeout_s=5)
INSERT = "INSERT INTO items (id) VALUES ($1) RETURNING id"


@pytest.fixture
async def database(postgres_database: ServerDatabase) -> AsyncIterator[PostgresDatabase]:
    postgres_database.run_sql("CREATE TABLE items (id text PRIMARY KEY, moment timestamptz)")
    database = PostgresDatabase(postgres_database.url, SETTINGS)
    await database.open()
    yield database
    await database.close()


async def own_pid(database: PostgresDatabase) -> int:
    row = await database.fetch_one("SELECT pg_backend_pid() AS pid")
    assert row is not None
    pid: int = row["pid"]
    return pid


async def setting(database: PostgresDatabase, name: str) -> str:
    row = await database.fetch_one("SELECT current_setting($1) AS value", name)
    assert row is not None
    value: str = row["value"]
    return value


async def test_connections_have_the_settings_that_bound_every_wait(database: PostgresDatabase) -> None:
    assert await setting(database, "TimeZone") == "UTC"
    assert await setting(database, "statement_timeout") == "15s"
    assert await setting(database, "lock_timeout") == "5s"
    assert await setting(database, "idle_in_transaction_session_timeout") == "10s"
    assert await setting(database, "client_connection_check_interval") == "500ms"


async def test_a_write_waits_for_another_and_sees_its_work_whatever_isolation_the_role_has_by_default(
    database: PostgresDatabase, postgres_database: ServerDatabase
) -> None:
    await database.execute(INSERT, "one")
    name = postgres_database.name
    postgres_database.run_sql(f"ALTER DATABASE \"{name}\" SET default_transaction_isolation = 'serializable'")
    other = PostgresDatabase(postgres_database.url, SETTINGS)
    await other.open()
    changed: list[int] = []

    async def change() -> None:
        changed.append(await other.execute("UPDATE items SET moment = now() WHERE moment IS NULL"))

    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with anyio.create_task_group() as group, database.transaction() as transaction:
        await transaction.execute("UPDATE items SET moment = now() WHERE moment IS NULL")
        group.start_soon(change)
        await until(lambda: postgres_database.run_sql(waiting) == "1")
    assert changed == [0]
    await other.close()


async def test_connections_are_kept_between_statements_and_closed_when_idle(
    postgres_database: ServerDatabase,
) -> None:
    database = PostgresDatabase(postgres_database.url, msgspec.structs.replace(SETTINGS, idle_s=0.5))
    await database.open()
    async with anyio.create_task_group() as group:
        for _ in range(SETTINGS.pool_size):
            group.start_soon(database.fetch, "SELECT pg_sleep(0.05)")
    assert await own_pid(database) == await own_pid(database)
    ours = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name <> 'psql'"
    await until(lambda: postgres_database.run_sql(ours) == "0")
    assert await own_pid(database)
    await database.close()


async def test_a_read_survives_the_end_of_its_idle_connection(
    database: PostgresDatabase, postgres_database: ServerDatabase
) -> None:
    for _ in range(5):
        pid = await own_pid(database)
        postgres_database.run_sql(f"SELECT pg_terminate_backend({pid})")
        assert await own_pid(database) != pid


async def test_a_write_whose_connection_dies_under_it_has_an_unknown_outcome(
    database: PostgresDatabase, postgres_database: ServerDatabase
) -> None:
    async def write() -> None:
        with pytest.raises(OutcomeUnknownError):
            await database.execute("INSERT INTO items (id) SELECT 'one' FROM pg_sleep(60)")

    async with anyio.create_task_group() as group:
        group.start_soon(write)
        find = "FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
        await until(lambda: postgres_database.run_sql(f"SELECT count(*) {find}") == "1")
        postgres_database.run_sql(f"SELECT pg_terminate_backend(pid) {find}")
    assert await database.fetch("SELECT id FROM items") == []


async def test_a_write_that_was_done_but_not_answered_has_an_unknown_outcome(
    database: PostgresDatabase, postgres_database: ServerDatabase
) -> None:
    async with PostgresProxy(postgres_database.url).running() as proxy:
        through = PostgresDatabase(proxy.url, SETTINGS)
        await through.open()
        await through.fetch("SELECT 1")
        proxy.cut_answer = b"lost-answer"
        with pytest.raises(OutcomeUnknownError):
            await through.fetch_one(INSERT, "lost-answer")
        assert proxy.cut == 1
        rows = await through.fetch("SELECT id FROM items")
        assert [row["id"] for row in rows] == ["lost-answer"]
        await through.close()


async def test_a_commit_that_was_not_answered_has_an_unknown_outcome(
    database: PostgresDatabase, postgres_database: ServerDatabase
) -> None:
    async with PostgresProxy(postgres_database.url).running() as proxy:
        through = PostgresDatabase(proxy.url, SETTINGS)
        await through.open()

        async def write() -> None:
            async with through.transaction() as transaction:
                await transaction.execute(INSERT, "one")
                proxy.cut_answer = b"COMMIT"

        with pytest.raises(OutcomeUnknownError):
            await write()
        assert proxy.cut == 1
        await through.close()


@pytest.mark.parametrize("statement", ["fetch", "fetch_one", "execute"])
async def test_a_statement_after_its_transaction_was_ended_for_idling_is_refused_as_unavailable(
    statement: str, postgres_database: ServerDatabase
) -> None:
    settings = msgspec.structs.replace(SETTINGS, idle_in_transaction_timeout_s=0.05)
    database = PostgresDatabase(postgres_database.url, settings)

    async def wait_and_run() -> None:
        async with database.transaction() as transaction:
            connection = transaction._connection  # type: ignore[attr-defined]
            await until(lambda: "[released]" in repr(connection))
            await getattr(transaction, statement)("SELECT 1")

    try:
        with pytest.raises(DatabaseUnavailableError):
            await wait_and_run()
    finally:
        await database.close()


async def test_a_statement_lost_before_the_commit_stored_nothing(
    database: PostgresDatabase, postgres_database: ServerDatabase
) -> None:
    async def write() -> None:
        async with database.transaction() as transaction:
            await transaction.execute(INSERT, "one")
            row = await transaction.fetch_one("SELECT pg_backend_pid() AS pid")
            assert row is not None
            postgres_database.run_sql(f"SELECT pg_terminate_backend({row['pid']})")
            await transaction.execute(INSERT, "two")

    with pytest.raises(DatabaseUnavailableError) as caught:
        await write()
    assert not isinstance(caught.value, OutcomeUnknownError)
    assert await database.fetch("SELECT id FROM items") == []


async def test_a_busy_pool_says_so_instead_of_waiting_for_ever(postgres_database: ServerDatabase) -> None:
    database = PostgresDatabase(postgres_database.url, DatabaseSettings(pool_size=1, acquire_timeout_s=2))
    await database.open()
    async with database.transaction():
        with pytest.raises(DatabaseUnavailableError, match="no connection became free") as caught:
            await database.execute("CREATE TABLE never (id int)")
        assert not isinstance(caught.value, OutcomeUnknownError)
    await database.close()


async def test_writes_that_wait_for_a_synchronous_standby_leave_connections_to_reads() -> None:
    # The standby that commits have to wait for never comes.
    with PostgresServer(synchronous_standby_names="gone", synchronous_commit="on") as server:
        server.run_sql("SET synchronous_commit = local; CREATE TABLE items (id text PRIMARY KEY)")
        database = PostgresDatabase(server.admin_url, DatabaseSettings(pool_size=4, acquire_timeout_s=60))
        waiting = "SELECT count(*) AS n FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(database.fetch_one, INSERT, str(number))
            with anyio.fail_after(60):
                while (row := await database.fetch_one(waiting)) is None or row["n"] < 3:
                    pass  # each look is itself a read that found a connection
            assert await database.fetch("SELECT id FROM items") == []
            group.cancel_scope.cancel()
        await database.close()


async def test_a_row_that_somebody_locks_is_a_retryable_error(
    database: PostgresDatabase, postgres_database: ServerDatabase
) -> None:
    await database.execute(INSERT, "one")
    impatient = PostgresDatabase(postgres_database.url, DatabaseSettings(lock_timeout_s=0.05))
    await impatient.open()
    async with database.transaction() as transaction:
        await transaction.execute("UPDATE items SET moment = now()")
        with pytest.raises(DatabaseUnavailableError) as caught:
            await impatient.execute("UPDATE items SET moment = now()")
    assert caught.value.retryable
    assert not isinstance(caught.value, OutcomeUnknownError)
    await impatient.close()


async def test_a_server_that_goes_and_comes_back_costs_errors_only_while_it_is_away() -> None:
    with PostgresServer() as server:
        database = PostgresDatabase(server.admin_url, SETTINGS)
        await database.open()
        await database.execute("CREATE TABLE items (id text)")
        for stop in (server.stop, server.kill):
            await anyio.to_thread.run_sync(stop)
            for query in ("SELECT id FROM items", "DELETE FROM items"):
                with pytest.raises(DatabaseUnavailableError):
                    await database.fetch(query)
            await anyio.to_thread.run_sync(server.start)
            for _ in range(SETTINGS.pool_size * 2):
                assert await database.fetch("SELECT id FROM items") == []
        await database.close()


async def test_a_pool_that_was_opened_without_a_server_works_when_it_comes() -> None:
    with PostgresServer() as server:
        server.stop()
        database = PostgresDatabase(server.admin_url, SETTINGS)
        await database.open()
        with pytest.raises(DatabaseUnavailableError):
            await database.fetch("SELECT 1 AS one")
        await anyio.to_thread.run_sync(server.start)
        assert [row["one"] for row in await database.fetch("SELECT 1 AS one")] == [1]
        await database.close()


async def test_of_several_hosts_the_one_that_takes_writes_is_used() -> None:
    with PostgresServer(default_transaction_read_only="on") as reading, PostgresServer() as writing:
        both = writing.admin_url.replace("@127.0.0.1:", f"@127.0.0.1:{reading.port},127.0.0.1:")
        database = PostgresDatabase(both, SETTINGS)
        await database.open()
        await database.execute("CREATE TABLE items (id text)")
        await database.close()

        # With none that takes writes, reads are better than nothing.
        await anyio.to_thread.run_sync(writing.stop)
        await database.open()
        assert await setting(database, "transaction_read_only") == "on"
        with pytest.raises(DatabaseReadOnlyError):
            await database.execute("CREATE TABLE others (id text)")

        # Told to look again, the pool finds the one that takes writes.
        await anyio.to_thread.run_sync(writing.start)
        await database.refresh()
        assert await database.execute("INSERT INTO items VALUES ($1)", "one") == 1
        await database.close()


async def test_a_wrong_password_is_told_without_it(postgres_database: ServerDatabase) -> None:
    url = postgres_database.with_password(postgres_database.create_role(), "wrong-secret")
    database = PostgresDatabase(url, SETTINGS)
    await database.open()
    with pytest.raises(DatabaseUnavailableError, match="password authentication failed") as caught:
        await database.fetch("SELECT 1")
    assert "wrong-secret" not in str(caught.value)


@pytest.mark.parametrize("parameter", ["schemas=public", "ssl=true", "statement_timeout=soon"])
async def test_a_parameter_that_no_server_takes_is_told_and_not_waited_for(
    postgres_database: ServerDatabase, parameter: str
) -> None:
    database = PostgresDatabase(f"{postgres_database.url}?{parameter}", SETTINGS)
    await database.open()
    with pytest.raises(DatabaseError, match=rf'parameter.*"{parameter.partition("=")[0]}".*remove the invalid ones'):
        await database.fetch("SELECT 1")
    await database.close()


@pytest.mark.parametrize("parameter", ["options=-csearch_path%3Dapp", "schema=app", "schemas=public"])
async def test_a_parameter_that_a_pooler_refuses_is_told_in_the_same_words_and_not_waited_for(
    postgres_database: ServerDatabase, parameter: str
) -> None:
    async with PostgresPooler(postgres_database.url).running() as pooler:
        database = PostgresDatabase(f"{pooler.url}?{parameter}", SETTINGS)
        await database.open()
        with pytest.raises(
            DatabaseError, match=r"refused a connection: unsupported startup parameter.*remove the invalid"
        ):
            await database.fetch("SELECT 1")
        await database.close()


@pytest.mark.parametrize("behind_a_pooler", [False, True])
async def test_parameters_of_other_drivers_are_left_out_with_one_line(
    behind_a_pooler: bool, postgres_database: ServerDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    _name_left_out.cache_clear()
    parameters = "pgbouncer=true&connection_limit=1&schema=public&statement_cache_size=0"
    async with PostgresPooler(postgres_database.url).running() as pooler:
        url = pooler.url if behind_a_pooler else postgres_database.url
        database = PostgresDatabase(f"{url}?{parameters}", SETTINGS)
        await database.open()
        with caplog.at_level("INFO"):
            assert [row["one"] for row in await database.fetch("SELECT 1 AS one")] == [1]
        await database.close()
    [line] = [message for message in caplog.messages if "pgbouncer" in message]
    assert "pgbouncer, connection_limit, schema, statement_cache_size" in line


async def read_at_once(database: PostgresDatabase, calls: int) -> None:
    """Raises when one of so many concurrent reads fails."""
    async with anyio.create_task_group() as group:
        for _ in range(calls):
            group.start_soon(database.fetch, "SELECT pg_sleep(0.01)")


async def read_until_there_are(connections: int, database: PostgresDatabase, count: Callable[[], int]) -> None:
    """The server may refuse two connections that come at once where there is room for one, and the pool then waits
    before it asks again: it grows in a while, as long as there are calls."""
    with anyio.fail_after(60):
        while count() != connections:
            await read_at_once(database, 30)


async def session(url: str) -> PostgresSession:
    return await PostgresSession.connect(url, application_name="beside", connect_timeout_s=5, answer_timeout_s=5)


@pytest.mark.parametrize("limit", [1, 2, 4])
async def test_calls_share_the_connections_that_the_role_may_have(
    postgres_database: ServerDatabase, limit: int
) -> None:
    url = postgres_database.create_role(options=f"CONNECTION LIMIT {limit}")
    database = PostgresDatabase(url, DatabaseSettings(pool_size=10))
    try:
        for _ in range(3):
            await read_at_once(database, 30)
        if limit > 1:  # one is left for a command
            await (await session(url)).close()
    finally:
        await database.close()


async def test_calls_share_what_other_nodes_leave_and_use_more_when_there_is_more(
    postgres_database: ServerDatabase,
) -> None:
    url = postgres_database.create_role(options="CONNECTION LIMIT 6")
    role = postgres_database.role_name(url)

    def count() -> int:
        find = f"FROM pg_stat_activity WHERE usename = '{role}' AND state = 'idle'"  # without those being refused
        return int(postgres_database.run_sql(f"SELECT count(*) {find}"))

    others = [await session(url) for _ in range(4)]
    database = PostgresDatabase(url, DatabaseSettings(pool_size=10, full_pause_s=0.05))
    told: list[str] = []
    try:
        await database.fetch("SELECT 1")
        database.on_full = lambda: told.append("full")
        await read_until_there_are(6, database, count)
        assert told == []
        await others.pop().close()
        await until(lambda: count() == 5)
        await read_until_there_are(6, database, count)
    finally:
        await database.close()
        for other in others:
            await other.close()


async def test_a_call_waits_for_a_connection_where_other_nodes_have_all_of_them(
    postgres_database: ServerDatabase,
) -> None:
    url = postgres_database.create_role(options="CONNECTION LIMIT 2")
    others = [await session(url) for _ in range(2)]
    database = PostgresDatabase(url, DatabaseSettings(pool_size=10, full_pause_s=0.05))
    told = anyio.Event()
    database.on_full = told.set
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(read_at_once, database, 10)
            await told.wait()
            await others.pop().close()
    finally:
        await database.close()
        for other in others:
            await other.close()


async def test_connecting_may_be_cancelled_at_any_moment_without_a_complaint(postgres_database: ServerDatabase) -> None:
    """As by a node that stops right after its start. The test fails for what the event loop complains of."""

    async def use() -> None:
        session = await PostgresSession.connect(
            postgres_database.url, application_name="cancelled", connect_timeout_s=5, answer_timeout_s=5
        )
        await session.close()

    for moment in range(24):
        async with anyio.create_task_group() as group:
            group.start_soon(use)
            for _ in range(moment // 2):
                await anyio.lowlevel.cancel_shielded_checkpoint()
            group.cancel_scope.cancel()
    gc.collect()


async def test_works_through_a_transaction_pooler(postgres_database: ServerDatabase) -> None:
    async with PostgresPooler(postgres_database.url).running() as proxy:
        database = PostgresDatabase(proxy.url, SETTINGS)
        await database.open()
        assert await setting(database, "TimeZone") == "UTC"
        for number in range(10):
            row = await database.fetch_one("SELECT $1::int AS number", number)
            assert row is not None
            assert row["number"] == number
        prepared = await database.fetch("SELECT name FROM pg_prepared_statements WHERE name <> ''")
        assert prepared == []
        await database.close()


async def test_m29_idle_connections_hold_no_lock_that_a_migration_would_wait_for(
    database: PostgresDatabase, postgres_database: ServerDatabase
) -> None:
    for query in ("SELECT id FROM items", "SELECT id FROM items WHERE id = $1"):
        await database.fetch(query, *(["one"] if "$1" in query else []))
    await database.execute(INSERT, "one")
    async with database.stream("SELECT id FROM items", batch=1) as batches:
        async for _ in batches:
            break
    async with database.transaction() as transaction:
        await transaction.fetch("SELECT id FROM items")
    locks = "SELECT count(*) FROM pg_locks WHERE relation = 'items'::regclass"
    assert postgres_database.run_sql(locks) == "0"


async def test_a_changed_type_reaches_the_pool_by_refresh(
    database: PostgresDatabase, postgres_database: ServerDatabase
) -> None:
    update = "UPDATE items SET moment = now() WHERE id = $1 RETURNING moment"
    await database.execute(INSERT, "one")
    for _ in range(SETTINGS.pool_size):
        await database.fetch_one(update, "one")
    postgres_database.run_sql("ALTER TABLE items ALTER COLUMN moment TYPE timestamp")
    await database.refresh()
    async with database.transaction() as transaction:
        row = await transaction.fetch_one(update, "one")
    assert row is not None
    assert row["moment"].tzinfo is None


async def test_m27_a_transaction_on_a_plan_that_a_migration_made_stale_may_be_repeated(
    database: PostgresDatabase, postgres_database: ServerDatabase
) -> None:
    await database.execute(INSERT, "one")
    select = "SELECT id, moment FROM items"
    one_connection = PostgresDatabase(postgres_database.url, DatabaseSettings(pool_size=1))
    await one_connection.open()
    await one_connection.fetch(select)
    postgres_database.run_sql("ALTER TABLE items ALTER COLUMN moment TYPE timestamp")

    async def read() -> None:
        async with one_connection.transaction() as transaction:
            await transaction.fetch(select)

    with pytest.raises(DatabaseUnavailableError) as caught:
        await read()
    assert caught.value.retryable
    await read()
    await one_connection.close()


@pytest.mark.parametrize(
    ("query", "arguments"),
    [
        ("SELECT $1::int", ["no number"]),
        ("SELECT $1::int", []),
        ("SELECT $1::int", [2**40]),
        ("SELECT 1/0", []),
        ("SELECT pg_terminate_backend(pg_backend_pid())", []),
    ],
)
async def test_no_exception_of_the_driver_escapes(
    query: str, arguments: list[object], database: PostgresDatabase
) -> None:
    with pytest.raises((DatabaseError, DatabaseRefusedError, DatabaseUnavailableError)):
        await database.fetch(query, *arguments)
    assert await database.fetch("SELECT id FROM items") == []


@pytest.mark.parametrize("kind", [asyncpg.InternalClientError, asyncpg.InterfaceError])
async def test_the_driver_s_words_about_its_own_states_reach_no_caller(kind: type[Exception]) -> None:
    with pytest.raises(DatabaseUnavailableError) as caught, service_errors(write=True), driver_failures():
        raise kind("cannot switch to state 15; another operation (2) is in progress")
    assert "state" not in f"{caught.value} {caught.value.public}"
