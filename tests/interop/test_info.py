"""The INFO that nodes send, and how they read the INFO of others (protocol §3, §9.4, §9.5).

Twin services are declared in JavaScript and in Python; the two announcements must be equal.
"""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker import ServiceBroker, ServiceNotAvailableError
from tests.interop.conftest import Cluster
from tests.interop.twins import NAMES, TWINS, twins
from tests.support.js_node import PROTOCOLS, VERSIONS, JsError, js_node
from tests.support.tap import Tap, open_tap
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", params=VERSIONS)
async def infos(request: pytest.FixtureRequest, nats_url: str, js_modules: object) -> AsyncIterator[dict[str, Any]]:
    """The INFO of a JS node and of a Python node with twin services, and what the JS node knows of the Python one."""
    namespace = f"info-{uuid.uuid4().hex[:12]}"
    async with open_tap(nats_url, namespace) as tap:
        async with js_node(request.param, nats_url, namespace, "js") as js:
            await js.run(TWINS)
            theirs = await info(tap, "js")
        async with (
            js_node(request.param, nats_url, namespace, "plain") as js,
            ServiceBroker(
                "py",
                namespace=namespace,
                transporter=nats_url,
                protocol=PROTOCOLS[request.param],
                metadata={"zone": "z1"},
                services=twins(),
            ),
        ):
            ours = await info(tap, "py")
            await js.wait_for_services("v2.posts")
            yield {"js": theirs, "py": ours, "known": await js.actions(), "services": await js.services()}
            assert js.logged() == []


async def info(tap: Tap, node_id: str) -> dict[str, Any]:
    def found() -> Any:
        infos = tap.find("INFO", sender=node_id)
        return infos and {service["name"] for service in infos[-1]["services"]} >= set(NAMES) and infos[-1]

    infos: dict[str, Any] = await eventually(found, f"the announcement of {node_id}")
    return infos


def by_name(info: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {service["name"]: service for service in info["services"] if service["name"] in NAMES}


async def test_c15_info_has_the_fields_of_a_js_node(infos: dict[str, Any]) -> None:
    ours, theirs = infos["py"], infos["js"]
    assert {name: type(value) for name, value in ours.items()} == {name: type(value) for name, value in theirs.items()}
    assert (ours["config"], ours["metadata"], ours["hostname"]) == ({}, {"zone": "z1"}, theirs["hostname"])
    assert ours["ipList"] == theirs["ipList"]
    assert set(ours["client"]) >= {"type", "version", "langVersion"}
    assert uuid.UUID(ours["instanceID"])


@pytest.mark.parametrize("name", NAMES)
async def test_c16_c17_c18_c19_a_service_is_announced_as_its_twin_in_js(infos: dict[str, Any], name: str) -> None:
    ours, theirs = by_name(infos["py"])[name], by_name(infos["js"])[name]
    for event_info in ours["events"].values():  # ours always names the group, which JS derives
        assert event_info.pop("group") == theirs["events"][event_info["name"]].pop("group", name)
    assert ours == theirs
    for kind in ("actions", "events"):
        assert [key for key, value in ours[kind].items() if value["name"] != key] == []


async def test_c18_private_actions_are_not_announced_and_protected_ones_are(
    infos: dict[str, Any],
) -> None:
    actions = by_name(infos["py"])["seen"]["actions"]
    assert "seen.inside" not in actions
    assert actions["seen.here"]["visibility"] == "protected"
    assert {name for name in infos["known"] if name.startswith("seen.")} == {
        "seen.everywhere",
        "seen.peers",
        "seen.slow",
    }


async def test_c19_names_include_the_version_as_in_js(infos: dict[str, Any]) -> None:
    full_names = {service["fullName"] for service in by_name(infos["py"]).values()}
    assert full_names == {"v2.posts", "staging.users", "nover", "v4.nopre", "secret", "seen", "v1.listener"}
    assert set(infos["known"]) >= {"v2.posts.renamed", "staging.users.find", "nover.find", "direct.call"}


async def test_c25_announcements_contain_nothing_that_breaks_js(infos: dict[str, Any]) -> None:
    for service in infos["py"]["services"]:
        for entry in [*service["actions"].values(), *service["events"].values()]:
            assert "fallback" not in entry
            assert entry.get("strategy") in (None, "RoundRobin", "Random", "CpuUsage", "Latency", "Shard")


class Probe:
    """A raw peer, and what the JS and the Python node know of it."""

    def __init__(self, cluster: Cluster, node_id: str) -> None:
        self.cluster = cluster
        self.node_id = node_id

    async def announce(self, services: Any, seq: int | None = 1, instance: str = "i1", **fields: Any) -> None:
        packet = {"services": services, "seq": seq, "instanceID": instance, "config": {}, **fields}
        packet = {name: value for name, value in packet.items() if value != "absent"}
        await self.cluster.tap.publish("INFO", {"ver": self.cluster.ver, "sender": self.node_id, **packet})
        for node in ("js", "py"):
            await self.cluster.tap.settle(node, ver=self.cluster.ver)

    async def offered(self) -> set[str]:
        """Its actions as both nodes know them."""
        in_js = {
            name
            for name, action in (await self.cluster.js.actions()).items()
            if any(endpoint["nodeID"] == self.node_id for endpoint in action["endpoints"] or ())
        }
        here = self.cluster.broker.registry.actions
        in_python = {name for name, choices in here.items() if choices.on_node(self.node_id)}
        assert in_js == in_python
        return in_python


def service(name: str, *actions: str, **fields: Any) -> dict[str, Any]:
    offered = {f"{name}.{one}": {"name": f"{name}.{one}", "rawName": one} for one in actions}
    return {"name": name, "fullName": name, "settings": {}, "metadata": {}, "actions": offered, "events": {}} | fields


async def test_c21_c22_services_are_read_when_the_sequence_or_instance_is_new(cluster: Cluster) -> None:
    probe = Probe(cluster, "probe-seq")
    await probe.announce([service("ps", "a", "b")], 5, metadata={"v": 1})
    assert await probe.offered() == {"ps.a", "ps.b"}
    await probe.announce([service("ps", "a")], 5, metadata={"v": 2})
    assert await probe.offered() == {"ps.a", "ps.b"}, "the same sequence: the services are not read…"
    assert cluster.broker.registry.nodes["probe-seq"].metadata == {"v": 2}, "…but the node is"
    assert (await cluster.js.nodes())["probe-seq"]["metadata"] == {"v": 2}
    await probe.announce([service("ps", "a")], 4)
    assert await probe.offered() == {"ps.a", "ps.b"}
    await probe.announce([service("ps", "a"), service("pt", "c")], 6)
    assert await probe.offered() == {"ps.a", "pt.c"}, "an action that is no longer listed is removed"
    with pytest.raises(ServiceNotAvailableError):
        await cluster.broker.call("ps.b")
    with pytest.raises(JsError, match="not available"):
        await cluster.js.call("ps.b")
    await probe.announce([service("pt", "d")], 1, instance="i2")
    assert await probe.offered() == {"pt.d"}, "another process starts its sequence again"
    await cluster.tap.publish("DISCONNECT", {"ver": cluster.ver, "sender": "probe-seq"})
    await probe.announce([service("pt", "e")], 1, instance="i2")
    assert await probe.offered() == {"pt.e"}, "the INFO of a node that was gone is read, whatever its sequence"


@pytest.mark.parametrize("missing", ["fullName", "settings", "metadata", "events", "all", "actions"])
async def test_c24_a_peer_may_leave_out_fields_that_can_be_derived(cluster: Cluster, missing: str) -> None:
    name = f"less-{missing.lower()}"
    offered = service(name, "a", version=2)
    offered["actions"] = {f"v2.{name}.a": {"name": f"v2.{name}.a"}}
    offered["fullName"] = f"v2.{name}"
    for field in ("fullName", "settings", "metadata", "events") if missing == "all" else (missing,):
        del offered[field]
    probe = Probe(cluster, f"probe-{missing}")
    await probe.announce([offered], seq=None)
    assert await probe.offered() == (set() if missing == "actions" else {f"v2.{name}.a"})
    assert f"v2.{name}" in await cluster.js.services()
    assert cluster.broker.registry.has_service(f"v2.{name}")


async def test_c24_a_peer_may_announce_no_services(cluster: Cluster) -> None:
    probe = Probe(cluster, "probe-none")
    await probe.announce("absent", metadata="absent")
    assert await probe.offered() == set()
    assert "probe-none" in await cluster.js.nodes()
    assert cluster.broker.registry.nodes["probe-none"].available
