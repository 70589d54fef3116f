"""A stop, and an outage of the NATS server, follow the steps of a JS node (protocol §4.2, §4.5)."""

from pathlib import Path
from typing import Any

import anyio
import pytest

from broker import Context, Service, ServiceBroker, action
from tests.interop.services import PythonMath, PythonSlow
from tests.support.js_node import PROTOCOLS, JsError, JsNode, js_node
from tests.support.nats_recorder import nats_recorder
from tests.support.nats_server import NatsServer
from tests.support.processes import DEADLINE_S
from tests.support.tap import open_tap
from tests.support.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("js_modules")]


class Slow(Service):
    name = "stopping"

    def __init__(self) -> None:
        self.running = anyio.Event()
        self.finish = anyio.Event()

    @action
    async def wait(self, ctx: Context) -> str:
        self.running.set()
        await self.finish.wait()
        return "done"

    @action
    async def quick(self, ctx: Context) -> str:
        return "quick"


async def test_c33_c34_a_node_stops_with_the_same_steps_as_a_js_node(
    version: str, nats_url: str, namespace: str
) -> None:
    ver, slow, results = PROTOCOLS[version], Slow(), []
    broker = ServiceBroker("py", namespace=namespace, transporter=nats_url, protocol=ver, services=[slow])
    async with open_tap(nats_url, namespace) as tap, js_node(version, nats_url, namespace, "js") as js:
        await broker.start()
        await js.wait_for_services("stopping")

        async def call() -> None:
            results.append(await js.call("stopping.wait"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await slow.running.wait()
            await tap.catch_up()
            before = max(info["seq"] for info in tap.find("INFO", sender="py"))
            mark = await tap.mark()
            tasks.start_soon(broker.stop)
            last = await tap.wait_for("INFO", after=mark, sender="py")
            assert (last["services"], last["seq"]) == ([], before + 1)
            # Callers that have not read that yet are still served for a moment…
            assert (await tap.ask("py", "stopping.quick", ver=ver))["data"] == "quick"
            # …and refused afterwards, while running handlers may finish.
            while (answer := await tap.ask("py", "stopping.quick", ver=ver, meta={"m": 1}))["success"]:
                pass
            error = answer["error"]
            assert (error["name"], error["code"], error["retryable"]) == ("ServiceNotAvailableError", 404, True)
            assert (error["data"], answer["meta"]) == ({"action": "stopping.quick", "nodeID": "py"}, {"m": 1})
            await tap.publish("DISCOVER", {"ver": ver, "sender": "tap"})
            assert (await tap.wait_for("INFO.tap", after=mark, sender="py"))["services"] == []
            slow.finish.set()
            gone = await js.local_event("$node.disconnected")
            assert (gone["node"], gone["unexpected"]) == ("py", False)
        assert results == ["done"]
        await tap.catch_up()
        assert tap.topics(after=mark, sender="py")[-1] == "DISCONNECT"
        assert tap.find("DISCONNECT") == [{"ver": ver, "sender": "py"}]


async def test_c32_after_a_nats_outage_the_node_sends_info_and_discover_again(
    version: str, tmp_path: Path, namespace: str
) -> None:
    with NatsServer(tmp_path / "nats") as server:
        async with (
            nats_recorder(server.url) as ours,
            js_node(version, server.url, namespace, "js") as js,
            ServiceBroker(
                "py",
                namespace=namespace,
                transporter=ours.url,
                protocol=PROTOCOLS[version],
                services=[PythonMath(), PythonSlow()],
            ) as broker,
        ):
            await js.create_service("math")
            await js.wait_for_services("pymath")
            await broker.wait_for_services("math", timeout=30)
            mark = ours.mark()
            server.restart()

            def sent() -> dict[str, Any]:
                return {one.subject.split(".", 1)[1]: one.packet for one in ours.of("PUB", after=mark)}

            await eventually(lambda: sent().keys() >= {"DISCOVER", "INFO", "HEARTBEAT"}, "the node to announce itself")
            assert sent()["DISCOVER"] == {"ver": PROTOCOLS[version], "sender": "py"}
            assert {service["name"] for service in sent()["INFO"]["services"]} >= {"pymath", "pyslow"}
            assert await once_connected(js) == 2
            assert await broker.call("math.add", {"a": 1, "b": 1}, timeout=30) == 2


async def once_connected(js: JsNode) -> Any:
    """Packets that JS sends before it has reconnected are lost without notice (§4.5)."""
    with anyio.fail_after(DEADLINE_S):
        while True:
            try:
                return await js.call("pymath.add", {"a": 1}, timeout=500)
            except JsError as error:
                if error.type != "REQUEST_TIMEOUT":
                    raise
