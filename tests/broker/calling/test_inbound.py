"""What goes over the wire as an answer (protocol §2.3, §5.3, §6.1)."""

from typing import Any

import pytest

from broker import Context, MoleculerError, Service, action
from tests.support.cluster import Cluster
from tests.support.example_services import Echo, Math

pytestmark = pytest.mark.anyio


async def asked(cluster: Cluster, action: str, **fields: Any) -> dict[str, Any]:
    await cluster.start_one("one", [Echo(), Math(), Heading()])
    peer = await cluster.raw_peer("peer", "RES")
    return await peer.ask("one", action, **fields)


class Heading(Service):
    name = "heading"

    @action
    async def set(self, ctx: Context) -> None:
        ctx.response_headers["h"] = 1

    @action
    async def fail(self, ctx: Context) -> None:
        ctx.response_headers["h"] = 1
        ctx.meta["seen"] = True
        raise MoleculerError("failed", 599, "MINE", {"z": 1})


async def test_c36_c39_an_answer_of_protocol_5_has_headers(cluster: Cluster) -> None:
    answer = await asked(cluster, "echo.params", params={"a": 1}, meta={"user": 7})
    assert answer.keys() == {"id", "meta", "headers", "success", "data", "ver", "sender"}
    assert (answer["success"], answer["data"], answer["meta"]) == (True, {"a": 1}, {"user": 7})
    assert (answer["headers"], answer["ver"], answer["sender"]) == ({}, "5", "one")


async def test_c36_an_answer_of_protocol_4_has_none(cluster: Cluster) -> None:
    answer = await asked(cluster, "echo.params", ver="4")
    assert answer.keys() == {"id", "meta", "success", "data", "ver", "sender"}
    assert answer["ver"] == "4"


async def test_c40_no_result_is_null(cluster: Cluster) -> None:
    answer = await asked(cluster, "heading.set")
    assert (answer["success"], answer["data"]) == (True, None)


async def test_c44_c52_an_error_has_every_field_and_the_meta_and_headers(cluster: Cluster) -> None:
    answer = await asked(cluster, "heading.fail")
    assert (answer["success"], answer["data"], answer["meta"]) == (False, None, {"seen": True})
    assert answer["headers"] == {"h": 1}
    error = answer["error"]
    stack = error.pop("stack")
    assert error == {
        "name": "MoleculerError",
        "message": "failed",
        "nodeID": "one",
        "code": 599,
        "type": "MINE",
        "retryable": False,
        "data": {"z": 1},
    }
    assert stack.startswith("MoleculerError: failed\n    at ")


async def test_c58_a_violation_on_the_wire(cluster: Cluster) -> None:
    answer = await asked(cluster, "math.add", params={"a": "x", "b": 1})
    (item,) = answer["error"]["data"]
    assert {key: item[key] for key in ("type", "field", "actual", "nodeID", "action")} == {
        "type": "number",
        "field": "a",
        "actual": "x",
        "nodeID": "peer",
        "action": "math.add",
    }


async def test_two_requests_of_one_id_are_both_answered(cluster: Cluster) -> None:
    await cluster.start_one("one", [Echo()])
    peer = await cluster.raw_peer("peer", "RES")
    packet = {"ver": "5", "sender": "peer", "id": "same", "action": "echo.where"}
    for _ in range(2):
        await peer.publish(cluster.topics.to_node("REQ", "one"), packet)
    await peer.ask("one", "echo.where")
    assert [answer["id"] for _, answer in peer.received][:2] == ["same", "same"]
