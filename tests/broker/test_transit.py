"""The conversation between nodes as a table: packets and times in, effects out. No loop, no clock (protocol §2-§5)."""

import json
from typing import Any

import pytest
from msgspec import UNSET, Raw

from broker.codec import JSONCodec
from broker.context import Context
from broker.defaults import NODE_PROBE_AFTER_S, NODE_UNHEARD_S
from broker.effects import (
    AnswerPing,
    Conflict,
    Dropped,
    EndStream,
    FeedStream,
    NobodyReads,
    Notify,
    PongArrived,
    Publish,
    Reject,
    RunAction,
    RunEvent,
    Settle,
)
from broker.errors import MoleculerError, QueueIsFullError, RequestRejectedError
from broker.packets import (
    Disconnect,
    Discover,
    Event,
    Heartbeat,
    Info,
    Packet,
    Ping,
    Pong,
    Request,
    Response,
)
from broker.receiving import Receiving
from broker.service import Service, action, event
from broker.transit import Transit
from tests.support.transits import captured, info, make_transit, offer, publishes, request, service_info, subjects


class Math(Service):
    name = "math"

    @action
    async def add(self, ctx: Context) -> None: ...

    @action(visibility="private")
    async def hidden(self, ctx: Context) -> None: ...

    @action(visibility="protected")
    async def inner(self, ctx: Context) -> None: ...

    @event("user.*")
    async def first(self, ctx: Context) -> None: ...

    @event("user.created")
    async def second(self, ctx: Context) -> None: ...

    @event("user.c*", group="audit")
    async def third(self, ctx: Context) -> None: ...


def meet(transit: Transit, node_id: str, *services: dict[str, Any], ver: str = "5", now: float = 0.0) -> None:
    transit.receive("INFO", info(node_id, *services, ver=ver), now)


def refusal(effects: list[Any]) -> tuple[str, Any, Response]:
    (publish,) = publishes(effects)
    assert isinstance(publish.packet, Response)
    assert publish.packet.success is False
    return publish.subject, publish.packet.error, publish.packet


# Finding each other


def test_c3_a_node_asks_who_is_there_in_its_default_version_first() -> None:
    (publish,) = publishes(make_transit(namespace="ns").discover())
    assert publish.subject == "MOL-ns.DISCOVER"
    assert publish.packet == Discover(ver="5", sender="py-1")


def test_the_other_version_is_asked_only_when_nobody_answered() -> None:
    transit = make_transit()
    assert subjects(transit.discover_others()) == [("MOL.DISCOVER", "4")]
    meet(transit, "js-1")
    assert transit.discover_others() == []
    assert make_transit(protocol="4").discover_others() == []


def test_c5_a_discover_is_answered_to_its_sender_in_its_version() -> None:
    transit = make_transit()
    offer(transit, Math())
    for ver in ("4", "5"):
        (publish,) = publishes(transit.receive("DISCOVER", Discover(ver=ver, sender="js-1"), 0.0))
        assert publish.subject == "MOL.INFO.js-1"
        assert isinstance(publish.packet, Info)
        assert publish.packet.ver == ver
        assert [service["fullName"] for service in publish.packet.services or ()] == ["math"]


def test_c5_a_node_that_is_starting_does_not_answer() -> None:
    transit = make_transit()
    transit.ready = False
    assert transit.receive("DISCOVER", Discover(ver="5", sender="js-1"), 0.0) == []


def test_c6_a_discover_registers_nobody_and_info_is_not_answered_with_info() -> None:
    transit = make_transit()
    transit.receive("DISCOVER", Discover(ver="5", sender="js-1"), 0.0)
    assert "js-1" not in transit.registry.nodes
    effects = transit.receive("INFO", info("js-1"), 0.0)
    assert all(isinstance(effect, Notify) for effect in effects)


def test_c15_info_tells_everything_the_reference_names() -> None:
    transit = make_transit(metadata={"zone": "z1"})
    (publish,) = publishes(transit.announce())
    assert publish.packet == Info(
        ver="5",
        sender="py-1",
        services=[],
        ip_list=["10.0.0.1"],
        hostname="host",
        client={"type": "python"},
        config={},
        instance_id="instance of py-1",
        metadata={"zone": "z1"},
        sequence=1,
    )


def test_c20_the_sequence_grows_with_each_announced_change_and_at_the_stop() -> None:
    transit = make_transit()

    def announced() -> Any:
        (publish,) = publishes(transit.announce())
        assert isinstance(publish.packet, Info)
        return publish.packet.sequence

    offer(transit, Math())
    transit.service_changed()
    assert (announced(), announced()) == (2, 2)  # several changes are one step
    transit.service_changed()
    assert announced() == 3
    (publish,) = publishes(transit.leave())
    assert isinstance(publish.packet, Info)
    assert (publish.packet.sequence, publish.packet.services) == (4, [])


def test_c8_another_process_with_our_id_is_a_conflict_and_our_own_echo_is_not() -> None:
    transit = make_transit()
    assert transit.receive("INFO", info("py-1", instance="another process"), 0.0) == [Conflict("another process")]
    assert transit.receive("INFO", info("py-1"), 0.0) == []


def test_c12_own_packets_are_ignored_except_calls_answers_and_events() -> None:
    transit = make_transit()
    offer(transit, Math())
    own: list[tuple[Any, Packet]] = [
        ("DISCOVER", Discover(ver="5", sender="py-1")),
        ("DISCONNECT", Disconnect(ver="5", sender="py-1")),
        ("HEARTBEAT", Heartbeat(ver="5", sender="py-1")),
        ("PING", Ping(ver="5", sender="py-1")),
        ("PONG", Pong(ver="5", sender="py-1")),
    ]
    for command, packet in own:
        assert transit.receive(command, packet, 0.0) == []
    (run,) = transit.receive("REQ", request("math.add", "py-1"), 0.0)
    assert isinstance(run, RunAction)
    (heard,) = transit.receive("EVENT", Event(ver="5", sender="py-1", event="user.created"), 0.0)
    assert isinstance(heard, RunEvent)


@pytest.mark.parametrize("ver", [4, 5, "3", "6", "", None, 4.0, [], {}, True])
def test_c10_packets_of_another_version_are_dropped_with_one_line(ver: Any) -> None:
    transit = make_transit()
    offer(transit, Math())
    packets: list[tuple[Any, Packet]] = [
        ("REQ", request("math.add", ver=ver)),
        ("RES", Response(ver=ver, sender="js-1", id="1")),
        ("EVENT", Event(ver=ver, sender="js-1", event="user.created")),
        ("DISCOVER", Discover(ver=ver, sender="js-1")),
        ("INFO", info("js-1", ver=ver)),
        ("DISCONNECT", Disconnect(ver=ver, sender="js-1")),
        ("HEARTBEAT", Heartbeat(ver=ver, sender="js-1")),
        ("PING", Ping(ver=ver, sender="js-1")),
        ("PONG", Pong(ver=ver, sender="js-1")),
    ]
    for command, packet in packets:
        (dropped,) = transit.receive(command, packet, 0.0)
        assert isinstance(dropped, Dropped)
        assert dropped.reason == f"{command} from 'js-1' has protocol version {ver!r}, not 4 and 5; dropped"
    assert transit.registry.nodes.keys() == {"py-1"}


def test_a_node_pinned_to_one_version_drops_the_other() -> None:
    transit = make_transit(protocol="4")
    (dropped,) = transit.receive("DISCOVER", Discover(ver="5", sender="js-1"), 0.0)
    assert isinstance(dropped, Dropped)
    assert "not 4" in dropped.reason
    assert subjects(transit.discover()) == [("MOL.DISCOVER", "4")]
    assert transit.version_of("nobody") == "4"


# Both versions at once


def test_c14_broadcasts_go_out_once_for_each_version_in_use() -> None:
    transit = make_transit()
    assert subjects(transit.heartbeat(5)) == [("MOL.HEARTBEAT", "5")]
    meet(transit, "js-5", ver="5")
    meet(transit, "js-4", ver="4")
    for effects in (transit.heartbeat(5), transit.announce(), transit.discover(), transit.disconnect()):
        assert [ver for _, ver in subjects(effects)] == ["5", "4"]


def test_c14_a_version_that_nobody_speaks_any_more_is_not_used() -> None:
    transit = make_transit()
    meet(transit, "js-5", ver="5")
    meet(transit, "js-4", ver="4")
    transit.receive("DISCONNECT", Disconnect(ver="5", sender="js-5"), 1.0)
    assert subjects(transit.heartbeat(5)) == [("MOL.HEARTBEAT", "4")]
    transit.receive("DISCONNECT", Disconnect(ver="4", sender="js-4"), 1.0)
    assert [ver for _, ver in subjects(transit.heartbeat(5))] == ["4"], "the last one spoken, for who comes next"


def test_the_first_peer_of_a_version_makes_the_node_known_in_it() -> None:
    transit = make_transit()
    meet(transit, "js-5", ver="5")
    effects = [e for e in transit.receive("INFO", info("js-4", ver="4"), 0.0) if not isinstance(e, Notify)]
    assert subjects(effects) == [("MOL.DISCOVER", "4"), ("MOL.INFO", "4")]
    more = [e for e in transit.receive("INFO", info("js-4b", ver="4"), 0.0) if not isinstance(e, Notify)]
    assert more == []


def test_c14_a_peer_is_spoken_to_in_its_own_version() -> None:
    transit = make_transit()
    meet(transit, "js-5", ver="5")
    meet(transit, "js-4", ver="4")
    assert (transit.version_of("js-5"), transit.version_of("js-4"), transit.version_of("nobody")) == ("5", "4", "5")
    transit.receive("HEARTBEAT", Heartbeat(ver="5", sender="js-4"), 1.0)  # it was updated in the meantime
    assert transit.version_of("js-4") == "5"
    assert [publish.packet.ver for publish in publishes(transit.ping("js-4", "p", 1))] == ["5"]


def test_an_answer_has_the_version_of_its_question() -> None:
    transit = make_transit()
    for ver in ("4", "5"):
        (publish,) = publishes(transit.respond(request("math.add", ver=ver), {}, Raw(b"1")))
        assert isinstance(publish.packet, Response)
        assert publish.packet.ver == ver
        assert (publish.packet.headers is UNSET) == (ver == "4")


# Heartbeats


def test_c26_a_heartbeat_carries_the_load() -> None:
    (publish,) = publishes(make_transit().heartbeat(17))
    assert publish.packet == Heartbeat(ver="5", sender="py-1", cpu=17)


def test_c27_the_heartbeat_of_a_stranger_is_answered_with_one_question() -> None:
    transit = make_transit()
    for _ in range(2):
        effects = transit.receive("HEARTBEAT", Heartbeat(ver="4", sender="js-1"), 0.0)
        assert subjects(effects) == [("MOL.DISCOVER.js-1", "4")]
    meet(transit, "js-1")
    assert transit.receive("HEARTBEAT", Heartbeat(ver="5", sender="js-1", cpu=7), 1.0) == []
    assert transit.registry.nodes["js-1"].cpu == 7
    transit.receive("DISCONNECT", Disconnect(ver="5", sender="js-1"), 2.0)
    effects = transit.receive("HEARTBEAT", Heartbeat(ver="5", sender="js-1"), 3.0)
    assert subjects(effects) == [("MOL.DISCOVER.js-1", "5")]


def test_a_heartbeat_of_another_state_is_a_question_and_does_not_count() -> None:
    transit = make_transit()
    meet(transit, "js-1")
    for beat in (
        Heartbeat(ver="5", sender="js-1", sequence=99),
        Heartbeat(ver="5", sender="js-1", instance_id="another"),
    ):
        assert subjects(transit.receive("HEARTBEAT", beat, 9.0)) == [("MOL.DISCOVER.js-1", "5")]
        assert transit.registry.nodes["js-1"].last_heartbeat == 0.0
    same = Heartbeat(ver="5", sender="js-1", sequence=2, instance_id="instance of")  # a prefix is enough (§4.4)
    assert transit.receive("HEARTBEAT", same, 9.0) == []
    assert transit.registry.nodes["js-1"].last_heartbeat == 9.0


def test_c28_a_silent_node_is_lost_after_the_timeout_and_its_calls_are_rejected() -> None:
    transit = make_transit()
    meet(transit, "js-1", service_info("posts", "find"))
    transit.receive("HEARTBEAT", Heartbeat(ver="5", sender="js-1"), 10.0)
    transit.request(request("posts.find", "py-1", id="1"), "js-1", "waiter", 39.0)
    assert transit.tick(40.0) == []
    lost, changed, rejected, unread = transit.tick(40.1)
    assert isinstance(lost, Notify)
    assert (lost.event, lost.payload["unexpected"]) == ("$node.disconnected", True)
    assert isinstance(changed, Notify)
    assert isinstance(rejected, Reject)
    assert rejected.pending.waiter == "waiter"
    assert isinstance(rejected.error, RequestRejectedError)
    assert rejected.error.data == {"action": "posts.find", "nodeID": "js-1"}
    assert rejected.undelivered is False
    assert isinstance(unread, NobodyReads)
    assert (unread.node_id, unread.error.name) == ("js-1", "RequestRejectedError")
    assert transit.pending == {}
    assert transit.tick(50.0) == []


def test_c30_a_lost_node_is_forgotten_after_ten_minutes() -> None:
    transit = make_transit()
    meet(transit, "js-1", now=0.0)
    transit.tick(31.0)
    transit.tick(600.0)
    assert "js-1" in transit.registry.nodes
    transit.tick(600.1)
    assert "js-1" not in transit.registry.nodes


def test_nobody_is_blamed_for_the_silence_of_an_outage() -> None:
    transit = make_transit()
    meet(transit, "js-1", now=0.0)
    transit.resume(3600.0)
    assert transit.tick(3629.0) == []
    assert transit.registry.nodes["js-1"].available
    assert transit.tick(3631.0) != []


def test_c29_a_disconnect_loses_the_node_as_expected() -> None:
    transit = make_transit()
    meet(transit, "js-1")
    transit.request(request("posts.find", "py-1", id="1"), "js-1", None, 0.0)
    lost, _, rejected, unread = transit.receive("DISCONNECT", Disconnect(ver="5", sender="js-1"), 1.0)
    assert isinstance(lost, Notify)
    assert lost.payload["unexpected"] is False
    assert isinstance(rejected, Reject)
    assert isinstance(unread, NobodyReads)
    for sender in ("js-1", "stranger"):  # who never said what it offers may have called, and read a stream
        (unread,) = transit.receive("DISCONNECT", Disconnect(ver="5", sender=sender), 2.0)
        assert isinstance(unread, NobodyReads)


# Pings


def test_a_ping_is_answered_to_its_sender() -> None:
    ping = Ping(ver="4", sender="js-1", time=5, id="p")
    assert make_transit().receive("PING", ping, 0.0) == [AnswerPing(ping, "MOL.PONG.js-1")]


def test_a_pong_arrives() -> None:
    pong = Pong(ver="5", sender="js-1", time=5, id="p", arrived=6)
    assert make_transit().receive("PONG", pong, 0.0) == [PongArrived(pong)]


def test_a_ping_goes_to_one_node() -> None:
    (publish,) = publishes(make_transit().ping("js-1", "p", 5))
    assert publish.subject == "MOL.PING.js-1"
    assert publish.packet == Ping(ver="5", sender="py-1", time=5, id="p")


# Calls to this node


def test_a_call_runs_the_action_with_the_time_of_its_arrival() -> None:
    transit = make_transit()
    offer(transit, Math())
    call = request("math.add")
    (run,) = transit.receive("REQ", call, 12.5)
    assert isinstance(run, RunAction)
    assert run.request is call
    assert run.action.name == "math.add"
    assert run.arrived == 12.5


def test_c37_a_call_of_the_bare_minimum_is_run() -> None:
    transit = make_transit()
    offer(transit, Math())
    (run,) = transit.receive("REQ", Request(ver="4", sender="stranger", id="1", action="math.add"), 0.0)
    assert isinstance(run, RunAction)


@pytest.mark.parametrize("stream", [None, False, 0, ""])
def test_c38_an_empty_stream_flag_is_none(stream: Any) -> None:
    transit = make_transit()
    offer(transit, Math())
    (run,) = transit.receive("REQ", request("math.add", stream=stream), 0.0)
    assert isinstance(run, RunAction)


@pytest.mark.parametrize("name", ["math.nothing", "math.hidden", ""])
def test_c41_c42_unknown_and_private_actions_are_refused_with_the_meta_echoed(name: str) -> None:
    transit = make_transit()
    offer(transit, Math())
    subject, error, response = refusal(transit.receive("REQ", request(name, meta={"a": 1}), 0.0))
    assert subject == "MOL.RES.js-1"
    assert (error["name"], error["code"], error["type"]) == ("ServiceNotFoundError", 404, "SERVICE_NOT_FOUND")
    assert error["data"] == {"action": name, "nodeID": "py-1"}
    assert (response.id, response.meta, response.headers) == ("r-1", {"a": 1}, None)
    assert response.data is None


def test_an_action_of_another_node_alone_is_not_found_here() -> None:
    transit = make_transit()
    meet(transit, "js-2", service_info("posts", "find"))
    _, error, _ = refusal(transit.receive("REQ", request("posts.find"), 0.0))
    assert error["name"] == "ServiceNotFoundError"


def test_a_protected_action_that_is_called_directly_is_run_as_in_js() -> None:
    transit = make_transit()
    offer(transit, Math())
    (run,) = transit.receive("REQ", request("math.inner"), 0.0)
    assert isinstance(run, RunAction)


def test_a_request_with_a_stream_that_is_one_too_many_is_refused_at_once() -> None:
    transit = make_transit()
    transit.streams = Receiving("py-1", 1, 100, 60.0)
    offer(transit, Math())
    transit.receive("REQ", request("math.add", stream=True, sequence=0), 0.0)
    (refusal,) = publishes(transit.receive("REQ", request("math.add", id="r-2", stream=True, sequence=0), 0.0))
    assert isinstance(refusal.packet, Response)
    assert (refusal.packet.id, refusal.packet.error["name"]) == ("r-2", "QueueIsFullError")
    assert transit.receive("REQ", request("math.add", id="r-2", stream=True, sequence=1), 0.0) == []


def test_a_stream_to_an_unknown_action_is_refused_once_and_its_rest_is_swallowed() -> None:
    transit = make_transit()
    opening, chunk = (request("no.such", stream=True, sequence=number) for number in (0, 1))
    _, error, _ = refusal(transit.receive("REQ", opening, 0.0))
    assert error["name"] == "ServiceNotFoundError"
    assert transit.receive("REQ", chunk, 0.0) == []


def test_c33_a_stopping_node_serves_until_it_has_told_so_and_then_refuses() -> None:
    transit = make_transit()
    offer(transit, Math())
    transit.leave()
    (run,) = transit.receive("REQ", request("math.add"), 0.0)
    assert isinstance(run, RunAction)
    transit.stopping = True
    _, error, _ = refusal(transit.receive("REQ", request("math.add"), 0.0))
    assert error["name"] == "ServiceNotAvailableError"
    assert error["data"] == {"action": "math.add", "nodeID": "py-1"}


def test_c34_a_stopping_node_says_that_it_offers_nothing() -> None:
    transit = make_transit()
    offer(transit, Math())
    transit.leave()
    transit.stopping = True
    (publish,) = publishes(transit.receive("DISCOVER", Discover(ver="5", sender="js-1"), 0.0))
    assert isinstance(publish.packet, Info)
    assert publish.packet.services == []


def test_past_the_bound_a_call_is_refused_at_once_and_may_be_retried() -> None:
    transit = make_transit(requests_in_work=2)
    offer(transit, Math())
    transit.in_work = 2
    _, error, _ = refusal(transit.receive("REQ", request("math.add"), 0.0))
    assert (error["name"], error["retryable"]) == ("QueueIsFullError", True)
    assert error["data"] == {"action": "math.add", "nodeID": "py-1", "size": 2, "limit": 2}
    transit.in_work = 1
    (run,) = transit.receive("REQ", request("math.add"), 0.0)
    assert isinstance(run, RunAction)


# Calls of this node


def test_a_call_is_sent_to_its_node_and_its_answer_settles_it_once() -> None:
    transit = make_transit()
    call = request("posts.find", "py-1", id="1")
    assert transit.request(call, "js-1", "waiter", 0.0) == [Publish("MOL.REQ.js-1", call, reply_id="1")]
    answer = Response(ver="5", sender="js-1", id="1", success=True, data=Raw(b"1"))
    (settled,) = transit.receive("RES", answer, 0.0)
    assert isinstance(settled, Settle)
    assert (settled.pending.waiter, settled.response) == ("waiter", answer)
    assert transit.receive("RES", answer, 0.0) == []


def test_c43_unknown_and_late_answers_are_ignored() -> None:
    transit = make_transit()
    transit.request(request("posts.find", "py-1", id="1"), "js-1", "waiter", 0.0)
    transit.forget_request("1")
    transit.forget_request("1")
    assert transit.receive("RES", Response(ver="5", sender="js-1", id="1", success=True), 0.0) == []
    assert transit.receive("RES", Response(ver="5", sender="js-1", id="never", success=True), 0.0) == []


def test_too_many_waiting_calls_are_refused_at_once() -> None:
    transit = make_transit(requests_pending=2)
    for number in ("1", "2"):
        transit.request(request("posts.find", "py-1", id=number), "js-1", None, 0.0)
    with pytest.raises(QueueIsFullError) as caught:
        transit.request(request("posts.find", "py-1", id="3"), "js-1", None, 0.0)
    assert caught.value.data == {"action": "posts.find", "nodeID": "py-1", "size": 2, "limit": 2}
    transit.forget_request("1")
    assert transit.request(request("posts.find", "py-1", id="3"), "js-1", None, 0.0)


def test_a_call_that_nobody_hears_may_go_elsewhere_and_its_node_is_gone() -> None:
    transit = make_transit()
    meet(transit, "js-1", service_info("posts", "find"))
    transit.request(request("posts.find", "py-1", id="earlier"), "js-1", None, 0.0)
    transit.request(request("posts.find", "py-1", id="unheard"), "js-1", None, 0.0)
    effects = transit.nobody_listens("unheard", 1.0)
    rejects = {effect.pending.id: effect for effect in effects if isinstance(effect, Reject)}
    assert rejects["unheard"].undelivered is True
    assert rejects["earlier"].undelivered is False
    assert [effect.event for effect in effects if isinstance(effect, Notify)] == [
        "$node.disconnected",
        "$services.changed",
    ]
    assert not transit.registry.nodes["js-1"].available
    assert transit.nobody_listens("unheard", 1.0) == []


def test_calls_sent_after_an_unheard_one_wait_for_their_own_word_of_the_server() -> None:
    transit = make_transit()
    meet(transit, "js-1", service_info("posts", "find"))
    for number in ("1", "2"):
        transit.request(request("posts.find", "py-1", id=number), "js-1", None, 0.0)
    first = [effect for effect in transit.nobody_listens("1", 1.0) if isinstance(effect, Reject)]
    assert [reject.pending.id for reject in first] == ["1"]
    (second,) = transit.nobody_listens("2", 1.0)
    assert isinstance(second, Reject)
    assert second.undelivered is True


def test_a_node_that_keeps_a_call_waiting_is_asked_in_its_version_and_lost_when_it_is_unheard() -> None:
    transit = make_transit()
    meet(transit, "js-1", service_info("posts", "find"), ver="4")
    transit.request(request("posts.find", "py-1", id="1"), "js-1", None, 0.0)
    assert transit.tick(NODE_PROBE_AFTER_S / 2) == []
    (probe,) = publishes(transit.tick(NODE_PROBE_AFTER_S))
    assert (probe.subject, probe.packet.ver, probe.packet.sender) == ("MOL.PING.js-1", "4", "py-1~probe")
    assert probe.reply_id is not None
    assert transit.nobody_listens(probe.reply_id, NODE_PROBE_AFTER_S) == []
    late = NODE_PROBE_AFTER_S + NODE_UNHEARD_S
    assert len(publishes(transit.tick(late))) == 1
    transit.request(request("posts.find", "py-1", id="2"), "js-1", None, late + 0.1)
    effects = transit.nobody_listens(probe.reply_id, late + 0.2)
    assert [effect.pending.id for effect in effects if isinstance(effect, Reject)] == ["1"], "2 has its own word"
    assert not transit.registry.nodes["js-1"].available


def test_what_a_replaced_process_was_asked_is_rejected_and_nothing_later() -> None:
    transit = make_transit()
    meet(transit, "js-1", service_info("posts", "find"))
    transit.request(request("posts.find", "py-1", id="before"), "js-1", None, 1.0)
    transit.receive("DISCOVER", Discover(ver="5", sender="js-1"), 2.0)
    transit.request(request("posts.find", "py-1", id="after"), "js-1", None, 3.0)
    same = transit.receive("INFO", info("js-1", service_info("posts", "find"), sequence=3), 4.0)
    assert not [effect for effect in same if isinstance(effect, Reject)], "the same process: it only connected anew"
    other = transit.receive("INFO", info("js-1", service_info("posts", "find"), instance="another"), 5.0)
    assert [effect.pending.id for effect in other if isinstance(effect, Reject)] == ["before"]


def test_a_failure_names_whom_it_concerns_and_has_null_data() -> None:
    transit = make_transit()
    error = MoleculerError("mine", 599, "MINE", {"z": 1})
    subject, wire, response = refusal(transit.respond_error(request("math.add"), {"m": 1}, error, headers={}))
    assert subject == "MOL.RES.js-1"
    assert {key: wire[key] for key in ("name", "message", "nodeID", "code", "type", "retryable", "data")} == {
        "name": "MoleculerError",
        "message": "mine",
        "nodeID": "py-1",
        "code": 599,
        "type": "MINE",
        "retryable": False,
        "data": {"z": 1},
    }
    assert (response.meta, response.headers) == ({"m": 1}, {})


# Events to this node


def heard(transit: Transit, **fields: Any) -> list[tuple[str, str]]:
    effects = transit.receive("EVENT", Event(ver="5", sender="js-1", **fields), 0.0)
    if not effects:
        return []
    (run,) = effects
    assert isinstance(run, RunEvent)
    return sorted((listener.group, listener.name) for listener in run.listeners)


@pytest.mark.parametrize("groups", [UNSET, None, []])
def test_c64_an_event_without_groups_is_for_all(groups: Any) -> None:
    transit = make_transit()
    offer(transit, Math())
    expected = [("audit", "user.c*"), ("math", "user.*"), ("math", "user.created")]
    assert heard(transit, event="user.created", groups=groups, broadcast=True) == expected
    assert heard(transit, event="user.created", groups=groups, broadcast=False) == expected


def test_c64_groups_choose_the_listeners_and_duplicates_change_nothing() -> None:
    transit = make_transit()
    offer(transit, Math())
    assert heard(transit, event="user.created", groups=["audit"]) == [("audit", "user.c*")]
    doubled = heard(transit, event="user.created", groups=["math", "math"])
    assert doubled == [("math", "user.*"), ("math", "user.created")]
    assert heard(transit, event="user.created", groups=["others"]) == []


def test_an_event_that_nobody_here_hears_is_silent() -> None:
    transit = make_transit()
    meet(transit, "js-2", service_info("mail", events=("order.*",)))
    assert heard(transit, event="order.made") == []


def test_events_that_come_while_stopping_are_dropped_with_a_line() -> None:
    transit = make_transit()
    offer(transit, Math())
    transit.stopping = True
    (dropped,) = transit.receive("EVENT", Event(ver="5", sender="js-1", event="user.created"), 0.0)
    assert isinstance(dropped, Dropped)


# Senders that cannot be answered


@pytest.mark.parametrize("sender", ["", " ", "a b", "a\r\nPUB x 0\r\n", "*", "a.>", ".a", "a..b", "x" * 5000])
@pytest.mark.parametrize("command", ["REQ", "DISCOVER", "HEARTBEAT", "PING", "INFO"])
def test_a_sender_that_no_subject_can_name_is_dropped(command: Any, sender: str) -> None:
    packets: dict[str, Packet] = {
        "REQ": request("math.add", sender),
        "DISCOVER": Discover(ver="5", sender=sender),
        "HEARTBEAT": Heartbeat(ver="5", sender=sender),
        "PING": Ping(ver="5", sender=sender, time=1),
        "INFO": info(sender),
    }
    transit = make_transit()
    offer(transit, Math())
    (dropped,) = transit.receive(command, packets[command], 0.0)
    assert isinstance(dropped, Dropped)
    assert len(dropped.reason) < 500
    assert transit.registry.nodes.keys() == {"py-1"}


# Two nodes joined by a list


def test_two_nodes_find_each_other_call_and_part() -> None:
    first, second = make_transit("py-1"), make_transit("py-2")
    offer(second, Math())
    nodes = {"py-1": first, "py-2": second}
    done: list[Any] = []

    def deliver(effects: list[Any], sender: str) -> None:
        for effect in effects:
            if not isinstance(effect, Publish):
                done.append((sender, effect))
                continue
            _, command, *target = effect.subject.split(".")
            for node_id in target or nodes:
                deliver(nodes[node_id].receive(command, effect.packet, 0.0), node_id)  # type: ignore[arg-type]  # a command

    deliver(first.discover(), "py-1")
    assert first.registry.find_action("math.add").node_id == "py-2"
    deliver(first.request(request("math.add", "py-1", id="1"), "py-2", "waiter", 0.0), "py-1")
    run = next(effect for _, effect in done if isinstance(effect, RunAction))
    deliver(second.respond(run.request, {}, Raw(b"3")), "py-2")
    settled = next(effect for _, effect in done if isinstance(effect, Settle))
    assert settled.response.data == Raw(b"3")
    deliver(second.leave(), "py-2")
    deliver(second.disconnect(), "py-2")
    assert not first.registry.nodes["py-2"].available


@pytest.mark.parametrize("protocol", ["4", "5"])
def test_c87_every_captured_packet_can_be_received(protocol: str) -> None:
    codec, transit = JSONCodec(), make_transit()
    offer(transit, Math())
    for number, command, packet, note in captured(protocol):
        decoded = codec.decode(command, json.dumps(packet).encode())
        if command == "RES":
            transit.request(request("a.b", "py-1", id=packet["id"]), packet["sender"], number, 0.0)
        effects = transit.receive(command, decoded, float(number))
        assert not any(isinstance(effect, Dropped | Conflict) for effect in effects), note
        if command == "RES":
            assert [type(effect) for effect in effects] in ([Settle], [FeedStream], [EndStream]), note
            assert (effects[0].__class__ is Settle) == (not packet.get("seq")), note
        if command == "REQ" and packet["action"] == "math.add" and not packet.get("seq"):
            assert [type(effect) for effect in effects] == [RunAction], note
        for effect in effects:
            if isinstance(effect, Publish):
                assert effect.packet.ver == protocol, note
                codec.encode(effect.packet)
