"""No command shows a password, whatever goes wrong: over all commands, with servers that are down or refuse it."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import pytest
import typer

from broker.__main__ import app as broker_app
from services.environments_store.__main__ import app as store_app
from tests.support.nats_server import NatsServer
from tests.support.ports import free_port
from tests.support.postgres import PostgresDatabase
from tests.support.shapes import postgres_sql
from tests.support.warm import warm_command

PASSWORD = "p@ss/w:rd%é#?&1"
ENCODED = quote(PASSWORD, safe="")
# Pieces too: half a password in a log is a leak as well.
SECRETS = (PASSWORD, ENCODED, "w:rd", "w%3Ard", "ss/w", "ss%2Fw")
DEADLINE_S = 120

STORE = {
    "serve": ("--start-timeout", "3"),
    "migrate check": (),
    "migrate plan": (),
    "migrate run": (),
    "migrate verify": (),
    "migrate list-index": (),
    "migrate rollback": ("--trash", "remove", "--yes"),
    "stats": (),
    "backup": ("backup.dump",),
    "export": ("-",),
    "import": ("-",),
    "purge": ("--yes",),
    "doctor": (),
}
OFFLINE = {"demo", "migrate sql"}
BROKER = {
    "run": ("tests.support.example_services:Math", "--start-timeout", "1"),
    "call": ("math.add",),
    "emit": ("user.created",),
    "broadcast": ("user.created",),
    "listen": ("user.*",),
    "nodes": (),
    "services": (),
    "actions": (),
    "ping": (),
}


def commands(app: typer.Typer, group: str = "") -> Iterator[str]:
    for command in app.registered_commands:
        assert command.callback is not None
        yield f"{group}{command.name or command.callback.__name__}"
    for one in app.registered_groups:
        assert one.typer_instance is not None
        yield from commands(one.typer_instance, f"{one.name} ")


def run_all(program: str, given: Mapping[str, tuple[str, ...]], folder: Path, **settings: str) -> dict[str, str]:
    """What each command printed, all of them run at once: most of their time is a start."""
    dropped = ("NATS_URL", "DATABASE_URL", "NAMESPACE", "NODE_ID", "RETENTION_DAYS")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment |= {"LOG_LEVEL": "debug", "PYTHONWARNINGS": "error", **settings}
    running = {
        command: subprocess.Popen(
            warm_command(program, *command.split(), *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            cwd=folder,
        )
        for command, arguments in given.items()
    }
    output = {}
    for command, process in running.items():
        output[command], _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 1, (command, output[command])
        assert "Traceback" not in output[command], output[command]
    return output


def assert_hidden(output: Mapping[str, str]) -> None:
    for command, shown in output.items():
        assert re.search(r"\berror\b", shown, re.IGNORECASE), command
        assert [secret for secret in SECRETS if secret in shown] == [], f"{command}:\n{shown}"


@pytest.fixture
def role_url(postgres_database: PostgresDatabase) -> str:
    """The URL of a role that may do everything with a table as production has it, with the password in it."""
    postgres_database.run_sql(postgres_sql("p_dnew"))
    return postgres_database.create_role(options="SUPERUSER", password=PASSWORD)


def test_every_command_is_in_the_lists() -> None:
    assert set(commands(store_app)) == {*STORE, *OFFLINE}
    assert set(commands(broker_app)) == set(BROKER)


def test_no_command_of_the_store_shows_the_password_of_a_database(
    role_url: str, nats_url: str, namespace: str, tmp_path: Path
) -> None:
    settings = {"NATS_URL": nats_url, "NAMESPACE": namespace}
    store = "services.environments_store"
    wrong = role_url.replace(ENCODED, f"{ENCODED}wrong")
    refused = run_all(store, STORE, tmp_path, DATABASE_URL=wrong, **settings)
    assert_hidden(refused)
    for command, shown in refused.items():
        assert "password authentication failed" in shown, command
    down = f"postgresql://role:{ENCODED}@127.0.0.1:{free_port()}/database"
    given = {command: (*arguments, "--database-url", down) for command, arguments in STORE.items()}
    assert_hidden(run_all(store, given, tmp_path, LOG_FORMAT="json", **settings))
    assert list(tmp_path.iterdir()) == []


def test_a_password_in_percent_encoding_opens_the_database(role_url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "services.environments_store"]
    environment = {**os.environ, "DATABASE_URL": role_url, "PYTHONWARNINGS": "error"}
    done = subprocess.run([*command, "stats"], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_command_shows_the_password_of_a_nats_server(role_url: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    authorization = f'{{user: "ada", password: "{PASSWORD}"}}'
    with NatsServer(tmp_path / "nats", authorization=authorization) as server:
        right = f"nats://ada:{ENCODED}@127.0.0.1:{server.port}"
        command = [sys.executable, "-m", "broker", "nodes"]
        done = subprocess.run(
            command, env={**os.environ, "NATS_URL": right}, capture_output=True, text=True, cwd=tmp_path
        )
        assert (done.returncode, done.stderr.startswith("No node answered"), PASSWORD in done.stderr) == (
            0,
            True,
            False,
        )
        wrong = f"nats://ada:{ENCODED}wrong@127.0.0.1:{server.port}"
        assert_hidden(run_all("broker", BROKER, tmp_path / "folder", NATS_URL=wrong))
        serve = {"serve": STORE["serve"]}
        store = "services.environments_store"
        assert_hidden(run_all(store, serve, tmp_path / "folder", NATS_URL=wrong, DATABASE_URL=role_url))
    down = f"nats://ada:{ENCODED}@127.0.0.1:{free_port()}"
    some = {command: BROKER[command] for command in ("run", "call", "listen")}
    assert_hidden(run_all("broker", some, tmp_path / "folder", NATS_URL=down))
