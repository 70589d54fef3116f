"""Nodes that are killed, frozen, busy or reconnecting, and the calls that wait for them (protocol §4.3)."""

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import pytest

from broker import RequestRejectedError, ServiceBroker
from broker.defaults import TICK_S
from tests.interop.services import PythonSlow
from tests.support.js_node import VERSIONS, js_node
from tests.support.nats_server import NatsServer
from tests.support.processes import DEADLINE_S, Process, start_python
from tests.support.tap import open_tap
from tests.support.tcp_proxy import TcpProxy
from tests.support.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("js_modules")]

KINDS = ("Python", *VERSIONS)
# Where both versions of Moleculer JS do the same by the same code, one is enough in a hurry.
FEW_KINDS = ("Python", pytest.param("0.14", marks=pytest.mark.long), "0.15")


@dataclass(frozen=True)
class Victim:
    """A node in a process of its own, with the actions `wait` and `block` of a service."""

    process: Process
    service: str
    broker: ServiceBroker
    """Another node that knows it, and notices nothing by heartbeats."""

    async def call(self, action: str, ms: float, **options: Any) -> Any:
        return await self.broker.call(f"{self.service}.{action}", {"ms": ms}, **options)

    @property
    def probes(self) -> int:
        """How many were sent to it since it has kept calls waiting."""
        watched = self.broker._node.transit.waiting._watch._watched.get("victim")
        return watched.probes if watched else 0

    @property
    def is_unreachable(self) -> bool:
        """Whether it did not receive the last probe."""
        watched = self.broker._node.transit.waiting._watch._watched["victim"]
        return watched.refused >= watched.probes - 1

    @property
    def chosen(self) -> set[str]:
        """The nodes that calls go to."""
        return {self.broker.registry.find_action(f"{self.service}.wait").node_id for _ in range(4)}

    async def kill(self) -> None:
        """Return when the NATS server knows."""
        await self.process.kill()
        transport = self.broker._node.transport
        assert transport is not None
        subject = self.broker._node.transit.topics.to_node("PONG", "victim")
        with anyio.fail_after(DEADLINE_S):
            while await transport.is_heard(subject, b""):
                await anyio.lowlevel.checkpoint()


@asynccontextmanager
async def open_victim(kind: str, nats_url: str, namespace: str, its_url: str = "") -> AsyncIterator[Victim]:
    its_url = its_url or nats_url
    async with ServiceBroker("caller", namespace=namespace, transporter=nats_url, heartbeat_timeout=3600) as broker:
        if kind == "Python":
            async with start_python("-m", "tests.interop.python_node", its_url, namespace, "victim") as process:
                await broker.wait_for_services("pyslow", timeout=DEADLINE_S)
                yield Victim(process, "pyslow", broker)
        else:
            async with js_node(kind, its_url, namespace, "victim") as js:
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


@pytest.mark.parametrize("kind", KINDS)
async def test_c28_calls_of_any_age_fail_soon_after_their_node_was_killed(
    kind: str, nats_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = 0

    def counted(tick: Callable[[float], Any], now: float) -> Any:
        nonlocal ticks
        ticks += 1
        return tick(now)

    async with open_victim(kind, nats_url, namespace) as victim:

        async def rejected(began: anyio.Event) -> None:
            began.set()
            with pytest.raises(RequestRejectedError):
                await victim.call("wait", 3_600_000, node_id="victim")

        transit = victim.broker._node.transit
        monkeypatch.setattr(transit, "tick", partial(counted, transit.tick))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(rejected, anyio.Event())
            await eventually(lambda: victim.probes >= 2, "the call to be old")
            just_sent = anyio.Event()
            tasks.start_soon(rejected, just_sent)
            await just_sent.wait()
            await victim.kill()
            ticks = 0
        assert ticks <= 3 / TICK_S, "by the time of a busy machine; test_waiting.py has the exact bound"
        assert not victim.broker.registry.nodes["victim"].available


@pytest.mark.parametrize("kind", KINDS)
async def test_a_frozen_node_gets_no_new_calls_and_answers_the_old_ones_when_it_goes_on(
    kind: str, nats_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("broker.watch.NODE_UNRESPONSIVE_S", 1.0)
    caplog.set_level("INFO", "broker")
    async with open_victim(kind, nats_url, namespace) as victim, open_other(victim, nats_url, namespace):
        async with anyio.create_task_group() as tasks:
            victim.process.send_signal(signal.SIGSTOP)
            tasks.start_soon(partial(victim.call, "wait", 0, node_id="victim"))
            await eventually(lambda: "'victim' is connected and answers nothing" in caplog.text)
            assert victim.chosen == {"other"}
            victim.process.send_signal(signal.SIGCONT)
        await eventually(lambda: "'victim' answers again" in caplog.text)
        assert victim.chosen == {"other", "victim"}
        assert caplog.text.count("'victim'") == 2


@pytest.mark.parametrize("kind", FEW_KINDS)
async def test_a_killed_node_gets_no_new_calls_although_a_wiretap_receives_them(
    kind: str, nats_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.watch.NODE_UNRESPONSIVE_S", 1.0)
    async with (
        open_tap(nats_url, namespace) as tap,
        open_victim(kind, nats_url, namespace) as victim,
        open_other(victim, nats_url, namespace),
        anyio.create_task_group() as tasks,
    ):
        await victim.process.kill()
        tasks.start_soon(partial(victim.call, "wait", 0, node_id="victim"))
        await tap.sees("REQ.victim", sender="caller")
        await eventually(lambda: victim.chosen == {"other"})
        assert victim.broker._node.transit.waiting.pending, "until heartbeats are missed"
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("ms", [2_000, pytest.param(8_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", FEW_KINDS)
async def test_a_node_whose_event_loop_is_blocked_loses_no_call(
    kind: str, ms: int, nats_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.watch.NODE_UNRESPONSIVE_S", ms / 4000)
    async with open_victim(kind, nats_url, namespace) as victim, anyio.create_task_group() as tasks:
        tasks.start_soon(victim.call, "wait", ms / 2)
        tasks.start_soon(victim.call, "block", ms)
        await eventually(lambda: victim.probes >= 2, "the loop to be blocked")
        for _ in range(20):
            tasks.start_soon(victim.call, "wait", 0)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
async def test_calls_of_a_minute_to_a_busy_node_succeed(kind: str, nats_url: str, namespace: str) -> None:
    async with open_victim(kind, nats_url, namespace) as victim, anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(victim.call, "wait", 60_000)
        for _ in range(15):
            await victim.call("block", 3_000)


@pytest.mark.parametrize("kind", VERSIONS)
async def test_a_node_that_reconnects_answers_its_calls(
    kind: str, session_nats: NatsServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.watch.NODE_UNREACHABLE_S", DEADLINE_S)  # a busy machine needs longer than the default
    async with (
        TcpProxy(session_nats.port).running() as proxy,
        open_victim(kind, session_nats.url, namespace, proxy.url) as victim,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(victim.call, "wait", 5_000)
        await eventually(lambda: victim.probes >= 5, "nats.js to be connected for 2 s: until then it waits")
        proxy.close()
        await eventually(lambda: victim.is_unreachable)
        proxy.open()
        await eventually(lambda: not victim.is_unreachable)
