"""What `$node` lists of the cluster, against the answers captured from JS nodes (lines 127 to 132)."""

from typing import Any

import pytest

from broker import Context, Service, action, event
from broker.internals.listing import list_actions, list_events, list_nodes, list_services
from broker.protocol.packets import Info
from broker.registry.registry import Registry
from broker.services.service import define
from tests.support.transits import captured_packet


class Captured(Service):
    """The service of the captured node."""

    name = "s"
    version = 1
    settings = {"k": 1}  # noqa: RUF012  # as users write it
    metadata = {"m": 1}  # noqa: RUF012  # same

    @action(params={"a": "string"})
    async def x(self, ctx: Context) -> None: ...

    @action(visibility="protected")
    async def p(self, ctx: Context) -> None: ...

    @action(visibility="private")
    async def hidden(self, ctx: Context) -> None: ...

    @event("ev.*", group="g")
    async def on_event(self, ctx: Context) -> None: ...

    @event("$int")
    async def on_internal(self, ctx: Context) -> None: ...


SERVICE = {
    "name": "s",
    "version": 1,
    "fullName": "v1.s",
    "settings": {},
    "metadata": {},
    "actions": {"v1.s.x": {"rawName": "x", "name": "v1.s.x"}},
    "events": {},
}
INTERNAL = {"name": "$node", "fullName": "$node", "actions": {"$node.list": {"name": "$node.list"}}}


@pytest.fixture
def registry() -> Registry:
    """The two nodes of the captures."""
    registry = Registry("node-b")
    registry.started = 100.0
    registry.add_service(define(Captured()))
    info = Info(sender="node-a", services=[INTERNAL, SERVICE], instance_id="i", sequence=2, hostname="host-a")
    registry.apply_info(info, 102.2)
    return registry


def data(line: int) -> Any:
    return captured_packet("5", line)["data"]


def test_nodes_have_the_captured_shape(registry: Registry) -> None:
    rows = list_nodes(registry)
    assert [row.keys() for row in rows] == [row.keys() for row in data(127)]
    assert [row["id"] for row in rows] == ["node-b", "node-a"]
    assert rows[1]["seq"] == 2


def test_times_are_whole_seconds_since_the_start_of_the_process(registry: Registry) -> None:
    registry.lose_node("node-a", 107.4, unexpected=True)
    local, remote = list_nodes(registry)
    assert (local["lastHeartbeatTime"], local["offlineSince"]) == (0, None)
    assert (remote["lastHeartbeatTime"], remote["offlineSince"]) == (2, 7)


def test_nodes_that_are_gone_are_listed_unless_only_the_available_ones_are_wanted(registry: Registry) -> None:
    registry.lose_node("node-a", 107.4, unexpected=True)
    assert [(row["id"], row["available"]) for row in list_nodes(registry)] == [("node-b", True), ("node-a", False)]
    assert [row["id"] for row in list_nodes(registry, only_available=True)] == ["node-b"]


def test_nodes_come_with_their_services_when_asked(registry: Registry) -> None:
    rows = list_nodes(registry, with_services=True)
    assert [[service["fullName"] for service in row["services"]] for row in rows] == [["v1.s"], ["$node", "v1.s"]]


def test_services_are_grouped_as_captured(registry: Registry) -> None:
    assert list_services(registry, skip_internal=True) == data(129)


def test_services_of_each_node_are_as_captured(registry: Registry) -> None:
    rows = list_services(registry, skip_internal=True, grouping=False, with_actions=True, with_events=True)
    assert rows == data(130)


def test_a_group_of_services_has_the_actions_and_events_of_all_its_nodes(registry: Registry) -> None:
    more = SERVICE | {"actions": {"v1.s.y": {"name": "v1.s.y"}}, "events": {"more": {"name": "more"}}}
    registry.apply_info(Info(sender="node-c", services=[more], sequence=2), 103.0)
    row = next(row for row in list_services(registry, with_actions=True, with_events=True) if row["fullName"] == "v1.s")
    assert sorted(row["actions"]) == ["v1.s.p", "v1.s.x", "v1.s.y"]
    assert row["actions"]["v1.s.x"]["params"] == {"a": "string"}, "the first node's definition counts"
    assert sorted(row["events"]) == ["ev.*", "more"]
    assert row["nodes"] == ["node-b", "node-a", "node-c"]


def test_services_can_be_those_of_this_node_only(registry: Registry) -> None:
    rows = list_services(registry, only_local=True)
    assert [(row["fullName"], row["nodes"]) for row in rows] == [("v1.s", ["node-b"])]


def test_actions_are_as_captured(registry: Registry) -> None:
    assert list_actions(registry, skip_internal=True, with_endpoints=True) == data(131)


def test_an_action_that_no_node_offers_any_more_stays_listed(registry: Registry) -> None:
    registry.remove_service("v1.s")
    registry.lose_node("node-a", 103.0, unexpected=False)
    gone = {"name": "v1.s.x", "count": 0, "hasLocal": False, "available": False}
    assert gone in list_actions(registry, with_endpoints=True)
    assert list_actions(registry, only_available=True) == []


def test_actions_can_be_those_of_this_node_only(registry: Registry) -> None:
    assert [row["name"] for row in list_actions(registry, only_local=True)] == ["v1.s.x", "v1.s.p"]
    assert "$node.list" in [row["name"] for row in list_actions(registry)]


def test_the_state_of_an_endpoint_is_that_of_its_circuit_breaker(registry: Registry) -> None:
    registry.actions["v1.s.x"].on_node("node-a").set_available(available=False)  # type: ignore[union-attr]  # it is there
    row = next(row for row in list_actions(registry, with_endpoints=True) if row["name"] == "v1.s.x")
    assert row["endpoints"][1] == {"nodeID": "node-a", "state": False, "available": True}
    assert row["available"] is True


def test_events_are_as_captured_and_name_their_group(registry: Registry) -> None:
    expected = [{**row, "event": {**row["event"], "group": row["group"]}} for row in data(132)]
    assert list_events(registry, with_endpoints=True) == expected


def test_internal_events_can_be_skipped(registry: Registry) -> None:
    assert [row["name"] for row in list_events(registry, skip_internal=True)] == ["ev.*"]


def test_odd_entries_of_a_peer_do_not_spoil_a_list(registry: Registry) -> None:
    odd: dict[str, Any] = {
        "name": "odd",
        "actions": [],
        "events": {"x": "y", "z": {}, "e": {"name": "e"}},
        "settings": None,
    }
    registry.apply_info(Info(sender="node-d", services=[odd], sequence=2), 103.0)
    rows = list_services(registry, with_actions=True, with_events=True)
    row = next(row for row in rows if row["fullName"] == "odd")
    assert (row["settings"], row["actions"], row["events"]) == ({}, {}, {"e": {"name": "e"}})
    assert [row["event"] for row in list_events(registry) if row["name"] == "e"] == [{"name": "e"}]
