"""Requests that wait for their answers, and what becomes of them when a node is gone."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from broker.conversation.effects import (
    Effect,
    Log,
    Notify,
    Pending,
    Publish,
    ReaderGone,
    Reject,
    Settle,
)
from broker.conversation.liveness import Liveness
from broker.conversation.requests import UNRESPONSIVE
from broker.conversation.transit import Transit
from broker.defaults import (
    NODE_PROBE_AFTER_S,
    NODE_PROBE_INTERVAL_S,
    NODE_RECONNECT_S,
    NODE_UNREACHABLE_S,
    NODE_UNRESPONSIVE_S,
    TICK_S,
)
from broker.errors import InvalidPacketDataError, QueueIsFullError, RequestRejectedError
from broker.protocol.packets import (
    Address,
    Command,
    Disconnect,
    Discover,
    Heartbeat,
    Id,
    Packet,
    Ping,
    Pong,
    Response,
)
from tests.support.transits import info, make_transit, meet, publishes, request, service_info, subjects


def test_c28_a_silent_node_is_lost_after_the_timeout_and_its_calls_are_rejected() -> None:
    transit = make_transit()
    meet(transit, "js-1", service_info("posts", "find"))
    transit.receive("HEARTBEAT", Heartbeat(ver="5", sender="js-1"), 10.0)
    transit.requests.expect(request("posts.find", "py-1", id="1"), "js-1", "waiter", 39.0)
    transit.tick(40.0)
    assert transit.registry.nodes["js-1"].available
    lost, changed, rejected, unread = transit.tick(40.1)
    assert isinstance(lost, Notify)
    assert (lost.event, lost.payload["unexpected"]) == ("$node.disconnected", True)
    assert isinstance(changed, Notify)
    assert isinstance(rejected, Reject)
    assert rejected.pending.waiter == "waiter"
    assert isinstance(rejected.error, RequestRejectedError)
    assert rejected.error.data == {"action": "posts.find", "nodeID": "js-1"}
    assert rejected.undelivered is False
    assert isinstance(unread, ReaderGone)
    assert unread.node_id == "js-1"
    assert transit.requests.pending == {}
    assert transit.tick(50.0) == []


def test_c29_a_disconnect_loses_the_node_as_expected() -> None:
    transit = make_transit()
    meet(transit, "js-1")
    transit.requests.expect(request("posts.find", "py-1", id="1"), "js-1", None, 0.0)
    lost, _, rejected, unread = transit.receive("DISCONNECT", Disconnect(ver="5", sender="js-1"), 1.0)
    assert isinstance(lost, Notify)
    assert lost.payload["unexpected"] is False
    assert isinstance(rejected, Reject)
    assert isinstance(unread, ReaderGone)
    for sender in ("js-1", "stranger"):  # who never said what it offers may have called, and read a stream
        (unread,) = transit.receive("DISCONNECT", Disconnect(ver="5", sender=sender), 2.0)
        assert isinstance(unread, ReaderGone)


def test_an_answer_settles_its_call_once() -> None:
    transit = make_transit()
    transit.requests.expect(request("posts.find", "py-1", id="1"), "js-1", "waiter", 0.0)
    answer = Response(ver="5", sender="js-1", id="1", success=True, data=Raw(b"1"))
    (settled,) = transit.receive("RES", answer, 0.0)
    assert isinstance(settled, Settle)
    assert (settled.pending.waiter, settled.response) == ("waiter", answer)
    assert transit.receive("RES", answer, 0.0) == []


def test_a_plain_answer_is_known_as_one_and_all_else_is_left_to_be_looked_at() -> None:
    transit = make_transit(protocol="5")
    meet(transit, "js-1", service_info("posts", "find"))
    transit.requests.expect(request("posts.find", "py-1", id="1"), "js-1", "waiter", 0.0)
    plain: dict[str, Any] = {"ver": "5", "sender": "js-1", "id": "1", "success": True}
    odd = ({"ver": "4"}, {"ver": 5}, {"sender": "js-2"}, {"id": "2"}, {"stream": True}, {"sequence": 1})
    for difference in odd:
        assert transit.requests.answered(Response(**{**plain, **difference})) is None, difference
    transit.registry.unresponsive.add("js-1")
    assert transit.requests.answered(Response(**plain)) is None, "that it answers again is to be logged"
    transit.registry.unresponsive.clear()
    pending = transit.requests.answered(Response(**plain))
    assert pending is not None
    assert (pending.waiter, transit.requests.pending) == ("waiter", {})


def test_c43_unknown_and_late_answers_are_ignored() -> None:
    transit = make_transit()
    transit.requests.expect(request("posts.find", "py-1", id="1"), "js-1", "waiter", 0.0)
    transit.requests.take("1")
    transit.requests.take("1")
    assert transit.receive("RES", Response(ver="5", sender="js-1", id="1", success=True), 0.0) == []
    assert transit.receive("RES", Response(ver="5", sender="js-1", id="never", success=True), 0.0) == []


def test_only_the_node_that_was_asked_answers() -> None:
    transit = make_transit()
    for number, asked in (("1", "js-1"), ("2", None)):
        transit.requests.expect(request("posts.find", "py-1", id=number), asked, number, 0.0)
    parts: tuple[dict[str, Any], ...] = ({}, {"stream": True, "sequence": 0})
    for more in parts:
        forged = Response(ver="5", sender="evil", id="1", success=True, data=Raw(b"1"), **more)
        (dropped,) = transit.receive("RES", forged, 0.0)
        assert isinstance(dropped, Log)
        assert dropped.text == "RES from 'evil' answers a request to another node; dropped"
    unreadable = InvalidPacketDataError({"command": "RES", "reason": "odd"})
    assert transit.refuse_answer(Address("evil", "1"), unreadable) == []
    for number in ("1", "2"):  # where NATS chose the node, any may answer
        (settled,) = transit.receive("RES", Response(ver="5", sender="js-1", id=number, success=True), 0.0)
        assert isinstance(settled, Settle)
        assert settled.pending.waiter == number


def test_too_many_waiting_calls_are_refused_at_once() -> None:
    transit = make_transit(requests_pending=2)
    for number in ("1", "2"):
        transit.requests.expect(request("posts.find", "py-1", id=number), "js-1", None, 0.0)
    with pytest.raises(QueueIsFullError) as caught:
        transit.requests.expect(request("posts.find", "py-1", id="3"), "js-1", None, 0.0)
    assert caught.value.data == {"action": "posts.find", "nodeID": "py-1", "size": 2, "limit": 2}
    transit.requests.take("1")
    transit.requests.expect(request("posts.find", "py-1", id="3"), "js-1", None, 0.0)


def test_a_call_that_nobody_hears_may_go_elsewhere_and_its_node_is_gone() -> None:
    transit = make_transit()
    meet(transit, "js-1", service_info("posts", "find"))
    transit.requests.expect(request("posts.find", "py-1", id="earlier"), "js-1", None, 0.0)
    transit.requests.expect(request("posts.find", "py-1", id="unheard"), "js-1", None, 0.0)
    effects = transit.requests.no_responders("unheard", 1.0)
    rejects = {effect.pending.id: effect for effect in effects if isinstance(effect, Reject)}
    assert rejects["unheard"].undelivered is True
    assert set(rejects) == {"unheard"}, "the earlier one was heard, and may be answered yet"
    assert [effect.event for effect in effects if isinstance(effect, Notify)] == [
        "$node.disconnected",
        "$services.changed",
    ]
    assert not transit.registry.nodes["js-1"].available
    assert transit.requests.no_responders("unheard", 1.0) == []


def refuse(transit: Transit, effects: Sequence[Effect], now: float) -> list[Effect]:
    """What follows when the server finds no responders for the probes."""
    probes = [effect.reply_id for effect in effects if isinstance(effect, Publish)]
    return [effect for probe in probes if probe for effect in transit.requests.no_responders(probe, now)]


def rejected(effects: Sequence[Effect]) -> list[Id]:
    return [effect.pending.id for effect in effects if isinstance(effect, Reject)]


def ticks(until: float) -> Iterator[float]:
    return (number * TICK_S for number in range(1, round(until / TICK_S) + 1))


def test_a_node_that_may_not_receive_pings_is_not_gone_while_it_receives_other_probes() -> None:
    transit = make_transit()
    meet(transit, "js-1", service_info("posts", "find"))
    transit.requests.expect(request("posts.find", "py-1", id="1"), "js-1", None, 0.0)
    asked = []
    for now in ticks(20.0):
        for probe in publishes(transit.tick(now)):
            asked.append(probe.subject)
            if probe.subject == "MOL.PING.js-1":
                assert refuse(transit, [probe], now) == []
            else:
                transit.receive("INFO", info("js-1", service_info("posts", "find")), now)
    assert set(asked) == {"MOL.PING.js-1", "MOL.DISCOVER.js-1"}
    assert transit.registry.nodes["js-1"].available


def missed(now: float) -> Transit:
    """A node that was asked `earlier`, and did not hear what came then."""
    transit = make_transit()
    meet(transit, "js-1", service_info("posts", "find"), ver="4")
    transit.requests.expect(request("posts.find", "py-1", id="earlier"), "js-1", None, now)
    transit.requests.expect(request("posts.find", "py-1", id="unheard"), "js-1", None, now)
    transit.requests.no_responders("unheard", now)
    return transit


def test_a_node_that_was_missed_is_asked_who_it_is_until_it_is_back_and_then_still_answers() -> None:
    transit = missed(0.0)
    for now in ticks(1.0):
        (probe,) = publishes(transit.tick(now))
        assert (probe.subject, probe.packet) == ("MOL.DISCOVER.js-1", Discover(ver="4", sender="py-1"))
        assert refuse(transit, [probe], now) == []
    assert len(publishes(transit.tick(1.0 + TICK_S))) == 1, "delivered, but too early for an answer"
    assert subjects(transit.tick(1.0 + TICK_S + NODE_PROBE_INTERVAL_S)) == [("MOL.DISCOVER.js-1", "4")]
    transit.receive("INFO", info("js-1", service_info("posts", "find"), ver="4"), 2.1)
    assert transit.registry.nodes["js-1"].available
    assert transit.registry.find_action("posts.find").node_id == "js-1"
    answer = Response(ver="4", sender="js-1", id="earlier", success=True, data=Raw(b"1"))
    (settled,) = transit.receive("RES", answer, 2.2)
    assert isinstance(settled, Settle)
    assert transit.tick(3.0) == transit.tick(20.0) == []


def test_what_a_missed_node_was_asked_before_is_rejected_when_it_does_not_return() -> None:
    transit = missed(0.0)
    ends = [(one, now) for now in ticks(10.0) for one in rejected(refuse(transit, transit.tick(now), now))]
    assert ends == [("earlier", NODE_UNREACHABLE_S)]


def test_what_a_missed_node_was_asked_before_is_rejected_by_its_silence() -> None:
    transit = missed(0.0)
    assert rejected(transit.tick(30.0)) == [], "the server has delivered the probe"
    assert rejected(transit.tick(30.1)) == ["earlier"]


def test_what_a_missed_node_was_asked_before_is_rejected_when_another_process_takes_its_place() -> None:
    transit = missed(0.0)
    transit.receive("DISCOVER", Discover(ver="4", sender="js-1"), 1.0)
    effects = transit.receive("INFO", info("js-1", service_info("posts", "find"), ver="4", instance="another"), 2.0)
    assert [effect.pending.id for effect in effects if isinstance(effect, Reject)] == ["earlier"]
    assert transit.registry.nodes["js-1"].available


def test_the_reader_of_a_stream_that_is_not_heard_may_still_answer_what_it_was_asked() -> None:
    transit = make_transit()
    meet(transit, "py-2", service_info("posts", "find"))
    transit.requests.expect(request("posts.find", "py-1", id="1"), "py-2", None, 0.0)
    effects = transit.requests.reader_unreachable("py-2", 1.0)
    assert [effect for effect in effects if isinstance(effect, Reject)] == []
    assert [effect.until for effect in effects if isinstance(effect, ReaderGone)] == [1.0]
    assert not transit.registry.nodes["py-2"].available


def test_calls_sent_after_an_unheard_one_wait_for_their_own_word_of_the_server() -> None:
    transit = make_transit()
    meet(transit, "js-1", service_info("posts", "find"))
    for number in ("1", "2"):
        transit.requests.expect(request("posts.find", "py-1", id=number), "js-1", None, 0.0)
    first = [effect for effect in transit.requests.no_responders("1", 1.0) if isinstance(effect, Reject)]
    assert [reject.pending.id for reject in first] == ["1"]
    (second,) = transit.requests.no_responders("2", 1.0)
    assert isinstance(second, Reject)
    assert second.undelivered is True


def test_a_node_that_keeps_a_call_waiting_is_probed_in_its_version_and_lost_when_it_is_unreachable() -> None:
    transit = make_transit()
    meet(transit, "js-1", service_info("posts", "find"), ver="4")
    transit.requests.expect(request("posts.find", "py-1", id="1"), "js-1", None, 0.0)
    assert transit.tick(NODE_PROBE_AFTER_S / 2) == []
    now = NODE_PROBE_AFTER_S
    (probe,) = publishes(transit.tick(now))
    assert (probe.subject, probe.packet.ver, probe.packet.sender) == ("MOL.PING.js-1", "4", "py-1")
    while now < NODE_PROBE_AFTER_S + NODE_UNREACHABLE_S:
        assert refuse(transit, [probe], now) == []
        now += TICK_S
        (probe,) = publishes(transit.tick(now))
        assert (probe.subject, probe.packet) == ("MOL.DISCOVER.js-1", Discover(ver="4", sender="py-1"))
    transit.requests.expect(request("posts.find", "py-1", id="2"), "js-1", None, now + 0.1)
    assert rejected(refuse(transit, [probe], now + 0.2)) == ["1"], "2 has its own answer of the server"
    assert not transit.registry.nodes["js-1"].available


def test_a_call_sent_just_before_its_node_was_killed_fails_within_two_seconds() -> None:
    for phase in (0.0, 0.01, 0.1, 0.249):
        for waited in (0.0, 3.0):
            transit = make_transit()
            meet(transit, "js-1", service_info("posts", "find"))
            start = 10.0 + phase
            transit.requests.expect(request("posts.find", "py-1", id="1"), "js-1", None, start)
            killed = start + waited + 0.001
            for now in (10.0 + tick for tick in ticks(10.0)):
                effects = transit.tick(now)
                if now > killed and rejected(refuse(transit, effects, now)):
                    break
            assert killed < now < killed + 2.0


def test_a_call_may_wait_longer_when_the_servers_have_changed() -> None:
    for news in (Liveness.moved, Liveness.resume):
        transit = make_transit()
        meet(transit, "js-1", service_info("posts", "find"))
        transit.requests.expect(request("posts.find", "py-1", id="1"), "js-1", None, 0.0)
        news(transit.requests.liveness, 0.0)
        ends = [now for now in ticks(10.0) if rejected(refuse(transit, transit.tick(now), now))]
        assert ends == [NODE_RECONNECT_S]


def frozen() -> tuple[Transit, float]:
    """Of two nodes that offer an action, one has a call and answers no ping; it has just been noticed."""
    transit = make_transit()
    for node_id in ("js-1", "js-2"):
        meet(transit, node_id, service_info("posts", "find", events=("post.*",)))
        transit.requests.expect(request("posts.find", "py-1", id=node_id), node_id, None, 0.0)
    for now in ticks(20.0):
        effects = transit.tick(now)
        for effect in effects:
            if isinstance(effect, Publish) and effect.subject == "MOL.PING.js-2":
                assert isinstance(effect.packet, Ping)
                pong = Pong(ver="5", sender="js-2", time=0, id=effect.packet.id, arrived=0)
                assert transit.receive("PONG", pong, now) == [], "it answers no ping of a user"
        if news := [effect for effect in effects if isinstance(effect, Log)]:
            assert news == [Log(UNRESPONSIVE % "js-1")]
            return transit, now
    raise AssertionError("never noticed")


def choices(transit: Transit) -> set[str]:
    """The nodes that calls and events go to."""
    called = {transit.registry.find_action("posts.find").node_id for _ in range(4)}
    (listeners,) = transit.registry.find_listeners("post.created")
    chosen = [listeners.choose() for _ in range(4)]
    assert called == {one.node_id for one in chosen if one is not None}
    return called


def test_a_frozen_node_gets_no_new_calls_while_another_offers_the_action() -> None:
    transit, now = frozen()
    assert now == NODE_PROBE_AFTER_S + NODE_UNRESPONSIVE_S
    assert choices(transit) == {"js-2"}
    assert set(transit.requests.pending) == {"js-1", "js-2"}, "calls that it has may be answered yet"
    assert transit.registry.find_action("posts.find", "js-1").node_id == "js-1"
    transit.receive("DISCONNECT", Disconnect(ver="5", sender="js-2"), now)
    assert choices(transit) == {"js-1"}, "a last resort"


@pytest.mark.parametrize(
    ("command", "packet"),
    [
        ("PONG", Pong(ver="5", sender="js-1", time=0, id="probe:1:0.25:js-1", arrived=0)),
        ("HEARTBEAT", Heartbeat(ver="5", sender="js-1")),
        ("RES", Response(ver="5", sender="js-1", id="js-1", success=True, data=Raw(b"1"))),
    ],
)
def test_a_frozen_node_is_chosen_again_after_its_first_packet(command: Command, packet: Packet) -> None:
    transit, now = frozen()
    effects = transit.receive(command, packet, now)
    assert effects[0] == Log("Node 'js-1' answers again", logging.INFO)
    assert [type(effect) for effect in effects[1:]] == ([Settle] if command == "RES" else [])
    assert choices(transit) == {"js-1", "js-2"}


def test_a_frozen_node_that_is_lost_returns_as_any_other() -> None:
    transit, now = frozen()
    transit.receive("DISCONNECT", Disconnect(ver="5", sender="js-1"), now)
    meet(transit, "js-1", service_info("posts", "find", events=("post.*",)), now=now)
    assert choices(transit) == {"js-1", "js-2"}


def test_a_tick_does_not_look_at_calls_that_have_just_been_made() -> None:
    class Counted(dict[Id, Pending]):
        reads = 0

        def values(self) -> Any:
            for value in super().values():
                Counted.reads += 1
                yield value

    transit = make_transit(requests_pending=1000)
    meet(transit, "js-1", service_info("posts", "find"))
    transit.requests.pending = Counted()
    for number in range(1000):
        since = 0.0 if number < 2 else 10.0
        transit.requests.expect(request("posts.find", "py-1", id=str(number)), "js-1", None, since)
    assert len(publishes(transit.tick(10.0))) == 1
    assert Counted.reads == 4, "it stops at the first of them"
    for number in range(1000):
        transit.requests.take(str(number))
    transit.receive("PONG", Pong(ver="5", sender="js-1", time=0, id="probe:1:10.0:js-1", arrived=0), 10.1)
    assert transit.tick(11.0) == []


def test_what_a_replaced_process_was_asked_is_rejected_and_nothing_later() -> None:
    transit = make_transit()
    meet(transit, "js-1", service_info("posts", "find"))
    transit.requests.expect(request("posts.find", "py-1", id="before"), "js-1", None, 1.0)
    transit.receive("DISCOVER", Discover(ver="5", sender="js-1"), 2.0)
    transit.requests.expect(request("posts.find", "py-1", id="after"), "js-1", None, 3.0)
    same = transit.receive("INFO", info("js-1", service_info("posts", "find"), sequence=3), 4.0)
    assert not [effect for effect in same if isinstance(effect, Reject)], "the same process: it only connected anew"
    other = transit.receive("INFO", info("js-1", service_info("posts", "find"), instance="another"), 5.0)
    assert [effect.pending.id for effect in other if isinstance(effect, Reject)] == ["before"]


@pytest.mark.parametrize(
    ("peer", "cause"),
    [(None, "The connection to NATS was lost"), ("py-2", "Node 'py-2' reconnected or was started again")],
)
def test_a_call_whose_answer_was_lost_is_rejected_with_what_happened(peer: str | None, cause: str) -> None:
    transit = make_transit()
    transit.receive("INFO", msgspec.structs.replace(info("py-2"), client={"protocols": ["5", "4"]}), 0.0)
    transit.requests.expect(request("posts.find", "py-1", id="1"), "py-2", None, 0.0)
    if peer is None:
        transit.requests.doubt(1.0, 1.0)
    else:
        transit.receive("DISCOVER", Discover(ver="5", sender=peer), 1.0)
    (probe,) = publishes(transit.tick(2.0))
    assert isinstance(probe.packet, Ping)
    pong = Pong(ver="5", sender="py-2", id=probe.packet.id, requests=dict.fromkeys(probe.packet.requests, False))
    (lost,) = transit.receive("PONG", pong, 2.1)
    assert isinstance(lost, Reject)
    assert str(lost.error) == f"{cause} during the call of 'posts.find', and the call or its answer was lost."
