"""Python and JS nodes on the servers of one NATS cluster, which shut down under load."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import anyio
import pytest

from broker import ServiceBroker
from broker.transports.nats import NATSTransport
from tests.benchmarks.outages import JS_SERVICE, Answers, js_load, python_load
from tests.support.js_node import VERSIONS, js_node
from tests.support.nats_server import NatsServer, cluster_of

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("js_modules")]

SECONDS = 3.0


class PythonAnswers(Answers):
    name = "python-answers"


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[NatsServer]]:
    """A cluster. A server in lame duck mode closes no connection before the test is over."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(server)
            for server in cluster_of(3, tmp_path, lame_duck_duration="30s", lame_duck_grace_period="20s")
        ]


@pytest.mark.parametrize("version", ["0.15", pytest.param("0.14", marks=pytest.mark.long)])
async def test_no_call_fails_while_a_node_leaves_a_server_in_lame_duck_mode(
    version: str, servers: list[NatsServer], namespace: str
) -> None:
    """Calls in both directions. The node finds another server from those that its own advertises."""
    assert version in VERSIONS
    lame, other, _ = servers
    answers = PythonAnswers()
    async with (
        js_node(version, other.url, namespace, "js") as js,
        ServiceBroker("py", namespace=namespace, transporter=lame.url, services=[answers]) as broker,
    ):
        await js.run(JS_SERVICE.replace("NAME", "js-answers"))
        await js.wait_for_services("python-answers")
        await broker.wait_for_services("js-answers", timeout=30)
        transport = broker._node.transport
        assert isinstance(transport, NATSTransport)
        calls = {}

        async def from_python() -> None:
            calls["from Python"] = await python_load(broker, "js-answers.now", SECONDS)

        async def from_js() -> None:
            calls["from JS"] = await js_load(js, "python-answers.now", SECONDS)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(from_python)
            tasks.start_soon(from_js)
            await anyio.sleep(SECONDS / 3)
            lame.lame_duck()
        assert transport._link.connection is not None
        assert transport._link.connection.server != lame.url
        lame.kill()
        for direction, made in calls.items():
            failed = [call for call in made if not call.succeeded]
            assert len(made) > 10, direction
            assert failed == [], direction
        assert answers.made == len(calls["from JS"]), "none was made twice"
