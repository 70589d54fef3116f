"""The command `broker` against a real server: what it prints, and its exit codes."""

import json
from collections.abc import AsyncIterator

import pytest
from typer.testing import CliRunner

from broker import ServiceBroker
from broker.__main__ import app
from tests.support.example_services import Echo, Gate, Listener, Math
from tests.support.ports import LOOPBACK, free_port
from tests.support.processes import Process, run_python

pytestmark = pytest.mark.anyio


@pytest.fixture
async def node(nats_url: str, namespace: str) -> AsyncIterator[ServiceBroker]:
    """A node to talk to."""
    services = [Echo(), Math(), Gate(), Listener()]
    async with ServiceBroker("py-1", namespace=namespace, transporter=nats_url, services=services) as broker:
        yield broker


class Commands:
    """Runs `broker …` as a process against the test's cluster."""

    def __init__(self, url: str, namespace: str) -> None:
        self._environment = {"NATS_URL": url, "NAMESPACE": namespace}

    async def __call__(self, *arguments: str) -> Process:
        return await run_python("-m", "broker", *arguments, environment=self._environment)


@pytest.fixture
def command(nats_url: str, namespace: str) -> Commands:
    return Commands(nats_url, namespace)


def output(process: Process) -> object:
    assert process.returncode == 0, process.stderr
    (line,) = process.stdout
    return json.loads(line)


@pytest.mark.usefixtures("node")
async def test_call_prints_the_result(command: Commands) -> None:
    assert output(await command("call", "math.add", '{"a":1,"b":2}')) == 3
    assert output(await command("call", "echo.params", "-p", "a=1", "-p", "b=text", "-p", "c=[true]")) == {
        "a": 1,
        "b": "text",
        "c": [True],
    }
    assert output(await command("call", "echo.params", '{"a":1,"b":0}', "-p", "b=2")) == {"a": 1, "b": 2}
    assert output(await command("call", "echo.params")) == {}
    assert output(await command("call", "echo.params", "null")) is None
    context = output(await command("call", "echo.context", "--meta", '{"user":7}', "--timeout", "60"))
    assert isinstance(context, dict)
    assert context["meta"] == {"user": 7}
    assert 0 < context["left_s"] <= 60
    assert output(await command("call", "echo.where", "--node", "py-1")) == "py-1"


@pytest.mark.usefixtures("node")
async def test_an_error_of_a_call_is_one_line_with_its_data_and_exit_code_1(command: Commands) -> None:
    process = await command("call", "math.add", '{"a":"x"}')
    assert process.returncode == 1
    assert process.stdout == []
    first, second = [line for line in process.stderr if line]
    assert first.startswith("Error: ValidationError 422 VALIDATION_ERROR: Parameters validation error! (node py-1)")
    assert [item["field"] for item in json.loads(second)] == ["a", "b"]


@pytest.mark.usefixtures("node")
async def test_an_action_that_takes_too_long(command: Commands) -> None:
    process = await command("call", "gate.wait", "--timeout", "0.1")
    assert process.returncode == 1
    assert "RequestTimeoutError 504" in process.stderr[0]


@pytest.mark.usefixtures("node")
async def test_nodes_services_and_actions_are_listed(command: Commands) -> None:
    nodes = output(await command("nodes"))
    assert isinstance(nodes, list)
    (node,) = nodes
    assert (node["id"], node["protocol"], node["available"]) == ("py-1", "5", True)
    assert node["services"] == ["echo", "math", "gate", "listener"]
    assert node["client"].startswith("python ")
    services = output(await command("services"))
    assert isinstance(services, list)
    assert [service["name"] for service in services] == ["echo", "gate", "listener", "math"]
    assert services[1]["actions"] == ["gate.wait"]
    actions = output(await command("actions"))
    assert isinstance(actions, list)
    add = next(action for action in actions if action["name"] == "math.add")
    assert add["nodes"] == ["py-1"]
    assert add["params"]["a"] == {"type": "number", "integer": True}


@pytest.mark.usefixtures("node")
async def test_ping_measures_and_fails_for_a_node_that_does_not_answer(command: Commands) -> None:
    pongs = output(await command("ping"))
    assert isinstance(pongs, list)
    (pong,) = pongs
    assert (pong["node"], pong["alive"]) == ("py-1", True)
    process = await command("ping", "absent", "--timeout", "0.1")
    assert process.returncode == 1
    assert "absent" in process.stderr[0]


async def test_without_a_server_a_command_says_so(namespace: str) -> None:
    command = Commands(f"nats://user:topsecret@{LOOPBACK}:{free_port()}", namespace)
    process = await command("nodes")
    assert process.returncode == 1
    assert any("No connection to a NATS server" in line for line in process.stderr)
    assert not any("topsecret" in line or "Traceback" in line for line in process.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        ["call"],
        ["call", "a.b", "{"],
        ["call", "a.b", "[1]", "-p", "a=1"],
        ["call", "a.b", "-p", "nothing"],
        ["call", "a.b", "--meta", "[1]"],
        ["no-such-command"],
        ["run"],
        ["run", "x", "--log-level", "loud"],
        ["ping", "--timeout", "soon"],
    ],
)
def test_misuse_is_exit_code_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_every_command_has_help() -> None:
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0
    for name in ("run", "call", "emit", "broadcast", "listen", "nodes", "services", "actions", "ping"):
        assert name in shown.output
        assert CliRunner().invoke(app, [name, "--help"]).exit_code == 0
