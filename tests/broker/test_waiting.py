"""Requests that wait for their answers, and what becomes of them when a node is gone."""

import pytest
from msgspec import Raw

from broker.defaults import NODE_PROBE_AFTER_S, NODE_UNHEARD_S
from broker.effects import (
    NobodyReads,
    Notify,
    Publish,
    Reject,
    Settle,
)
from broker.errors import QueueIsFullError, RequestRejectedError
from broker.packets import (
    Disconnect,
    Discover,
    Heartbeat,
    Response,
)
from broker.transit import Transit
from tests.support.transits import info, make_transit, meet, publishes, request, service_info, subjects


def test_c28_a_silent_node_is_lost_after_the_timeout_and_its_calls_are_rejected() -> None:
    transit = make_transit()
    meet(transit, "js-1", service_info("posts", "find"))
    transit.receive("HEARTBEAT", Heartbeat(ver="5", sender="js-1"), 10.0)
    transit.waiting.request(request("posts.find", "py-1", id="1"), "js-1", "waiter", 39.0)
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
    assert transit.waiting.pending == {}
    assert transit.tick(50.0) == []


def test_c29_a_disconnect_loses_the_node_as_expected() -> None:
    transit = make_transit()
    meet(transit, "js-1")
    transit.waiting.request(request("posts.find", "py-1", id="1"), "js-1", None, 0.0)
    lost, _, rejected, unread = transit.receive("DISCONNECT", Disconnect(ver="5", sender="js-1"), 1.0)
    assert isinstance(lost, Notify)
    assert lost.payload["unexpected"] is False
    assert isinstance(rejected, Reject)
    assert isinstance(unread, NobodyReads)
    for sender in ("js-1", "stranger"):  # who never said what it offers may have called, and read a stream
        (unread,) = transit.receive("DISCONNECT", Disconnect(ver="5", sender=sender), 2.0)
        assert isinstance(unread, NobodyReads)


def test_a_call_is_sent_to_its_node_and_its_answer_settles_it_once() -> None:
    transit = make_transit()
    call = request("posts.find", "py-1", id="1")
    assert transit.waiting.request(call, "js-1", "waiter", 0.0) == [Publish("MOL.REQ.js-1", call, reply_id="1")]
    answer = Response(ver="5", sender="js-1", id="1", success=True, data=Raw(b"1"))
    (settled,) = transit.receive("RES", answer, 0.0)
    assert isinstance(settled, Settle)
    assert (settled.pending.waiter, settled.response) == ("waiter", answer)
    assert transit.receive("RES", answer, 0.0) == []


def test_c43_unknown_and_late_answers_are_ignored() -> None:
    transit = make_transit()
    transit.waiting.request(request("posts.find", "py-1", id="1"), "js-1", "waiter", 0.0)
    transit.waiting.take("1")
    transit.waiting.take("1")
    assert transit.receive("RES", Response(ver="5", sender="js-1", id="1", success=True), 0.0) == []
    assert transit.receive("RES", Response(ver="5", sender="js-1", id="never", success=True), 0.0) == []


def test_too_many_waiting_calls_are_refused_at_once() -> None:
    transit = make_transit(requests_pending=2)
    for number in ("1", "2"):
        transit.waiting.request(request("posts.find", "py-1", id=number), "js-1", None, 0.0)
    with pytest.raises(QueueIsFullError) as caught:
        transit.waiting.request(request("posts.find", "py-1", id="3"), "js-1", None, 0.0)
    assert caught.value.data == {"action": "posts.find", "nodeID": "py-1", "size": 2, "limit": 2}
    transit.waiting.take("1")
    assert transit.waiting.request(request("posts.find", "py-1", id="3"), "js-1", None, 0.0)


def test_a_call_that_nobody_hears_may_go_elsewhere_and_its_node_is_gone() -> None:
    transit = make_transit()
    meet(transit, "js-1", service_info("posts", "find"))
    transit.waiting.request(request("posts.find", "py-1", id="earlier"), "js-1", None, 0.0)
    transit.waiting.request(request("posts.find", "py-1", id="unheard"), "js-1", None, 0.0)
    effects = transit.waiting.nobody_listens("unheard", 1.0)
    rejects = {effect.pending.id: effect for effect in effects if isinstance(effect, Reject)}
    assert rejects["unheard"].undelivered is True
    assert set(rejects) == {"unheard"}, "the earlier one was heard, and may be answered yet"
    assert [effect.event for effect in effects if isinstance(effect, Notify)] == [
        "$node.disconnected",
        "$services.changed",
    ]
    assert not transit.registry.nodes["js-1"].available
    assert transit.waiting.nobody_listens("unheard", 1.0) == []


def test_a_node_that_does_not_hear_pings_is_not_gone_while_it_hears_other_questions() -> None:
    transit = make_transit()
    meet(transit, "js-1", service_info("posts", "find"))
    transit.waiting.request(request("posts.find", "py-1", id="1"), "js-1", None, 0.0)
    asked = []
    for now in range(1, 20):
        for question in publishes(transit.tick(now)):
            asked.append(question.subject)
            if question.subject == "MOL.PING.js-1":
                assert question.reply_id is not None
                assert transit.waiting.nobody_listens(question.reply_id, now) == []
    assert set(asked) == {"MOL.PING.js-1", "MOL.DISCOVER.js-1"}
    assert transit.registry.nodes["js-1"].available


def missed(now: float) -> Transit:
    """A node that was asked `earlier`, and did not hear what came then."""
    transit = make_transit()
    meet(transit, "js-1", service_info("posts", "find"), ver="4")
    transit.waiting.request(request("posts.find", "py-1", id="earlier"), "js-1", None, now)
    transit.waiting.request(request("posts.find", "py-1", id="unheard"), "js-1", None, now)
    transit.waiting.nobody_listens("unheard", now)
    return transit


def test_a_node_that_was_not_heard_is_asked_who_it_is_until_it_is_back_and_then_still_answers() -> None:
    transit = missed(0.0)
    for now in (1.0, 2.0):
        (question,) = publishes(transit.tick(now))
        assert (question.subject, question.packet) == ("MOL.DISCOVER.js-1", Discover(ver="4", sender="py-1"))
        assert question.reply_id is not None
        assert transit.waiting.nobody_listens(question.reply_id, now) == []
    assert len(publishes(transit.tick(3.0))) == 1, "heard, but too early for an answer"
    assert subjects(transit.tick(3.0 + NODE_PROBE_AFTER_S)) == [("MOL.DISCOVER.js-1", "4")]
    transit.receive("INFO", info("js-1", service_info("posts", "find"), ver="4"), 5.1)
    assert transit.registry.nodes["js-1"].available
    assert transit.registry.find_action("posts.find").node_id == "js-1"
    answer = Response(ver="4", sender="js-1", id="earlier", success=True, data=Raw(b"1"))
    (settled,) = transit.receive("RES", answer, 5.2)
    assert isinstance(settled, Settle)
    assert transit.tick(6.0) == transit.tick(20.0) == []


def test_what_a_node_was_asked_that_was_not_heard_later_is_rejected_when_it_does_not_come_back() -> None:
    transit = missed(0.0)
    rejected = []
    for now in range(1, 11):
        for question in publishes(transit.tick(now)):
            assert question.reply_id is not None
            effects = transit.waiting.nobody_listens(question.reply_id, now)
            rejected += [(effect.pending.id, now) for effect in effects if isinstance(effect, Reject)]
    assert rejected == [("earlier", NODE_UNHEARD_S)]


def test_what_a_node_was_asked_that_was_not_heard_later_is_rejected_by_its_silence() -> None:
    transit = missed(0.0)
    transit.tick(30.0)  # the server has nothing to say against the question: somebody took it
    (rejected,) = [effect for effect in transit.tick(30.1) if isinstance(effect, Reject)]
    assert rejected.pending.id == "earlier"


def test_what_a_node_was_asked_that_was_not_heard_later_is_rejected_when_another_process_takes_its_place() -> None:
    transit = missed(0.0)
    transit.receive("DISCOVER", Discover(ver="4", sender="js-1"), 1.0)
    effects = transit.receive("INFO", info("js-1", service_info("posts", "find"), ver="4", instance="another"), 2.0)
    assert [effect.pending.id for effect in effects if isinstance(effect, Reject)] == ["earlier"]
    assert transit.registry.nodes["js-1"].available


def test_the_reader_of_a_stream_that_is_not_heard_may_still_answer_what_it_was_asked() -> None:
    transit = make_transit()
    meet(transit, "py-2", service_info("posts", "find"))
    transit.waiting.request(request("posts.find", "py-1", id="1"), "py-2", None, 0.0)
    effects = transit.waiting.nobody_reads("py-2", 1.0)
    assert [effect for effect in effects if isinstance(effect, Reject)] == []
    assert [effect.until for effect in effects if isinstance(effect, NobodyReads)] == [1.0]
    assert not transit.registry.nodes["py-2"].available


def test_calls_sent_after_an_unheard_one_wait_for_their_own_word_of_the_server() -> None:
    transit = make_transit()
    meet(transit, "js-1", service_info("posts", "find"))
    for number in ("1", "2"):
        transit.waiting.request(request("posts.find", "py-1", id=number), "js-1", None, 0.0)
    first = [effect for effect in transit.waiting.nobody_listens("1", 1.0) if isinstance(effect, Reject)]
    assert [reject.pending.id for reject in first] == ["1"]
    (second,) = transit.waiting.nobody_listens("2", 1.0)
    assert isinstance(second, Reject)
    assert second.undelivered is True


def test_a_node_that_keeps_a_call_waiting_is_asked_in_its_version_and_lost_when_it_is_unheard() -> None:
    transit = make_transit()
    meet(transit, "js-1", service_info("posts", "find"), ver="4")
    transit.waiting.request(request("posts.find", "py-1", id="1"), "js-1", None, 0.0)
    assert transit.tick(NODE_PROBE_AFTER_S / 2) == []
    (probe,) = publishes(transit.tick(NODE_PROBE_AFTER_S))
    assert (probe.subject, probe.packet.ver, probe.packet.sender) == ("MOL.PING.js-1", "4", "py-1~probe")
    assert probe.reply_id is not None
    assert transit.waiting.nobody_listens(probe.reply_id, NODE_PROBE_AFTER_S) == []
    late = NODE_PROBE_AFTER_S + NODE_UNHEARD_S
    (probe,) = publishes(transit.tick(late))
    assert (probe.subject, probe.packet) == ("MOL.DISCOVER.js-1", Discover(ver="4", sender="py-1"))
    assert probe.reply_id is not None
    transit.waiting.request(request("posts.find", "py-1", id="2"), "js-1", None, late + 0.1)
    effects = transit.waiting.nobody_listens(probe.reply_id, late + 0.2)
    assert [effect.pending.id for effect in effects if isinstance(effect, Reject)] == ["1"], "2 has its own word"
    assert not transit.registry.nodes["js-1"].available


def test_what_a_replaced_process_was_asked_is_rejected_and_nothing_later() -> None:
    transit = make_transit()
    meet(transit, "js-1", service_info("posts", "find"))
    transit.waiting.request(request("posts.find", "py-1", id="before"), "js-1", None, 1.0)
    transit.receive("DISCOVER", Discover(ver="5", sender="js-1"), 2.0)
    transit.waiting.request(request("posts.find", "py-1", id="after"), "js-1", None, 3.0)
    same = transit.receive("INFO", info("js-1", service_info("posts", "find"), sequence=3), 4.0)
    assert not [effect for effect in same if isinstance(effect, Reject)], "the same process: it only connected anew"
    other = transit.receive("INFO", info("js-1", service_info("posts", "find"), instance="another"), 5.0)
    assert [effect.pending.id for effect in other if isinstance(effect, Reject)] == ["before"]
