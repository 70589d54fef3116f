"""A node as a process: started within a time, stopped cleanly by a signal, its exit code the truth."""

import signal
from functools import partial
from pathlib import Path

import anyio
import pytest

from broker import ServiceBroker
from tests.conftest import NatsServerFactory
from tests.support.example_services import Echo
from tests.support.ports import LOOPBACK, free_port
from tests.support.processes import start_python
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

CODE = """
import threading
import anyio
from broker import Service, action

class Slow(Service):
    name = "slow"

    @action
    async def hello(self, ctx, seconds: float = 0) -> str:
        self.logger.info("slow.hello is running")
        await anyio.sleep(seconds)
        return "hello"

    async def stopped(self) -> None:
        self.logger.info("was stopped")

class Failing(Service):
    name = "failing"

    async def started(self) -> None:
        raise RuntimeError("cannot start")

class Forever(Service):
    name = "forever"

    async def started(self) -> None:
        self.logger.info("starts without end")
        await anyio.sleep_forever()

class Stubborn(Service):
    name = "stubborn"

    async def started(self) -> None:
        threading.Thread(target=threading.Event().wait).start()

    async def stopped(self) -> None:
        self.logger.info("does not stop")
        await anyio.sleep_forever()
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    file = tmp_path / "services.py"
    file.write_text(CODE)
    return file


def command(target: str, url: str, namespace: str, *more: str) -> list[str]:
    return ["-m", "broker", "run", target, "--nats-url", url, "--namespace", namespace, "--node-id", "runner", *more]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_the_node_without_loss(
    code: Path, nats_url: str, namespace: str, number: signal.Signals
) -> None:
    async with (
        start_python(*command(f"{code}:Slow", nats_url, namespace)) as process,
        ServiceBroker("caller", namespace=namespace, transporter=nats_url) as caller,
    ):
        await process.line("runner/broker: Service 'slow' started")
        await caller.wait_for_services("slow", timeout=60)
        assert await caller.call("slow.hello") == "hello"
        process.send_signal(number)
        await eventually(lambda: not caller.registry.has_service("slow"))
        assert await process.wait() == 0
        assert any("was stopped" in line for line in process.stderr)
        assert process.stdout == []


async def test_the_log_names_what_the_node_is_connected_to_and_what_its_stop_waits_for(
    code: Path, namespace: str, make_nats_server: NatsServerFactory
) -> None:
    server = make_nats_server(authorization="{ user: node, password: secret }")
    url = server.url.replace("://", "://node:secret@")
    async with (
        start_python(*command(f"{code}:Slow", url, namespace)) as process,
        ServiceBroker("caller", namespace=namespace, transporter=url) as caller,
        anyio.create_task_group() as tasks,
    ):
        shown = url.replace("node:secret", "***")
        await process.line(f"runner/broker: Connected to the NATS server {shown}")
        await process.line(
            f"Node 'runner' started; namespace: '{namespace}'; protocol: 4 and 5; NATS: {shown}; services: slow"
        )
        await caller.wait_for_services("slow", timeout=60)
        tasks.start_soon(partial(caller.call, "slow.hello", {"seconds": 2}))
        await process.line("slow.hello is running")
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    last = [line.split(": ", 1)[1] for line in process.stderr if "slow" not in line.split()[2]][-4:]
    assert last[0].startswith("SIGTERM received; running calls have 5 s to end")
    assert last[1:] == [
        "Waiting for work in flight: handlers 1, calls 0",
        "Service 'slow' stopped",
        "The node has stopped",
    ]
    assert "secret" not in "".join(process.stderr)


async def test_a_service_that_cannot_start_is_named_and_gives_exit_code_1(
    code: Path, nats_url: str, namespace: str
) -> None:
    async with start_python(*command(f"{code}:Failing", nats_url, namespace)) as process:
        assert await process.wait() == 1
    assert any("could not start: RuntimeError: cannot start" in line for line in process.stderr)
    assert not any("ExceptionGroup" in line for line in process.stderr)


async def test_an_import_that_fails_shows_where_and_gives_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "orders.py").write_text("from broker import Service\nfrom .missing import Price\n")
    async with start_python("-m", "broker", "run", tmp_path) as process:
        assert await process.wait() == 1
    told = "\n".join(process.stderr)
    assert f"The file {tmp_path / 'sub' / 'orders.py'} cannot be loaded: ModuleNotFoundError" in told
    assert f'File "{tmp_path / "sub" / "orders.py"}", line 2' in told
    assert "targets.py" not in told


async def test_without_a_server_the_node_gives_up_after_its_time(code: Path, namespace: str) -> None:
    url = f"nats://{LOOPBACK}:{free_port()}"
    async with start_python(*command(f"{code}:Slow", url, namespace, "--start-timeout", "2")) as process:
        assert await process.wait() == 1
    assert any("Cannot connect to" in line for line in process.stderr)
    assert any("could not start within 2 s" in line for line in process.stderr)
    assert not any("Traceback" in line for line in process.stderr)


async def test_refused_credentials_end_the_node_at_once(
    code: Path, namespace: str, make_nats_server: NatsServerFactory
) -> None:
    server = make_nats_server(authorization="{ user: node, password: secret }")
    url = server.url.replace("://", "://node:wrong@")
    async with start_python(*command(f"{code}:Slow", url, namespace)) as process:
        assert await process.wait() == 1
    line = process.stderr[-1]
    assert not any("trying again" in other for other in process.stderr)
    assert " ERROR    runner/broker: NATS does not let this node in. " in line
    assert "Authorization Violation" in line
    assert "wrong" not in line


async def test_a_signal_during_the_start_stops_it(code: Path, nats_url: str, namespace: str) -> None:
    async with start_python(*command(f"{code}:Forever", nats_url, namespace)) as process:
        await process.line("starts without end")
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


async def test_a_second_signal_ends_what_does_not_stop(code: Path, nats_url: str, namespace: str) -> None:
    async with start_python(*command(f"{code}:Stubborn", nats_url, namespace)) as process:
        await process.line("Service 'stubborn' started")
        process.send_signal(signal.SIGINT)
        await process.line("does not stop")
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 1
    assert "Stopped at once, by a second signal" in process.stderr[-1]
    assert not any("Traceback" in line for line in process.stderr)


async def test_an_id_that_is_taken_is_one_line_and_exit_code_1(code: Path, nats_url: str, namespace: str) -> None:
    async with ServiceBroker("runner", namespace=namespace, transporter=nats_url, services=[Echo()]) as holder:
        async with start_python(*command(f"{code}:Slow", nats_url, namespace)) as process:
            assert await process.wait() == 1
        assert any("Another node with the id 'runner' is running" in line for line in process.stderr)
        assert not any("Traceback" in line for line in process.stderr)
        assert await holder.call("echo.where") == "runner"
        assert holder._node.failure is None
