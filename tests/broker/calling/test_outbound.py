"""What goes over the wire with a call (protocol §2.3, conformance 35 to 46)."""

from dataclasses import dataclass
from typing import Any

import anyio
import pytest
from msgspec import Struct

from broker import Context, Service, action
from tests.support.cluster import Cluster, RawPeer

pytestmark = pytest.mark.anyio

FIELDS = {
    "id", "action", "params", "meta", "timeout", "level", "tracing", "parentID", "requestID", "caller", "stream",
    "ver", "sender",
}  # fmt: skip


async def sent(cluster: Cluster, ver: str, *arguments: Any, **options: Any) -> dict[str, Any]:
    """The request that a call makes towards a peer of a version."""
    one = await cluster.start_one("one")
    peer = await cluster.raw_peer("peer", "REQ")
    actions = {"odd.answer": {"name": "odd.answer", "rawName": "answer", "timeout": 3000}}
    await peer.introduce({"name": "odd", "actions": actions}, ver=ver)
    await one.wait_for_services("odd", timeout=30)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_answer, cluster, peer)
        assert await one.call("odd.answer", *arguments, **options) == "answered"
    return await peer.wait_for("REQ")


async def _answer(cluster: Cluster, peer: RawPeer) -> None:
    request = await peer.wait_for("REQ")
    answer = {"ver": request["ver"], "sender": "peer", "id": request["id"], "success": True, "data": "answered"}
    await peer.publish(cluster.topics.to_node("RES", "one"), answer)


async def test_c35_a_request_has_every_field_and_c36_headers_in_protocol_5(cluster: Cluster) -> None:
    request = await sent(cluster, "5", {"a": 1}, meta={"user": 7}, headers={"h": 1}, request_id="r", caller="tests")
    assert request.keys() == FIELDS | {"headers"}
    assert (request["params"], request["meta"], request["headers"]) == ({"a": 1}, {"user": 7}, {"h": 1})
    assert (request["requestID"], request["caller"], request["level"]) == ("r", "tests", 1)
    assert (request["tracing"], request["parentID"], request["stream"]) == (None, None, False)


async def test_c36_protocol_4_has_no_headers(cluster: Cluster) -> None:
    request = await sent(cluster, "4", headers={"h": 1})
    assert request.keys() == FIELDS
    assert (request["ver"], request["params"]) == ("4", {})


async def test_c35_an_explicit_none_is_null(cluster: Cluster) -> None:
    assert (await sent(cluster, "5", None))["params"] is None


@pytest.mark.parametrize(("options", "at_most"), [({}, 3000), ({"timeout": 1.5}, 1500), ({"timeout": 60}, 60_000)])
async def test_c46_c50_the_timeout_on_the_wire_is_in_milliseconds(
    cluster: Cluster, options: dict[str, Any], at_most: float
) -> None:
    assert at_most / 2 < (await sent(cluster, "5", **options))["timeout"] <= at_most


async def test_c46_no_timeout_is_zero(cluster: Cluster) -> None:
    assert (await sent(cluster, "5", timeout=0))["timeout"] == 0


@dataclass
class Place:
    street: str
    number: int = 1


class Town(Struct):
    name: str


async def test_structs_and_dataclasses_are_plain_values_on_the_own_node_as_on_others(cluster: Cluster) -> None:
    class Places(Service):
        name = "places"

        @action
        async def echo(self, ctx: Context) -> Any:
            return ctx.params

        @action
        async def named(self, ctx: Context, name: str) -> Any:
            return {"in": [Town(name)], "at": Place(name)}

    here, there = await cluster.start(("here", [Places()]), ("there", []))
    for caller in (here, there):
        assert await caller.call("places.echo", Place("Main")) == {"street": "Main", "number": 1}
        assert await caller.call("places.echo", Town("Oslo")) == {"name": "Oslo"}
        assert await caller.call("places.named", Town("Oslo")) == {
            "in": [{"name": "Oslo"}],
            "at": {"street": "Oslo", "number": 1},
        }
