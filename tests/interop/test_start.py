"""A node joins a cluster with the same steps as a JS node (protocol §1.2, §3.3, §3.4, §4.1)."""

import logging
from pathlib import Path
from typing import Any, ClassVar

import anyio
import pytest

from broker import Context, Service, ServiceBroker, action
from tests.interop.services import PythonMath
from tests.support.js_node import PROTOCOLS, js_node
from tests.support.nats_recorder import NatsRecorder, nats_recorder
from tests.support.nats_server import NatsServer
from tests.support.tap import Tap, open_tap
from tests.support.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("js_modules")]


class Watcher(Service):
    """Like the one of every JS node in these tests."""

    name = "watcher"


class Named(Service):
    name: ClassVar[str]

    @action
    async def run(self, ctx: Context) -> str:
        return self.name


class One(Named):
    name = "one"


class Two(Named):
    name = "two"


class Three(Named):
    name = "three"


def first_steps(recorder: NatsRecorder, node_id: str) -> tuple[list[str], str, dict[str, Any]]:
    """The subscriptions before its first packet, with the subject and content of that packet."""
    asked = recorder.of("SUB", "PUB")
    first = next(i for i, one in enumerate(asked) if one.verb == "PUB" and (one.packet or {}).get("sender") == node_id)
    before = [one.subject.replace(f".{node_id}", ".<ID>") for one in asked[:first] if one.verb == "SUB"]
    # Ours first asks under another name whether its id is free and which nodes others know, and subscribes for the
    # answers; it also has an inbox.
    ours = ("~", ".REPLY.")
    return (
        [subject for subject in before if not any(mark in subject for mark in ours)],
        asked[first].subject,
        asked[first].packet,
    )


async def test_c2_c3_a_node_starts_with_the_same_steps_as_a_js_node(
    version: str, nats_url: str, namespace: str
) -> None:
    ver = PROTOCOLS[version]
    async with nats_recorder(nats_url) as theirs, nats_recorder(nats_url) as ours:
        async with js_node(version, theirs.url, namespace, "js"):
            subscriptions, subject, packet = first_steps(theirs, "js")
        async with ServiceBroker(
            "py", namespace=namespace, transporter=ours.url, protocol=ver, services=[PythonMath()]
        ):
            assert len(subscriptions) == 12
            assert first_steps(ours, "py") == (subscriptions, subject, {**packet, "sender": "py"})
    assert (subject, packet) == (f"MOL-{namespace}.DISCOVER", {"ver": ver, "sender": "js"})


async def announced(tap: Tap, node_id: str, *names: str) -> None:
    """Return when the node has announced exactly these services besides internal ones."""

    def holds() -> bool:
        infos = history(tap, node_id)
        return bool(infos) and infos[-1][1] == sorted(names)

    await eventually(holds, f"{node_id} to announce {names}; it announced {history(tap, node_id)}")


def history(tap: Tap, node_id: str) -> list[tuple[int, list[str]]]:
    """Sequence number and services of each INFO that a node broadcast."""
    return [
        (info["seq"], sorted(service["name"] for service in info["services"] if service["name"] != "$node"))
        for info in tap.find("INFO", sender=node_id)
    ]


async def test_c4_c20_c22_a_burst_of_changes_is_announced_once_with_the_sequence_of_js(
    version: str, nats_url: str, namespace: str
) -> None:
    names = ("one", "three", "two")
    async with open_tap(nats_url, namespace) as tap:
        async with js_node(version, nats_url, namespace, "js") as js:
            await announced(tap, "js", "watcher")
            async with ServiceBroker("py", namespace=namespace, transporter=nats_url, services=[Watcher()]) as broker:
                await announced(tap, "py", "watcher")
                for service in (One(), Two(), Three()):
                    await broker.add_service(service)
                    added = anyio.current_time()
                await js.run("for (const name of ['one', 'two', 'three']) broker.createService({ name })")
                await announced(tap, "py", "watcher", *names)
                assert anyio.current_time() - added >= 0.9, "changes are gathered for a second"
                await announced(tap, "js", "watcher", *names)
                await js.wait_for_services(*names)
                await broker.remove_service("two")
                await js.command("destroyService", name="two")
                for node in ("py", "js"):
                    await announced(tap, node, "one", "three", "watcher")
                offered = await js.actions()
                assert ("one.run" in offered, "two.run" in offered) == (True, False)
                assert not broker.registry.has_service("two")
        for node in ("py", "js"):
            await announced(tap, node)
        expected = [(2, ["watcher"]), (3, [*names, "watcher"]), (4, ["one", "three", "watcher"]), (5, [])]
        assert (history(tap, "py"), history(tap, "js")) == (expected, expected)


async def test_c5_c6_only_a_discover_is_answered_with_info_and_it_registers_no_node(
    version: str, nats_url: str, namespace: str
) -> None:
    ver = PROTOCOLS[version]
    async with (
        open_tap(nats_url, namespace) as tap,
        js_node(version, nats_url, namespace, "js") as js,
        ServiceBroker("py", namespace=namespace, transporter=nats_url, services=[PythonMath()]) as broker,
    ):
        await js.wait_for_services("pymath")
        nodes = ("js", "py")
        await tap.catch_up()
        assert tap.find("INFO.py", sender="js"), "JS answered our DISCOVER"
        assert tap.find("INFO.py", sender="py") == [], "a node does not answer itself"

        for topic in ("DISCOVER", "DISCOVER.js", "DISCOVER.py"):
            await tap.publish(topic, {"ver": ver, "sender": "ghost"})
        for node in nodes:
            await tap.settle(node, ver=ver)
        assert sorted(info["sender"] for info in tap.find("INFO.ghost")) == ["js", "js", "py", "py"]
        assert "ghost" not in await js.nodes()
        assert "ghost" not in broker.registry.nodes

        mark = await tap.mark()
        info: dict[str, Any] = {
            "ver": ver,
            "sender": "ghost",
            "services": [],
            "instanceID": "i",
            "seq": 1,
            "config": {},
        }
        await tap.publish("INFO", info)
        await tap.publish("INFO.py", info)
        for node in nodes:
            await tap.settle(node, ver=ver)
        assert "ghost" in await js.nodes()
        assert "ghost" in broker.registry.nodes
        assert [topic for topic in tap.topics(after=mark) if topic == "INFO.ghost"] == []


async def test_c1_namespaces_never_mix(version: str, nats_url: str, namespace: str) -> None:
    async with (
        open_tap(nats_url, "") as tap,
        js_node(version, nats_url, "", "js") as js,
        ServiceBroker("py", namespace="", transporter=nats_url, services=[One()]),
        # The same id and service in another namespace: if one of them received the other's packets, it would stop.
        ServiceBroker("py", namespace=namespace, transporter=nats_url, services=[One(), Two()]) as elsewhere,
    ):
        await js.wait_for_services("one")
        assert await elsewhere.call("two.run") == "two"
        assert set(await js.nodes()) == {"js", "py"}
        assert "two.run" not in await js.actions()
        assert set(elsewhere.registry.nodes) == {"py"}
        await tap.catch_up()
        assert tap.find("INFO", sender="py"), "without a namespace the prefix is MOL alone"


async def test_c7_a_node_waits_for_its_server(
    version: str, tmp_path: Path, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="broker")
    with NatsServer(tmp_path / "nats") as server:
        server.stop()
        broker = ServiceBroker("py", namespace=namespace, transporter=server.url, services=[One()])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(broker.start)
            await eventually(lambda: caplog.records, "a line about the missing server")
            server.start()
            async with js_node(version, server.url, namespace, "js") as js:
                await js.wait_for_services("one")
                assert await js.call("one.run", timeout=30_000) == "one"
        await broker.stop()


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=pytest.mark.long)])
@pytest.mark.parametrize("order", ["together", "behind it"])
async def test_c90_a_node_that_starts_together_with_a_js_node_leaves_no_error_in_its_log(
    nats_url: str, namespace: str, order: str, rounds: int
) -> None:
    for number in range(rounds):
        await start_both(nats_url, f"{namespace}-{number}", behind=order == "behind it")


async def start_both(nats_url: str, namespace: str, *, behind: bool) -> None:
    """A JS node sends no answers for half a second after its own DISCOVER, and logs an error for the other version. The
    tap subscribes only to DISCOVER: it would receive our PEERS request otherwise, and we would wait for its answer."""
    broker = ServiceBroker("py", namespace=namespace, transporter=nats_url, services=[PythonMath()])

    async def start() -> None:
        if behind:
            await tap.wait_for("DISCOVER", sender="js")
        await broker.start()

    async with open_tap(nats_url, namespace, "DISCOVER") as tap, anyio.create_task_group() as tasks:
        tasks.start_soon(start)
        async with js_node("0.15", nats_url, namespace, "js") as js:
            await js.wait_for_services("pymath")
            await broker.wait_for_services("watcher", timeout=30)
            assert await js.call("pymath.add", {"a": 1}) == 2
            assert js.logged("warn", "error", "fatal") == []
            await broker.stop()


async def test_a_node_that_another_one_reports_is_discovered_at_once_without_a_log_line(
    version: str, nats_url: str, namespace: str
) -> None:
    options: dict[str, Any] = {"namespace": namespace, "transporter": nats_url, "heartbeat_interval": 1}
    async with (
        open_tap(nats_url, namespace) as tap,
        js_node(version, nats_url, namespace, "js", heartbeatInterval=1) as js,
        ServiceBroker("py-1", **options) as first,
    ):
        await eventually(lambda: first.registry.nodes["js"].available and first.peers.complete)
        mark, logged = await tap.mark(), len(js.logged("warn", "error", "fatal"))
        assert logged <= (1 if version == "0.14" else 0), (
            "the first node asks in version 5, unless a heartbeat came first"
        )
        async with ServiceBroker("py-2", services=[PythonMath()], **options) as second:
            assert set(second.registry.nodes) == {"js", "py-1", "py-2"}
            assert second.registry.nodes["js"].ver == PROTOCOLS[version]
            await js.wait_for_services("pymath")
        assert tap.find("DISCOVER", after=mark, sender="py-2") == []
        await tap.settle("js", ver=PROTOCOLS[version])
        assert len(js.logged("warn", "error", "fatal")) == logged
