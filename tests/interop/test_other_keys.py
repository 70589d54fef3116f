"""Nodes of one namespace that cannot decode each other's packets: another key, none, another format (protocol §13)."""

import logging
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import anyio
import pytest

from broker import Compression, Encryption, ServiceBroker
from tests.interop.services import PythonEcho
from tests.support.js_node import PROTOCOLS, JsNode, js_node
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

KEYS, IV = ("12345678901234567890123456789012", "another key of two times 16 bytes"[:32]), "1234567890123456"
WIRES: dict[str, tuple[list[Any], list[Any]]] = {
    "one-key": ([["Encryption", KEYS[0], "aes-256-cbc", IV]], [Encryption(KEYS[0], iv=IV)]),
    "other-key": ([["Encryption", KEYS[1], "aes-256-cbc", IV]], [Encryption(KEYS[1], iv=IV)]),
    "packed": ([["Compression", {"threshold": None}]], [Compression(threshold=None)]),
    "plain": ([], []),
}
"""The middlewares of every packet, as JS options and as ours."""


@dataclass(frozen=True)
class Pair:
    """A JS and a Python node that can decode only each other's packets."""

    js: JsNode
    py: ServiceBroker

    async def serves(self) -> None:
        """Both know only each other, and can call each other."""
        assert set(await self.js.nodes()) == {self.js.node_id, self.py.node_id}
        assert {node.id for node in self.py.registry.nodes.values()} == {self.js.node_id, self.py.node_id}
        value = {"from": [self.js.node_id, "x" * 2000]}
        assert await self.js.call("pyecho.params", value) == value
        assert await self.py.call("echo.params", value) == value


@pytest.fixture(params=["0.15", pytest.param("0.14", marks=pytest.mark.long)])
async def pairs(request: pytest.FixtureRequest, nats_url: str, js_modules: object) -> AsyncIterator[dict[str, Pair]]:
    version, namespace = request.param, f"keys-{uuid.uuid4().hex[:12]}"
    options: dict[str, Any] = {"namespace": namespace, "transporter": nats_url, "protocol": PROTOCOLS[version]}
    async with AsyncExitStack() as stack:
        pairs = {}
        for name, (in_js, here) in WIRES.items():
            broker = ServiceBroker(f"py-{name}", transforms=here, services=[PythonEcho()], **options)
            starting = js_node(version, nats_url, namespace, f"js-{name}", middlewares=in_js)
            pairs[name] = Pair(await stack.enter_async_context(starting), broker)
            await pairs[name].js.create_service("echo")
        async with anyio.create_task_group() as tasks:
            for pair in pairs.values():
                tasks.start_soon(stack.enter_async_context, pair.py)
        for pair in pairs.values():
            await pair.js.wait_for_services("pyecho")
            await pair.py.wait_for_services("echo", timeout=30)
        yield pairs


async def test_c85_nodes_with_other_keys_log_and_drop_each_others_packets_and_keep_serving(
    pairs: dict[str, Pair], caplog: pytest.LogCaptureFixture
) -> None:
    for pair in pairs.values():
        await pair.serves()
    caplog.clear()
    mismatched = [(one, other) for one in pairs.values() for other in pairs.values() if one is not other]
    marks = {pair.js.node_id: pair.js.mark() for pair in pairs.values()}
    for one, other in mismatched:
        await one.js.run(f"await broker.transit.sendPing('{other.py.node_id}');")
        assert await one.py.ping(other.js.node_id, timeout=0.01) is None

    def lines() -> list[str]:
        dropped = [record for record in caplog.records if record.levelno >= logging.WARNING]
        return [record.getMessage() for record in dropped if "no PING packet" in record.getMessage()]

    await eventually(lambda: len(lines()) >= len(mismatched), "a line for each packet")
    for pair in pairs.values():
        await pair.js.process.line('{"event":"log"', after=marks[pair.js.node_id])  # also dropped there
        await pair.serves()
    assert len(lines()) == len(mismatched)
    assert all(line.startswith("Dropped ") for line in lines())
    assert not [record for record in caplog.records if record.levelno > logging.WARNING or record.exc_info]
