"""A node in its own process that a test kills or freezes, and the calls that wait for it."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel

from broker import ServiceBroker
from tests.interop.services import PythonSlow
from tests.support.js_node import VERSIONS, js_node
from tests.support.processes import DEADLINE_S, Process, start_python
from tests.support.waiting import eventually

__all__ = ["KINDS", "Victim", "open_other", "open_victim"]

KINDS = ("Python", *VERSIONS)


@dataclass(frozen=True)
class Victim:
    """A node in its own process, with a service that has the actions `wait` and `block`."""

    process: Process
    service: str
    broker: ServiceBroker
    """Another node that knows it."""

    async def call(self, action: str, ms: float, **options: Any) -> Any:
        return await self.broker.call(f"{self.service}.{action}", {"ms": ms}, **options)

    @property
    def probes(self) -> int:
        """The number of probes sent to it since it has kept calls waiting."""
        watched = self.broker._node.transit.requests.liveness._watched.get("victim")
        return watched.probes if watched else 0

    @property
    def is_unreachable(self) -> bool:
        """Whether the last probe reached no subscriber."""
        watched = self.broker._node.transit.requests.liveness._watched["victim"]
        return watched.refused >= watched.probes - 1

    @property
    def chosen(self) -> set[str]:
        """The nodes that calls go to."""
        return {self.broker.registry.find_action(f"{self.service}.wait").node_id for _ in range(4)}

    def freeze(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    async def kill(self) -> None:
        """Return when the NATS server knows."""
        await self.process.kill()
        transport = self.broker._node.transport
        assert transport is not None
        subject = self.broker._node.transit.topics.to_node("PONG", "victim")
        with anyio.fail_after(DEADLINE_S):
            while await transport.has_subscribers(subject, b""):
                await anyio.lowlevel.checkpoint()


@asynccontextmanager
async def open_victim(
    kind: str, nats_url: str, namespace: str, its_url: str = "", heartbeat_timeout: float = 3600, **js_options: Any
) -> AsyncIterator[Victim]:
    its_url = its_url or nats_url
    options: dict[str, Any] = {"namespace": namespace, "transporter": nats_url}
    async with ServiceBroker("caller", heartbeat_timeout=heartbeat_timeout, **options) as broker:
        if kind == "Python":
            command = ("-m", "tests.interop.python_node", its_url, namespace, "victim")
            async with start_python(*command) as process:
                await broker.wait_for_services("pyslow", timeout=DEADLINE_S)
                yield Victim(process, "pyslow", broker)
        else:
            async with js_node(kind, its_url, namespace, "victim", **js_options) as js:
                await js.create_service("slow")
                await broker.wait_for_services("slow", timeout=DEADLINE_S)
                yield Victim(js.process, "slow", broker)


@asynccontextmanager
async def open_other(victim: Victim, nats_url: str, namespace: str) -> AsyncIterator[None]:
    """A node that offers the same actions."""
    twin = type("Twin", (PythonSlow,), {"name": victim.service})
    async with ServiceBroker("other", namespace=namespace, transporter=nats_url, services=[twin()]):
        await eventually(lambda: victim.chosen == {"other", "victim"}, "the other node to be known")
        yield
