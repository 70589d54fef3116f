"""The command `environments-store`, run as a user runs it."""

import json
import os
import pty
import signal
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from broker import ServiceBroker
from services.environments_store.database.location import masked
from services.environments_store.embedded import is_answering
from tests.conftest import NatsServerFactory
from tests.support.ports import free_port
from tests.support.postgres import PostgresDatabase
from tests.support.warm import warm_command

PROGRAM = "services.environments_store"
DEADLINE_S = 60.0
SETTINGS = ("NATS_URL", "DATABASE_URL", "NAMESPACE", "NODE_ID", "LOG_LEVEL", "LOG_FORMAT")
TABLE_WITHOUT = (
    "CREATE TABLE environments (id VARCHAR(255) PRIMARY KEY, environment JSON, environmentUuid VARCHAR(255),"
    " timestamp DECIMAL, createdAt DATETIME NOT NULL, updatedAt DATETIME NOT NULL)"
)
ROW = "INSERT INTO environments VALUES ('{0}', '{{\"uuid\":\"{0}\"}}', '{0}', 5, '{1}', '{1}')"
DATE = "2025-05-27 10:00:00.124 +00:00"


def environment(**settings: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    return {**inherited, "COLUMNS": "200", "PYTHONWARNINGS": "error", **settings}


def run(*arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        warm_command(PROGRAM, *arguments),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env=environment(**settings),
        cwd=settings.pop("PWD", None),
    )


@contextmanager
def serving(log: Path, *arguments: str, **settings: str) -> Iterator["subprocess.Popen[bytes]"]:
    """`serve` as a child; its standard error in `log`. Killed at the end when the test did not stop it."""
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            warm_command(PROGRAM, "serve", *arguments),
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment(**settings),
        )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@asynccontextmanager
async def caller_of(nats_url: str, namespace: str = "") -> AsyncIterator[ServiceBroker]:
    async with ServiceBroker("caller", namespace=namespace, transporter=nats_url) as broker:
        await broker.wait_for_services("environments-store", timeout=DEADLINE_S)
        yield broker


async def stop(process: "subprocess.Popen[bytes]", how: signal.Signals) -> tuple[int, bytes]:
    process.send_signal(how)
    stdout, _ = await anyio.to_thread.run_sync(lambda: process.communicate(timeout=DEADLINE_S))
    return process.returncode, stdout


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'environments.sqlite'}"


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    """A file of production before the migration, with two environments."""
    path = tmp_path / "environments.sqlite"
    connection = sqlite3.connect(path)
    connection.execute(TABLE_WITHOUT)
    connection.execute(ROW.format("one", DATE))
    connection.execute(ROW.format("two", DATE))
    connection.commit()
    connection.close()
    return path


def test_demo_shows_the_guides_six_steps_and_the_migration() -> None:
    result = run("demo")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[:2] == [
        "log     🔄 Adding deletedAt column to environments table",
        "log     ✅ deletedAt column added successfully",
    ]
    assert [line[0] for line in lines if line[:1].isdigit()] == list("123456")
    for word in ("call", "answer", "shown"):
        assert sum(line.startswith(f"{word} ") for line in lines) == 6
    assert "FAILED" not in result.stdout
    assert lines[-1] == "All six steps showed what the guide says."


@pytest.mark.parametrize(
    "encoding", ["ascii", *(pytest.param(one, marks=pytest.mark.long) for one in ("latin-1", "cp1252"))]
)
def test_in_any_locale_the_lines_are_as_the_guide_has_them(encoding: str, tmp_path: Path) -> None:
    def output(*arguments: str) -> tuple[str, str]:
        url = f"sqlite:///{tmp_path / 'environments.sqlite'}"
        settings = environment(PYTHONIOENCODING=encoding, DATABASE_URL=url)
        done = subprocess.run(warm_command(PROGRAM, *arguments), capture_output=True, timeout=DEADLINE_S, env=settings)
        assert done.returncode == 0
        return done.stdout.decode(), done.stderr.decode()

    assert "log     ✅ deletedAt column added successfully" in output("demo")[0]
    assert "✅ deletedAt column already exists" in output("migrate", "run")[1]
    assert "postgresql://…" in output("stats", "--help")[0]


def test_demo_needs_no_settings_and_leaves_nothing_behind(tmp_path: Path) -> None:
    result = run("demo", "--json", PWD=str(tmp_path), TMPDIR=str(tmp_path), NATS_URL="wrong", DATABASE_URL="wrong")
    assert result.returncode == 0, result.stderr
    steps = [json.loads(line) for line in result.stdout.splitlines()]
    assert [step["action"].partition(".")[2] for step in steps] == [
        "create",
        "remove",
        "list",
        "listDeleted",
        "restore",
        "list",
    ]
    assert all(step["holds"] for step in steps)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.anyio
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_serve_answers_calls_until_a_signal_stops_it_cleanly(
    nats_url: str, namespace: str, database_url: str, tmp_path: Path, how: signal.Signals
) -> None:
    log = tmp_path / "log"
    settings = {"NATS_URL": nats_url, "DATABASE_URL": database_url, "NAMESPACE": namespace, "NODE_ID": "cli-node"}
    with serving(log, **settings) as process:
        async with caller_of(nats_url, namespace) as caller:
            created = await caller.call("environments-store.create", {"environment": {"name": "x"}}, node_id="cli-node")
            assert created.pop("type") == "ADD_CLOUD_ENVIRONMENT"
            assert await caller.call("environments-store.list") == [created]
            assert await stop(process, how) == (0, b"")
    lines = log.read_text()
    assert "✅ deletedAt column already exists" in lines
    assert f"NATS: {nats_url}; services: environments-store; database: {masked(database_url)}\n" in lines
    assert f"{how.name} received" in lines


@pytest.mark.anyio
async def test_flags_win_and_logs_can_be_json(nats_url: str, namespace: str, database_url: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    flags = ("--nats-url", nats_url, "--namespace", namespace, "--database-url", database_url, "--log-format", "json")
    with serving(log, *flags, NATS_URL="nats://127.0.0.1:1", NAMESPACE="other", LOG_FORMAT="text") as process:
        async with caller_of(nats_url, namespace):
            assert (await stop(process, signal.SIGTERM))[0] == 0
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"time", "level", "logger", "message"} <= set(entries[0])
    assert "✅ deletedAt column already exists" in [entry["message"] for entry in entries]


@pytest.mark.anyio
async def test_embedded_starts_a_server_when_none_answers_and_stops_it(database_url: str, tmp_path: Path) -> None:
    nats_url = f"nats://127.0.0.1:{free_port()}"
    with serving(tmp_path / "log", "--embedded", NATS_URL=nats_url, DATABASE_URL=database_url) as process:
        async with caller_of(nats_url) as caller:
            assert await caller.call("environments-store.list") == []
        assert (await stop(process, signal.SIGINT))[0] == 0
    assert not await is_answering(nats_url)


@pytest.mark.anyio
async def test_a_killed_embedded_service_takes_its_server_along_and_starts_again(
    database_url: str, tmp_path: Path
) -> None:
    nats_url = f"nats://127.0.0.1:{free_port()}"
    settings = {"NATS_URL": nats_url, "DATABASE_URL": database_url}
    with serving(tmp_path / "first", "--embedded", **settings) as process:
        async with caller_of(nats_url) as caller:
            await caller.call("environments-store.create", {"environment": {"uuid": "U"}})
        assert (await stop(process, signal.SIGKILL))[0] == -signal.SIGKILL
    with anyio.fail_after(DEADLINE_S):
        while await is_answering(nats_url):  # noqa: ASYNC110 - another process ends
            await anyio.sleep(0.01)
    with serving(tmp_path / "second", "--embedded", **settings) as process:
        async with caller_of(nats_url) as caller:
            assert [record["id"] for record in await caller.call("environments-store.list")] == ["U"]
        assert (await stop(process, signal.SIGTERM))[0] == 0
    assert "started a NATS server" in (tmp_path / "second").read_text()


@pytest.mark.anyio
async def test_embedded_uses_the_server_that_answers(
    nats_url: str, namespace: str, database_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    settings = {"NATS_URL": nats_url, "DATABASE_URL": database_url, "NAMESPACE": namespace}
    with serving(log, "--embedded", **settings) as process:
        async with caller_of(nats_url, namespace):
            assert (await stop(process, signal.SIGTERM))[0] == 0
    assert "started a NATS server" not in log.read_text()


def test_without_nats_serve_tries_and_then_gives_up(database_url: str) -> None:
    url = f"nats://user:secret@127.0.0.1:{free_port()}"
    result = run("serve", "--start-timeout", "1.5", NATS_URL=url, DATABASE_URL=database_url)
    assert_gave_up(result)
    assert "secret" not in result.stderr


def test_refused_credentials_end_serve_at_once(database_url: str, make_nats_server: NatsServerFactory) -> None:
    url = make_nats_server(authorization="{ user: node, password: secret }").url
    result = run("serve", NATS_URL=url, DATABASE_URL=database_url, LOG_FORMAT="json")
    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    logged = json.loads(line)
    assert (logged["level"], logged["message"][:37]) == ("error", "NATS does not let this node in. nats:")


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_without_a_database_serve_tries_and_then_gives_up(nats_url: str, namespace: str, scheme: str) -> None:
    url = f"{scheme}://user:secret@127.0.0.1:{free_port()}/none"
    result = run("serve", "--start-timeout", "2.5", NATS_URL=nats_url, DATABASE_URL=url, NAMESPACE=namespace)
    assert_gave_up(result)
    assert "secret" not in result.stderr


def assert_gave_up(result: "subprocess.CompletedProcess[str]") -> None:
    assert result.returncode == 1
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert "trying again" in result.stderr
    assert " ERROR " in result.stderr.splitlines()[-1]


@pytest.mark.anyio
async def test_a_second_node_with_the_same_id_ends_and_the_first_lives(
    nats_url: str, namespace: str, database_url: str, tmp_path: Path
) -> None:
    settings = {"NATS_URL": nats_url, "DATABASE_URL": database_url, "NAMESPACE": namespace, "NODE_ID": "same"}
    with serving(tmp_path / "log", **settings) as process:
        async with caller_of(nats_url, namespace) as caller:
            result = await anyio.to_thread.run_sync(lambda: run("serve", **settings))
            assert result.returncode == 1
            assert "'same'" in result.stderr.splitlines()[-1]
            assert await caller.call("environments-store.list", node_id="same") == []
            assert (await stop(process, signal.SIGTERM))[0] == 0


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("NATS_URL", "http://u:secret@h", "nats://127.0.0.1:4222"),
        ("DATABASE_URL", "mysql://u:secret@h/d", "postgresql://"),
        ("LOG_LEVEL", "loud", "debug, info"),
        ("BROKER_SERIALIZER", "yaml", "MsgPack"),
        ("NODE_ID", "a..b", "single dots"),
    ],
)
def test_a_wrong_setting_is_one_line_that_shows_a_right_one(name: str, value: str, right: str) -> None:
    result = run("serve", **{name: value})
    assert (result.returncode, result.stdout) == (2, "")
    [line] = result.stderr.splitlines()
    assert right in line
    assert "secret" not in line


@pytest.mark.parametrize(
    "command",
    [(), ("serve",), ("demo",), ("migrate",), ("migrate", "check"), ("migrate", "run"), ("migrate", "sql"), ("stats",)],
)
def test_every_command_has_help(command: Sequence[str]) -> None:
    result = run(*command, "--help")
    assert result.returncode == 0
    assert "Usage" in result.stdout


@pytest.mark.parametrize("arguments", [("nonsense",), ("serve", "--nonsense"), ("stats", "--recent-days", "soon")])
def test_misuse_is_exit_code_2(arguments: Sequence[str]) -> None:
    assert run(*arguments).returncode == 2


def test_migrate_checks_runs_and_checks_again(old_file: Path, database_url: str) -> None:
    before = run("migrate", "check", DATABASE_URL=database_url)
    assert before.returncode == 1
    assert steps(before)["column"] != "done"
    migrated = run("migrate", "run", DATABASE_URL=database_url)
    assert migrated.returncode == 0
    assert migrated.stderr.count("✅ deletedAt column added successfully") == 1
    after = run("migrate", "check", DATABASE_URL=database_url)
    assert after.returncode == 0
    assert set(steps(after).values()) == {"done"}


def test_migrate_works_on_postgresql(postgres_database: PostgresDatabase) -> None:
    settings = {"DATABASE_URL": postgres_database.url}
    assert run("migrate", "check", **settings).returncode == 1
    assert run("migrate", "run", **settings).returncode == 0
    assert run("migrate", "check", **settings).returncode == 0
    assert json.loads(run("stats", **settings).stdout)["total"] == 0


def test_migrate_sql_is_what_a_dba_runs(old_file: Path, database_url: str, postgres_database: PostgresDatabase) -> None:
    script = run("migrate", "sql", DATABASE_URL=database_url)
    assert script.returncode == 0
    connection = sqlite3.connect(old_file)
    connection.executescript(script.stdout)
    connection.close()
    assert run("migrate", "check", DATABASE_URL=database_url).returncode == 0
    script = run("migrate", "sql", DATABASE_URL="postgresql://nobody@nowhere/none")
    assert 'ADD COLUMN IF NOT EXISTS "deletedAt"' in script.stdout
    assert "CONCURRENTLY" in script.stdout


@pytest.mark.parametrize("migrated", [False, True])
def test_stats_count_without_changing_anything(old_file: Path, database_url: str, migrated: bool) -> None:
    if migrated:
        assert run("migrate", "run", DATABASE_URL=database_url).returncode == 0
        connection = sqlite3.connect(old_file)
        connection.execute("UPDATE environments SET deletedAt = '2025-05-27 10:00:00.124 +00:00' WHERE id = 'one'")
        connection.commit()
        connection.close()
    schema = schema_of(old_file)
    result = run("stats", DATABASE_URL=database_url)
    expected = {"total": 2, "active": 1, "deleted": 1, "recentlyDeleted": 0} if migrated else {
        "total": 2, "active": 2, "deleted": 0, "recentlyDeleted": 0
    }  # fmt: skip
    assert json.loads(result.stdout) == expected
    assert schema_of(old_file) == schema
    many = json.loads(run("stats", "--recent-days", "36500", "--database-url", database_url).stdout)
    assert many["recentlyDeleted"] == expected["deleted"]


def test_without_a_table_stats_say_so(database_url: str) -> None:
    result = run("stats", DATABASE_URL=database_url)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"Error: There is no table 'environments' in {database_url}.\n"
    assert not Path(database_url.removeprefix("sqlite:///")).exists()


def test_without_a_database_commands_say_so() -> None:
    url = f"postgresql://user:secret@127.0.0.1:{free_port()}/none"
    for command in (("stats",), ("migrate", "check"), ("migrate", "run")):
        result = run(*command, DATABASE_URL=url)
        assert (result.returncode, result.stdout) == (1, "")
        assert "Error: " in result.stderr
        assert "Traceback" not in result.stderr
        assert "secret" not in result.stderr


def test_a_person_gets_a_table_and_json_when_asked(old_file: Path, database_url: str) -> None:
    assert "recentlyDeleted" in on_terminal("stats", "--database-url", database_url).splitlines()[0]
    assert json.loads(on_terminal("stats", "--json", "--database-url", database_url))["total"] == 2
    shown = on_terminal("migrate", "check", "--database-url", database_url)
    assert "pending" in shown
    assert "{" not in shown


def on_terminal(*arguments: str) -> str:
    """What a command prints on a terminal."""
    outside, inside = pty.openpty()
    process = subprocess.Popen(warm_command(PROGRAM, *arguments), stdout=inside, env=environment(TERM="xterm"))
    os.close(inside)
    output = b""
    while True:
        try:
            output += os.read(outside, 65_536)
        except OSError:  # the other side is closed
            break
    os.close(outside)
    process.wait(DEADLINE_S)
    return output.decode()


def steps(result: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    return {step["name"]: step["state"] for step in json.loads(result.stdout)["steps"]}


def schema_of(path: Path) -> list[Any]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute("SELECT sql FROM sqlite_master").fetchall()
    finally:
        connection.close()
