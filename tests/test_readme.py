"""What the README shows is what happens: its code runs, its output is the real one, its tables are complete.

Blocks by language: `python` blocks are run as files; `javascript` blocks are run on
plain Moleculer nodes of both versions; the one `console` block is a command and its output; each line of an `sh` block
is a command, except for those that would install or need Docker (NOT_RUN). Addresses are replaced by those of the
test's servers, `ID` by the uuid of an environment in the trash.
"""

import contextlib
import os
import re
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from broker import ServiceBroker
from broker.services.decorators import ActionOptions
from services.environments_store.service import EnvironmentsStore
from tests.support.blocks import NATS_ADDRESS, Block, read_blocks, run_python_block
from tests.support.js_node import VERSIONS, js_node
from tests.support.nats_server import NatsServer
from tests.support.ports import LOOPBACK, free_port
from tests.support.postgres import PostgresDatabase
from tests.support.processes import REPOSITORY, Process, run_python, start
from tests.support.shapes import make_sqlite
from tests.support.store_node import store_process
from tests.support.warm import warm_programs

pytestmark = pytest.mark.anyio

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
POSTGRES_ADDRESS = "postgresql://user@127.0.0.1:5432/environments"
NOT_RUN = {"docker compose up --build", "pip install -e '.[test]' && pytest"}
# What differs from run to run.
VOLATILE = [
    (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "<uuid>"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "<date>"),
    (r'"timestamp":\d{13}', '"timestamp":<milliseconds>'),
    (r'"hash":"[0-9a-f]{40}"', '"hash":"<hash>"'),
]


@dataclass(frozen=True)
class Running:
    """A node of the service on a SQLite file, in the namespace that is used when none is set."""

    nats_url: str
    environment: dict[str, str]


BLOCKS = read_blocks(README)
COMMANDS = [
    pytest.param(line.split("  #")[0].strip(), id=f"{block.heading}: {line.split('  #')[0].strip()}")
    for block in BLOCKS
    if block.language == "sh"
    for line in block.text.splitlines()
    if "environments-store serve" not in block.text and line not in NOT_RUN
]


def of(language: str, containing: str = "") -> list[Any]:
    chosen = [block for block in BLOCKS if block.language == language and containing in block.text]
    return [pytest.param(block, id=block.heading) for block in chosen]


@pytest.fixture(scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("readme")
    database_url = f"sqlite:///{folder / 'environments.sqlite'}"
    with NatsServer(folder / "nats") as server:
        async with (
            store_process(database_url, server.url, "", "store"),
            ServiceBroker(transporter=server.url) as caller,
        ):
            await caller.wait_for_services("environments-store", timeout=60)
            yield Running(server.url, {"NATS_URL": server.url, "DATABASE_URL": database_url})


def shell(
    script: str, environment: dict[str, str], folder: Path, programs: Path = Path(sys.executable).parent
) -> contextlib.AbstractAsyncContextManager[Process]:
    """Runs a script with this environment's commands first on PATH."""
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return start("sh", "-e", "-c", script, environment={**environment, "PATH": path}, folder=folder, name=script)


def test_every_block_has_a_language_that_is_run() -> None:
    assert {block.language for block in BLOCKS} == {"console", "sh", "python", "javascript"}
    lines = {line for block in BLOCKS if block.language == "sh" for line in block.text.splitlines()}
    assert lines >= NOT_RUN
    assert [one for one in lines - NOT_RUN if not re.match(r"(environments-store|broker|export) ", one)] == []


@pytest.mark.parametrize("block", of("console"))
async def test_the_shown_output_is_the_real_one(block: Block, tmp_path: Path) -> None:
    first, _, shown = block.text.partition("\n")
    install, _, command = first.removeprefix("$ ").partition(" && ")
    assert install == "pip install '.[embedded]'"
    async with shell(command, {}, tmp_path) as process:
        assert await process.wait() == 0, process.report("failed")
    assert _steady("\n".join(process.stdout)).strip() == _steady(shown).strip()


@pytest.mark.parametrize("block", of("python"))
async def test_a_python_block_runs_as_it_is_pasted(block: Block, tmp_path: Path, running: Running) -> None:
    assert NATS_ADDRESS in block.text, "the block names no server, so it shows nothing"
    await run_python_block(block, tmp_path, running.nats_url)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("block", of("javascript"))
async def test_a_javascript_block_runs(block: Block, version: str, running: Running, js_modules: object) -> None:
    async with js_node(version, running.nats_url, "", f"js-{version}") as js:
        await js.wait_for_services("environments-store")
        names = re.findall(r"const (\w+) =", block.text)
        values = await js.run(f"{block.text}\nreturn {{ {', '.join(names)} }};")
    made = values["env"]["id"]
    assert made in [record["id"] for record in values["deleted"]]
    assert made in [record["id"] for record in values["environments"]]


@pytest.mark.parametrize("command", COMMANDS)
async def test_a_command_runs(command: str, running: Running, tmp_path: Path) -> None:
    environment = dict(running.environment)
    if "migrate" in command:
        make_sqlite("s_b1", tmp_path / "old.sqlite")
        environment["DATABASE_URL"] = f"sqlite:///{tmp_path / 'old.sqlite'}"
    if command.endswith("echo complete"):
        await run_python("-m", "services.environments_store", "migrate", "run", environment=environment)
    command = command.replace("uuid=ID", f"uuid={await _deleted_environment(running)}")
    async with shell(command, environment, tmp_path, warm_programs()) as process:
        code = await process.wait()
    assert code == (1 if command == "environments-store migrate check" else 0), process.report("ended otherwise")
    assert process.stdout


@pytest.mark.parametrize("block", of("sh", "environments-store serve"))
async def test_the_service_runs_and_stops_as_shown(
    block: Block, postgres_database: PostgresDatabase, nats_server: NatsServer, tmp_path: Path
) -> None:
    embedded = "--embedded" in block.text
    nats_url = f"nats://{LOOPBACK}:{free_port()}" if embedded else nats_server.url
    without_password = re.sub(r":[^:@/]+@", "@", postgres_database.url)
    script = block.text.replace(NATS_ADDRESS, nats_url).replace(POSTGRES_ADDRESS, without_password)
    script = script.replace("environments-store serve", "exec environments-store serve")
    password = postgres_database.url.split("@")[0].rsplit(":", 1)[1]
    async with (
        shell(script, {"NATS_URL": nats_url, "PGPASSWORD": password}, tmp_path, warm_programs()) as process,
        ServiceBroker(transporter=nats_url) as caller,
    ):
        await caller.wait_for_services("environments-store", timeout=60)
        schema = await caller.call("environments-store.schema")
        assert schema["dialect"] == ("sqlite" if embedded else "postgresql")
        assert await process.terminate() == 0, process.report("did not stop cleanly")
    assert (tmp_path / "data" / "environments.sqlite").exists() == embedded


def test_the_table_of_actions_is_complete() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", _section("Actions"), re.MULTILINE))
    marks = {name: getattr(member, "_moleculer", None) for name, member in vars(EnvironmentsStore).items()}
    offered = {mark.name or name for name, mark in marks.items() if isinstance(mark, ActionOptions)}
    assert rows.keys() == offered


async def test_the_table_of_settings_and_the_help_of_serve_show_the_same() -> None:
    shown = set(re.findall(r"`(--[a-z-]+)`", _section("Run it")))
    help_ = await run_python("-m", "services.environments_store", "serve", "--help", environment={"COLUMNS": "200"})
    assert shown == set(re.findall(r"--[a-z-]+", "\n".join(help_.stdout))) - {"--help"}
    for setting, flag in re.findall(r"^\| `(\w+)` \| `(--[a-z-]+)`", _section("Run it"), re.MULTILINE):
        assert any(flag in line and f"${setting}" in line for line in help_.stdout), setting


@pytest.mark.parametrize("program", ["broker", "services.environments_store"])
async def test_every_command_has_help_and_is_shown(program: str) -> None:
    name = "broker" if program == "broker" else "environments-store"
    for command in await _commands_of(program):
        assert f"{name} {command}" in README or f"`{command}`" in README, command


async def _commands_of(*program: str) -> list[str]:
    """The names of a program's commands, those of its groups too."""
    listed = await run_python("-m", *program, "--help", environment={"COLUMNS": "200"})
    rows = re.findall(r"^│ ([a-z]+) +(\S.*?) *│$", "\n".join(listed.stdout).partition("Commands")[2], re.MULTILINE)
    assert rows, listed.report("shows no commands")
    names: list[str] = []
    for name, text in rows:
        assert text, f"{name} has no help"
        names.append(name)
        if name == "migrate":
            names += [f"{name} {inner}" for inner in await _commands_of(*program, name)]
    return names


async def _deleted_environment(running: Running) -> str:
    async with ServiceBroker(transporter=running.nats_url) as caller:
        await caller.wait_for_services("environments-store", timeout=60)
        record = await caller.call("environments-store.create", {"environment": {"name": "in the trash"}})
        await caller.call("environments-store.remove", {"uuid": record["id"]})
        return str(record["id"])


def _section(heading: str) -> str:
    text = re.split(rf"^##+ {heading}$", README, maxsplit=1, flags=re.MULTILINE)[1]
    return re.split(r"^##+ ", text, maxsplit=1, flags=re.MULTILINE)[0]


def _steady(text: str) -> str:
    for pattern, name in VOLATILE:
        text = re.sub(pattern, name, text)
    return text
