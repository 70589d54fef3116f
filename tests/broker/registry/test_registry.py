"""What is known of the cluster follows from the packets alone (protocol §3.4, §4.3, §9)."""

import json
import random
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.context import Context
from broker.errors import ServiceNotAvailableError, ServiceNotFoundError
from broker.protocol.packets import Heartbeat, Info
from broker.registry.registry import Registry
from broker.services.decorators import action, event
from broker.services.service import Service, define
from tests.support.transits import captured, info, make_transit, service_info


class Posts(Service):
    name = "posts"

    @action
    async def find(self, ctx: Context) -> None: ...

    @action(visibility="private")
    async def hidden(self, ctx: Context) -> None: ...

    @action(visibility="protected")
    async def inner(self, ctx: Context) -> None: ...

    @event("user.*")
    async def on_user(self, ctx: Context) -> None: ...


def nodes_of(registry: Registry, name: str) -> list[str]:
    return [endpoint.node_id for endpoint in registry.actions[name].members]


def events(changes: list[tuple[str, dict[str, Any]]]) -> list[str]:
    return [event for event, _ in changes]


def test_c23_a_new_node_is_connected_and_brings_services() -> None:
    registry = Registry("py-1")
    changes = registry.apply_info(info("js-1", service_info("posts", "find")), 5.0)
    assert events(changes) == ["$node.connected", "$services.changed"]
    connected, services = changes
    assert connected[1]["reconnected"] is False
    assert connected[1]["node"]["id"] == "js-1"
    assert connected[1]["node"]["available"] is True
    assert services[1] == {"localService": False}
    assert registry.find_action("posts.find").node_id == "js-1"
    assert registry.has_service("posts")


def test_c21_equal_sequence_and_instance_update_the_node_only() -> None:
    registry = Registry("py-1")
    registry.apply_info(info("js-1", service_info("posts", "find")), 5.0)
    again = info("js-1", service_info("posts", "find", "create"))
    again.hostname = "new name"
    assert events(registry.apply_info(again, 6.0)) == ["$node.updated"]
    assert "posts.create" not in registry.actions
    assert registry.nodes["js-1"].hostname == "new name"


@pytest.mark.parametrize(("sequence", "instance"), [(3, None), (2, "another process"), (1, "another process")])
def test_c21_a_higher_sequence_or_another_process_renews_the_services(sequence: int, instance: str | None) -> None:
    registry = Registry("py-1")
    registry.apply_info(info("js-1", service_info("posts", "find")), 5.0)
    changes = registry.apply_info(
        info("js-1", service_info("posts", "create"), sequence=sequence, instance=instance), 6.0
    )
    assert events(changes) == ["$node.updated", "$services.changed"]
    assert nodes_of(registry, "posts.create") == ["js-1"]
    assert nodes_of(registry, "posts.find") == []


def test_a_lower_sequence_of_the_same_process_is_old_news() -> None:
    registry = Registry("py-1")
    registry.apply_info(info("js-1", service_info("posts", "find"), sequence=5), 5.0)
    registry.apply_info(info("js-1", sequence=4), 6.0)
    assert nodes_of(registry, "posts.find") == ["js-1"]


def test_c21_a_node_that_was_gone_is_taken_with_the_sequence_it_had() -> None:
    registry = Registry("py-1")
    registry.apply_info(info("js-1", service_info("posts", "find")), 5.0)
    registry.lose_node("js-1", 6.0, unexpected=True)
    changes = registry.apply_info(info("js-1", service_info("posts", "find")), 7.0)
    assert events(changes) == ["$node.connected", "$services.changed"]
    assert changes[0][1]["reconnected"] is True
    assert nodes_of(registry, "posts.find") == ["js-1"]


def test_c22_what_a_newer_info_does_not_list_is_gone() -> None:
    registry = Registry("py-1")
    registry.apply_info(info("js-1", service_info("posts", "find", events=("a.*", "b"))), 5.0)
    registry.apply_info(info("js-1", service_info("posts", "get", events=("b",)), sequence=3), 6.0)
    assert nodes_of(registry, "posts.find") == []
    assert [choices.name for choices in registry.find_listeners("a.x")] == []
    assert [choices.name for choices in registry.find_listeners("b")] == ["b"]


def test_c24_what_peers_may_leave_out_may_be_missing() -> None:
    registry = Registry("py-1")
    services: list[Any] = [
        {"name": "bare"},
        {"name": "lists", "actions": [], "events": []},
        {"name": "posts", "version": 2, "actions": {"v2.posts.find": {"name": "v2.posts.find"}}},
        {"name": "users", "version": "staging"},
    ]
    registry.apply_info(info("js-1", *services), 5.0)
    for name in ("bare", "lists", "v2.posts", "staging.users"):
        assert registry.has_service(name)
    assert registry.find_action("v2.posts.find").service == "v2.posts"


def test_c24_a_node_without_services_is_known_and_keeps_those_it_had() -> None:
    registry = Registry("py-1")
    registry.apply_info(Info(ver="5", sender="js-1"), 5.0)
    assert registry.nodes["js-1"].available
    registry.apply_info(info("js-1", service_info("posts", "find")), 6.0)
    registry.apply_info(Info(ver="5", sender="js-1", sequence=9), 7.0)
    assert nodes_of(registry, "posts.find") == ["js-1"]


@pytest.mark.parametrize(
    "odd",
    [
        None,
        7,
        "posts",
        [],
        {},
        {"name": 5},
        {"name": "x", "fullName": ["a"], "actions": {"x.a": {"name": "x.a"}}},
        {"name": "x", "fullName": 7, "actions": {"x.a": {"name": "x.a"}}, "events": {"e": {"name": "e"}}},
        {"name": "x", "version": [1], "actions": {"x.a": {"name": "x.a"}}},
        {
            "name": "x",
            "actions": {"x.a": None, "x.b": {}, "x.c": {"name": 5}, "x.d": {"name": "x.d", "visibility": []}},
        },
        {"name": "x", "actions": "none", "events": {"e": {"name": "e", "group": {"a": 1}}}},
        {"name": "x", "actions": {"x.a": {"name": "x.a", "timeout": "soon"}}},
    ],
)
def test_odd_entries_do_not_hide_the_good_ones(odd: Any) -> None:
    registry = Registry("py-1")
    registry.apply_info(info("js-1", odd, service_info("posts", "find"), odd), 5.0)
    assert registry.nodes["js-1"].available
    assert nodes_of(registry, "posts.find") == ["js-1"]
    for choices in registry.actions.values():
        for endpoint in choices.members:
            assert endpoint.timeout_s is None
    registry.lose_node("js-1", 6.0, unexpected=False)
    assert not any(choices.members for choices in registry.actions.values())


@pytest.mark.parametrize(
    ("visibility", "callable_"), [("published", 1), ("public", 1), ("protected", 0), ("private", 0)]
)
def test_only_what_may_be_called_from_afar_is_taken(visibility: str, callable_: int) -> None:
    registry = Registry("py-1")
    service = service_info("posts", "find")
    service["actions"]["posts.find"]["visibility"] = visibility
    registry.apply_info(info("js-1", service), 5.0)
    assert len(registry.actions) == callable_


def test_c49_an_unknown_name_is_not_found_and_a_known_one_without_endpoint_not_available() -> None:
    registry = Registry("py-1")
    with pytest.raises(ServiceNotFoundError) as unknown:
        registry.find_action("posts.find")
    assert unknown.value.data == {"action": "posts.find"}
    registry.apply_info(info("js-1", service_info("posts", "find")), 5.0)
    registry.lose_node("js-1", 6.0, unexpected=True)
    with pytest.raises(ServiceNotAvailableError) as gone:
        registry.find_action("posts.find")
    assert gone.value.data == {"action": "posts.find"}


def test_c49_an_action_that_a_node_does_not_have_is_not_found_on_it() -> None:
    registry = Registry("py-1")
    registry.apply_info(info("js-1", service_info("posts", "find")), 5.0)
    assert registry.find_action("posts.find", "js-1").node_id == "js-1"
    with pytest.raises(ServiceNotFoundError) as caught:
        registry.find_action("posts.find", "js-2")
    assert caught.value.data == {"action": "posts.find", "nodeID": "js-2"}


def test_c29_a_node_that_leaves_takes_its_endpoints_along() -> None:
    registry = Registry("py-1")
    registry.apply_info(info("js-1", service_info("posts", "find", events=("a",))), 5.0)
    changes = registry.lose_node("js-1", 6.0, unexpected=False)
    assert events(changes) == ["$node.disconnected", "$services.changed"]
    assert changes[0][1]["unexpected"] is False
    assert changes[0][1]["node"]["offlineSince"] == 6.0
    assert not registry.has_service("posts")
    assert list(registry.find_listeners("a")) == []
    assert registry.lose_node("js-1", 7.0, unexpected=False) == []


def test_the_own_node_and_unknown_ones_cannot_be_lost() -> None:
    registry = Registry("py-1")
    assert registry.lose_node("py-1", 1.0, unexpected=True) == []
    assert registry.lose_node("absent", 1.0, unexpected=True) == []
    assert registry.local.available


def test_c31_info_does_not_refresh_the_heartbeat_of_a_node_that_is_there() -> None:
    registry = Registry("py-1")
    registry.apply_info(info("js-1"), 5.0)
    registry.apply_info(info("js-1", sequence=3), 50.0)
    assert registry.nodes["js-1"].last_heartbeat == 5.0


def test_own_services_are_offered_without_the_private_actions() -> None:
    registry = Registry("py-1")
    assert registry.add_service(define(Posts())) == ("$services.changed", {"localService": True})
    assert set(registry.actions) == {"posts.find", "posts.inner"}
    assert registry.find_action("posts.inner").local
    assert [info["fullName"] for info in registry.local.services] == ["posts"]
    assert registry.remove_service("posts") == ("$services.changed", {"localService": True})
    assert registry.local.services == []
    with pytest.raises(ServiceNotAvailableError):
        registry.find_action("posts.find")
    assert list(registry.find_listeners("user.a")) == []


def test_c76_the_own_node_wins_unless_told_otherwise() -> None:
    for prefer_local, wanted in [(True, ["py-1"] * 4), (False, ["js-1", "py-1", "js-1", "py-1"])]:
        registry = Registry("py-1", prefer_local=prefer_local)
        registry.apply_info(info("js-1", service_info("posts", "find")), 5.0)
        registry.add_service(define(Posts()))
        assert [registry.find_action("posts.find").node_id for _ in range(4)] == wanted


def test_round_robin_goes_through_the_nodes_in_the_order_of_their_arrival() -> None:
    registry = Registry("py-1")
    for node in ("js-2", "js-1", "js-3"):
        registry.apply_info(info(node, service_info("posts", "find")), 5.0)
    assert [registry.find_action("posts.find").node_id for _ in range(5)] == ["js-2", "js-1", "js-3", "js-2", "js-1"]
    registry.apply_info(info("js-1", service_info("posts", "find"), sequence=3), 6.0)  # keeps its place (§9.3)
    assert nodes_of(registry, "posts.find") == ["js-2", "js-1", "js-3"]


def test_listeners_are_kept_by_pattern_and_group() -> None:
    registry = Registry("py-1")
    registry.apply_info(info("js-1", service_info("mail", events=("user.*", "user.created"))), 5.0)
    registry.apply_info(info("js-2", service_info("audit", version=2, fullName="v2.audit", events=("user.**",))), 5.0)
    found = list(registry.find_listeners("user.created"))
    assert sorted((choices.name, choices.members[0].group) for choices in found) == [
        ("user.*", "mail"),
        ("user.**", "audit"),  # c62: the default group is the name without the version
        ("user.created", "mail"),
    ]
    assert [choices.name for choices in registry.find_listeners("user.created", ["audit"])] == ["user.**"]
    assert list(registry.find_listeners("user.created", ["absent"])) == []


def test_listeners_that_come_later_are_found_for_names_that_were_sent_before() -> None:
    registry = Registry("py-1")
    assert list(registry.find_listeners("user.created")) == []
    registry.apply_info(info("js-1", service_info("mail", events=("user.*",))), 5.0)
    assert len(list(registry.find_listeners("user.created"))) == 1
    registry.apply_info(info("js-1", sequence=3), 6.0)
    assert list(registry.find_listeners("user.created")) == []


def test_listeners_of_this_node_come_and_go_with_its_services() -> None:
    registry = Registry("py-1")
    registry.apply_info(info("js-1", service_info("audit", events=("user.**",))), 0.0)
    assert list(registry.find_listeners_here("user.a")) == []
    registry.add_service(define(Posts()))
    assert [choices.name for choices, _ in registry.find_listeners_here("user.a")] == ["user.*"]
    registry.remove_service("posts")
    assert list(registry.find_listeners_here("user.a")) == []


def test_memory_for_event_names_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.registry.registry.REMEMBERED_EVENT_NAMES", 10)
    monkeypatch.setattr("broker.registry.registry.REMEMBERED_EVENT_NAME_CHARACTERS", 20)
    registry = Registry("py-1")
    registry.apply_info(info("js-1", service_info("mail", events=("**",))), 5.0)
    for number in range(100):
        assert len(list(registry.find_listeners(f"event.{number}"))) == 1
    assert registry._lists_by_event.cache_info().currsize == 10
    misses = registry._lists_by_event.cache_info().misses
    list(registry.find_listeners("x" * 21))
    assert registry._lists_by_event.cache_info().misses == misses, "a long name is not remembered"


@pytest.mark.parametrize("protocol", ["4", "5"])
def test_every_captured_info_is_taken_in(protocol: str) -> None:
    registry = Registry("py-1")
    taken = 0
    for number, command, packet, note in captured(protocol):
        if command != "INFO":
            continue
        taken += 1
        decoded = msgspec.json.decode(json.dumps(packet), type=Info)
        before = registry.nodes.get(packet["sender"])
        renewed = before is None or not before.available or packet["seq"] > before.sequence
        renewed = renewed or packet["instanceID"] != before.instance_id  # type: ignore[union-attr]  # None: renewed
        registry.apply_info(decoded, float(number))
        node = registry.nodes[packet["sender"]]
        assert node.available, (number, note)
        assert (node.client, node.ip_list, node.hostname) == (packet["client"], packet["ipList"], packet["hostname"])
        if not renewed:
            continue
        assert node.sequence == packet["seq"], (number, note)
        offered = {
            entry["name"]
            for service in packet["services"]
            for entry in service["actions"].values()
            if entry.get("visibility") not in ("protected", "private")
        }
        known = {name for name, choices in registry.actions.items() if choices.on_node(packet["sender"])}
        assert known == offered, (number, note)
        for service in packet["services"]:
            assert registry.has_service(service["fullName"])
    assert taken >= 5


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["js-1", "js-2"]),
        st.one_of(st.none(), st.tuples(st.integers(1, 4), st.sets(st.sampled_from("abc")), st.sampled_from("xy"))),
    ),
    max_size=20,
)


@given(STEPS)
def test_endpoints_are_always_those_of_the_last_info_that_counted(steps: list[Any]) -> None:
    registry = Registry("py-1")
    expected: dict[str, set[str]] = {"js-1": set(), "js-2": set()}
    for now, (node_id, step) in enumerate(steps):
        node = registry.nodes.get(node_id)
        if step is None:
            registry.lose_node(node_id, float(now), unexpected=True)
            expected[node_id] = set()
            continue
        sequence, names, instance = step
        if node is None or not node.available or sequence > node.sequence or instance != node.instance_id:
            expected[node_id] = {f"s.{name}" for name in names}
        registry.apply_info(info(node_id, service_info("s", *names), sequence=sequence, instance=instance), float(now))
        for known in ("js-1", "js-2"):
            has = {name for name, choices in registry.actions.items() if choices.on_node(known)}
            assert has == expected[known]


def test_a_long_life_leaves_no_endpoints_behind() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - a randomised test prints its seed
    chance = random.Random(seed)
    registry = Registry("py-1")
    for step in range(500):
        node_id = f"js-{chance.randrange(20)}"
        if chance.random() < 0.4:
            registry.lose_node(node_id, float(step), unexpected=chance.random() < 0.5)
        else:
            names = chance.sample("abcdef", chance.randint(0, 6))
            service = service_info("s", *names, events=tuple(names))
            registry.apply_info(info(node_id, service, sequence=step), float(step))
    for node_id in list(registry.nodes):
        registry.lose_node(node_id, 1000.0, unexpected=True)
        registry.forget(node_id)
    assert all(not choices.members for choices in registry.actions.values())
    assert all(not choices.members for choices in registry.listeners.values())


def test_names_that_no_node_offers_any_more_are_forgotten_after_a_while() -> None:
    registry = Registry("py-1")
    registry.apply_info(info("js-1", service_info("posts", "find")), 0.0)
    for number in range(100):
        listening = {"name": f"$listen-{number}", "events": {"**": {"name": "**"}}}
        registry.apply_info(info("js-2", service_info(f"s-{number}", "a"), listening, sequence=number + 2), 1.0)
    registry.lose_node("js-2", 2.0, unexpected=False)
    registry.forget_vacant(1.0)
    assert registry.actions.keys() == {"posts.find", "s-99.a"}
    assert registry.listeners.keys() == {("**", "$listen-99")}
    registry.forget_vacant(2.0)
    assert registry.actions.keys() == {"posts.find"}
    assert not registry.listeners
    registry.apply_info(info("cli", {"name": "$listen-100", "events": {"**": {"name": "**"}}}), 200.0)
    assert [choices.members[0].node_id for choices in registry.find_listeners("user.created")] == ["cli"]


def test_a_vacant_name_makes_room_for_another_and_then_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.registry.registry.NAMES_KNOWN", 3)
    registry = Registry("py-1")
    registry.apply_info(info("js-1", service_info("a", "one", "two", events=("three",))), 0.0)
    registry.apply_info(info("js-1", service_info("a", "one", "four", events=("three",)), sequence=3), 0.0)
    assert registry.actions.keys() == {"a.one", "a.two"}, "the old one was still offered"
    assert registry.full == "3 names of actions and events are known, and others are ignored until some are gone"
    registry.full = None
    registry.apply_info(info("js-1", service_info("a", "one", "four", "five"), sequence=4), 0.0)
    assert registry.actions.keys() == {"a.one", "a.four"}
    assert registry.full is None, "one line is enough"
    registry.add_service(define(Posts()))
    assert registry.find_action("posts.find").local, "the own names always have room"


def test_nodes_that_are_gone_make_room_for_others_and_then_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.registry.registry.NODES_KNOWN", 3)
    registry = Registry("py-1")
    for node_id in ("js-1", "js-2"):
        assert registry.has_room_for(node_id)
        registry.apply_info(info(node_id), 0.0)
    assert registry.has_room_for("js-1")
    assert not registry.has_room_for("js-3")
    assert registry.full == "3 nodes are known, and others are ignored until some leave"
    registry.lose_node("js-1", 1.0, unexpected=True)
    assert registry.has_room_for("js-3")
    assert registry.nodes.keys() == {"py-1", "js-2"}


def steps_of(work: Callable[[], object]) -> int:
    """The lines that Python runs, each turn of a loop one."""
    lines = 0

    def trace(_frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return lines


def test_the_work_for_a_cluster_grows_as_the_cluster_does() -> None:
    def live(nodes: int) -> None:
        transit = make_transit()
        shared = service_info("shared", *(f"a{number}" for number in range(10)), events=("e.*",))
        for turn in range(2):
            for number in range(nodes):
                own = service_info(f"s{number}-{turn}", "act", events=(f"e.{number}-{turn}.*",))
                transit.receive("INFO", info(f"js-{number}", shared, own, sequence=2 + turn), 0.0)
                transit.registry.find_listeners_here("$node.connected")
                transit.receive("HEARTBEAT", Heartbeat(ver="5", sender=f"js-{number}", cpu=1), 0.0)
                assert transit.registry.has_service(f"s{number}-{turn}")
        transit.tick(100.0)
        transit.tick(1000.0)
        assert transit.registry.nodes.keys() == {"py-1"}
        assert not transit.registry.actions

    few, many = (steps_of(partial(live, nodes)) for nodes in (20, 80))
    assert many < 5 * few


def test_a_call_costs_the_same_whatever_the_size_of_the_cluster() -> None:
    def cost(nodes: int) -> int:
        registry = Registry("py-1")
        for number in range(nodes):
            registry.apply_info(info(f"js-{number}", service_info("posts", "find")), 0.0)
        registry.find_action("posts.find")
        return steps_of(lambda: [registry.find_action("posts.find"), registry.find_action("posts.find", "js-1")])

    assert cost(200) == cost(2)
