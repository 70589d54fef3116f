"""Nodes that are killed, frozen, busy or reconnecting, and the calls that wait for them (protocol §4.3)."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from broker import RequestRejectedError
from broker.defaults import TICK_S
from tests.interop.victim import KINDS, open_other, open_victim
from tests.support.js_node import VERSIONS
from tests.support.nats_server import NatsServer, cluster_of
from tests.support.processes import DEADLINE_S
from tests.support.tap import open_tap
from tests.support.tcp_proxy import TcpProxy
from tests.support.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("js_modules")]

# Where both versions of Moleculer JS run the same code, one is enough for the default run.
FEW_KINDS = ("Python", pytest.param("0.14", marks=pytest.mark.long), "0.15")


@pytest.mark.parametrize("kind", KINDS)
async def test_c28_calls_of_any_age_fail_soon_after_their_node_was_killed(
    kind: str, nats_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = 0

    def counted(tick: Callable[..., Any], *arguments: Any) -> Any:
        nonlocal ticks
        ticks += 1
        return tick(*arguments)

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
        assert ticks <= 3 / TICK_S, "generous for a busy machine; the unit tests of requests have the exact bound"
        assert not victim.broker.registry.nodes["victim"].available


@pytest.mark.parametrize("kind", FEW_KINDS)
async def test_a_frozen_node_gets_no_new_calls_and_answers_the_old_ones_when_it_resumes(
    kind: str, nats_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("broker.conversation.liveness.NODE_UNRESPONSIVE_S", 1.0)
    caplog.set_level("INFO", "broker")
    async with open_victim(kind, nats_url, namespace) as victim, open_other(victim, nats_url, namespace):
        async with anyio.create_task_group() as tasks:
            victim.freeze()
            tasks.start_soon(partial(victim.call, "wait", 0, node_id="victim"))
            await eventually(lambda: "'victim' is connected and answers nothing" in caplog.text)
            assert victim.chosen == {"other"}
            victim.resume()
        await eventually(lambda: "'victim' answers again" in caplog.text)
        assert victim.chosen == {"other", "victim"}
        assert caplog.text.count("'victim'") == 2


@pytest.mark.parametrize("kind", FEW_KINDS)
async def test_a_killed_node_gets_no_new_calls_although_a_wiretap_receives_them(
    kind: str, nats_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.conversation.liveness.NODE_UNRESPONSIVE_S", 1.0)
    async with (
        open_tap(nats_url, namespace) as tap,
        open_victim(kind, nats_url, namespace) as victim,
        open_other(victim, nats_url, namespace),
        anyio.create_task_group() as tasks,
    ):
        await victim.process.kill()
        tasks.start_soon(partial(victim.call, "wait", 0, node_id="victim"))
        await tap.wait_for("REQ.victim", sender="caller")
        await eventually(lambda: victim.chosen == {"other"})
        assert victim.broker._node.transit.requests.pending, "until heartbeats are missed"
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("ms", [2_000, pytest.param(8_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", FEW_KINDS)
async def test_a_node_whose_event_loop_is_blocked_loses_no_call(
    kind: str, ms: int, nats_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.conversation.liveness.NODE_UNRESPONSIVE_S", ms / 4000)
    async with open_victim(kind, nats_url, namespace) as victim, anyio.create_task_group() as tasks:
        tasks.start_soon(victim.call, "wait", ms / 2)
        tasks.start_soon(victim.call, "block", ms)
        await eventually(lambda: victim.probes >= 2, "the loop to be blocked")
        for _ in range(20):
            tasks.start_soon(victim.call, "wait", 0)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
async def test_calls_that_a_busy_node_answers_after_a_minute_succeed(kind: str, nats_url: str, namespace: str) -> None:
    async with open_victim(kind, nats_url, namespace) as victim, anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(victim.call, "wait", 60_000)
        for _ in range(15):
            await victim.call("block", 3_000)


@pytest.mark.parametrize("kind", FEW_KINDS)
async def test_a_node_that_reconnects_answers_its_calls(
    kind: str, session_nats: NatsServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy machine needs longer than the default.
    monkeypatch.setattr("broker.conversation.liveness.NODE_UNREACHABLE_S", DEADLINE_S)
    async with (
        TcpProxy(session_nats.port).running() as proxy,
        open_victim(kind, session_nats.url, namespace, proxy.url) as victim,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(victim.call, "wait", 4_000)
        await eventually(lambda: victim.probes >= 5, "nats.js to be connected for 2 s: before that it waits")
        proxy.close()
        await eventually(lambda: victim.is_unreachable)
        proxy.open()
        await eventually(lambda: not victim.is_unreachable)


@pytest.mark.long
@pytest.mark.parametrize("version", VERSIONS)
async def test_a_js_node_has_time_to_reconnect_when_its_nats_server_restarts(
    version: str, tmp_path: Path, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy machine needs longer than the default.
    monkeypatch.setattr("broker.conversation.liveness.NODE_RECONNECT_S", DEADLINE_S)
    ours, theirs = cluster_of(2, tmp_path)
    with ours, theirs:
        transporter = {"type": "NATS", "options": {"url": theirs.url, "ignoreClusterUpdates": True}}
        async with (
            open_victim(version, ours.url, namespace, transporter=transporter) as victim,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(victim.call, "wait", 8_000)
            await eventually(lambda: victim.probes >= 5, "nats.js to be connected for 2 s: before that it waits")
            theirs.kill()
            await eventually(lambda: victim.is_unreachable)
            theirs.start()  # nats.js has tried once, and waits 2 s
            await eventually(lambda: not victim.is_unreachable)
