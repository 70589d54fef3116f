"""What goes over the wire as an event (protocol §2.3, §7.1)."""

from typing import Any

import pytest

from tests.support.cluster import Cluster

pytestmark = pytest.mark.anyio

FIELDS = {
    "id", "event", "data", "broadcast", "meta", "level", "tracing", "parentID", "requestID", "caller", "needAck",
    "ver", "sender",
}  # fmt: skip


async def sent(cluster: Cluster, ver: str, kind: str, **options: Any) -> dict[str, Any]:
    one = await cluster.start_one("one")
    peer = await cluster.raw_peer("peer", "EVENT")
    events = {pattern: {"name": pattern} for pattern in ("user.*", "user.created")}
    other = {"user.**": {"name": "user.**", "group": "other"}}
    await peer.introduce({"name": "mail", "events": events}, {"name": "audit", "events": other}, ver=ver)
    await one.wait_for_services("audit", timeout=30)
    await getattr(one, kind)("user.created", {"id": 1}, **options)
    event = await peer.wait_for("EVENT")
    assert len(peer.received) == 1, "one packet a node"
    return event


async def test_c60_an_emitted_event_names_each_group_of_the_node_once(cluster: Cluster) -> None:
    event = await sent(cluster, "5", "emit", meta={"em": 1}, headers={"h": 1})
    assert event.keys() == FIELDS | {"headers", "groups"}
    assert sorted(event["groups"]) == ["mail", "other"]
    assert (event["broadcast"], event["data"], event["meta"], event["headers"]) == (
        False,
        {"id": 1},
        {"em": 1},
        {"h": 1},
    )
    assert (event["level"], event["tracing"], event["needAck"], event["caller"]) == (1, None, None, None)
    assert event["requestID"] != event["id"]


async def test_c61_a_broadcast_names_groups_only_when_restricted(cluster: Cluster) -> None:
    event = await sent(cluster, "4", "broadcast")
    assert event.keys() == FIELDS, "neither groups nor, in protocol 4, headers"
    assert (event["broadcast"], event["ver"]) == (True, "4")


async def test_c61_a_restricted_broadcast_names_them(cluster: Cluster) -> None:
    assert (await sent(cluster, "5", "broadcast", groups=["mail"]))["groups"] == ["mail"]


async def test_c60_groups_that_are_not_wanted_are_not_named(cluster: Cluster) -> None:
    assert (await sent(cluster, "5", "emit", groups=["mail", "nobody"]))["groups"] == ["mail"]
