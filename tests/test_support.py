"""The servers the tests rely on are what they claim to be."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import asyncpg
import nats
import nats.errors
import pytest

from broker import ServiceBroker
from tests.conftest import NatsServerFactory
from tests.support.nats_server import NatsServer
from tests.support.numbered import numbered_tests
from tests.support.postgres import PostgresDatabase, PostgresServer
from tests.support.processes import REPOSITORY, ProcessFailedError, start_python
from tests.support.servers import ServerFailedError, child_command
from tests.support.store_node import store_process

pytestmark = pytest.mark.anyio


async def test_a_nats_server_keeps_its_address_over_a_restart(nats_server: NatsServer) -> None:
    url = nats_server.url
    nats_server.kill()
    with pytest.raises(nats.errors.NoServersError):
        await nats.connect(url, allow_reconnect=False, max_reconnect_attempts=1)
    nats_server.start()
    client = await nats.connect(nats_server.url, allow_reconnect=False)
    await client.close()
    assert nats_server.url == url


async def test_a_nats_server_takes_options(make_nats_server: NatsServerFactory) -> None:
    client = await nats.connect(make_nats_server(max_payload=2048).url)
    assert client.max_payload == 2048
    await client.close()


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ServerFailedError, match="unknown field"):
        NatsServer(tmp_path, no_such_option=1).start()


async def test_each_test_has_an_empty_postgres_database(postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    assert await connection.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
    assert (await connection.fetchval("SHOW server_version")).startswith("18")
    await connection.execute("CREATE TABLE mine (a int)")
    await connection.close()


async def test_a_role_has_no_rights_but_those_given(postgres_database: PostgresDatabase) -> None:
    url = postgres_database.create_role("reader")
    postgres_database.run_sql("CREATE TABLE things (a int)")
    connection = await asyncpg.connect(url)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.fetch("SELECT * FROM things")
    postgres_database.run_sql(f'GRANT SELECT ON things TO "{postgres_database.role_name(url)}"')
    assert await connection.fetch("SELECT * FROM things") == []
    await connection.close()


async def test_a_wrong_password_is_refused(postgres_database: PostgresDatabase) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(postgres_database.with_password(postgres_database.url, "wrong"))


def test_the_log_shows_the_statements_of_one_database(postgres_database: PostgresDatabase) -> None:
    postgres_database.run_sql("CREATE TABLE told (a int)")
    assert "CREATE TABLE told" in postgres_database.log()
    assert f"db={postgres_database.name}" in postgres_database.log()


def test_the_next_test_gets_an_emptied_database_although_a_client_is_connected(postgres_server: PostgresServer) -> None:
    database = PostgresDatabase(postgres_server)
    database.run_sql("CREATE TABLE things (id serial PRIMARY KEY)")
    database.run_sql(f"ALTER DATABASE \"{database.name}\" SET TimeZone = 'Asia/Bangkok'")

    async def connect_and_drop() -> None:
        connection = await asyncpg.connect(database.url)
        await connection.execute("BEGIN; LOCK TABLE things")
        database.drop()
        connection.terminate()

    anyio.run(connect_and_drop)
    assert postgres_server.spare[-1] == database.name
    following = PostgresDatabase(postgres_server)
    assert following.run_sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'; SHOW TimeZone") == "0\nUTC"
    assert database.name not in postgres_server.spare
    following.drop()


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE VIEW v AS SELECT 1",
        "CREATE SCHEMA app",
        "CREATE PUBLICATION everything",
        "GRANT CREATE ON SCHEMA public TO PUBLIC",
        "REVOKE EXECUTE ON FUNCTION pg_sleep(double precision) FROM PUBLIC",
        "REVOKE SELECT ON pg_class FROM PUBLIC",
        "DO $$ BEGIN EXECUTE format('REVOKE CONNECT ON DATABASE %I FROM PUBLIC', current_database()); END $$",
    ],
)
def test_a_database_that_cannot_be_emptied_is_removed(postgres_server: PostgresServer, sql: str) -> None:
    database = PostgresDatabase(postgres_server)
    database.run_sql(sql)
    database.drop()
    assert database.name not in postgres_server.spare
    assert postgres_server.run_sql(f"SELECT count(*) FROM pg_database WHERE datname = '{database.name}'") == "0"


def test_a_server_ends_with_the_process_that_started_it() -> None:
    command = child_command([sys.executable, "-c", "print('up', flush=True); input()"])
    code = f"import subprocess; print(subprocess.Popen({command!r}).pid, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        lines = {starter.stdout.readline() for _ in range(2)}
        pid = int((lines - {b"up\n"}).pop())
        ended = os.pidfd_open(pid)
        starter.kill()
        assert select.select([ended], [], [], 30)[0] == [ended]
        os.close(ended)


async def test_a_process_is_heard_line_by_line() -> None:
    code = "import sys; print('ready'); name = input(); print('hello', name); print('done', file=sys.stderr)"
    async with start_python("-c", code) as process:
        assert await process.line("ready") == "ready"
        await process.write_line("Ada")
        assert await process.line("hello") == "hello Ada"
        assert await process.wait() == 0
        assert process.stderr == ["done"]


async def test_a_process_that_ends_early_shows_its_output() -> None:
    async with start_python("-c", "raise SystemExit('no such luck')") as process:
        with pytest.raises(ProcessFailedError, match="no such luck"):
            await process.line("ready")


async def test_no_process_outlives_its_block() -> None:
    async with start_python("-c", "import signal; print('up'); signal.pause()") as process:
        await process.line("up")
        pid = process.pid
    assert process.returncode == -signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_the_pid_of_a_warm_command_is_that_of_the_program(nats_server: NatsServer, tmp_path: Path) -> None:
    async with (
        store_process(f"sqlite:///{tmp_path / 'environments.sqlite'}", nats_server.url, "", "store") as process,
        ServiceBroker("caller", transporter=nats_server.url) as caller,
    ):
        await caller.wait_for_services("environments-store", timeout=60)
        health = await caller.call("$node.health", {}, node_id="store")
        assert process.pid == health["process"]["pid"]


def test_the_folder_of_a_killed_run_is_taken_away_by_the_next_one() -> None:
    code = """
import sys
from tests.support.numbered import numbered_tests
from tests.support.postgres import PostgresServer
server = PostgresServer()
print(server._folder, flush=True)
input()
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY) as killed:
        assert killed.stdout is not None
        folder = Path(killed.stdout.readline().decode().strip())
        PostgresServer().close()
        assert folder.exists(), "its run is under way"
        killed.kill()
    PostgresServer().close()
    assert not folder.exists()


def test_numbered_tests_are_found_by_reading(tmp_path: Path) -> None:
    (tmp_path / "interop").mkdir()
    (tmp_path / "interop" / "test_calls.py").write_text(
        "import a_module_that_is_not_there\n"
        "async def test_c41_c42_no_such_action() -> None: ...\n"
        "def test_c7_starts_later() -> None: ...\n"
        "def test_c7() -> None: ...\n"
        "def test_calls_m9_times() -> None: ...\n"
        "def helper_c8_of_tests() -> None: ...\n",
        encoding="utf-8",
    )
    (tmp_path / "test_m05_kills.py").write_text("def test_m05_kill() -> None: ...\n", encoding="utf-8")
    statements, scenarios = numbered_tests("c", tmp_path), numbered_tests("m", tmp_path)
    assert {number: [(test.file, test.name) for test in tests] for number, tests in statements.items()} == {
        7: [("interop/test_calls.py", "test_c7_starts_later")],
        41: [("interop/test_calls.py", "test_c41_c42_no_such_action")],
        42: [("interop/test_calls.py", "test_c41_c42_no_such_action")],
    }
    assert [test.name for test in scenarios.pop(5)] == ["test_m05_kill"]
    assert scenarios == {}
