"""The conversation between nodes as a table: packets and times in, effects out. No loop, no clock (protocol §2-§5)."""

import json
from typing import Any

import pytest
from msgspec import UNSET, Raw

from broker.conversation.effects import (
    AnswerMark,
    Conflict,
    Log,
    Notify,
    PongArrived,
    Publish,
    RunAction,
    RunEvent,
    Settle,
)
from broker.conversation.transit import Transit
from broker.errors import MoleculerError
from broker.protocol.codecs.json import JSONCodec
from broker.protocol.packets import (
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
from broker.streams.incoming import IncomingStreams
from broker.streams.packets import STOP
from tests.support.transits import (
    Math,
    captured,
    info,
    make_transit,
    meet,
    offer,
    publishes,
    request,
    service_info,
    subjects,
)


def refusal(effects: list[Any]) -> tuple[str, Any, Response]:
    (publish,) = publishes(effects)
    assert isinstance(publish.packet, Response)
    assert publish.packet.success is False
    return publish.subject, publish.packet.error, publish.packet


# Finding each other


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


def test_c8_another_process_with_our_id_is_a_conflict_and_our_own_echo_is_not() -> None:
    transit = make_transit()
    assert transit.receive("INFO", info("py-1", instance="another process"), 0.0) == [Conflict()]
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
        assert isinstance(dropped, Log)
        assert dropped.text == f"{command} from 'js-1' has protocol version {ver!r}, not 4 and 5; dropped"
    assert transit.registry.nodes.keys() == {"py-1"}


def test_a_node_pinned_to_one_version_drops_the_other() -> None:
    transit = make_transit(protocol="4")
    (dropped,) = transit.receive("DISCOVER", Discover(ver="5", sender="js-1"), 0.0)
    assert isinstance(dropped, Log)
    assert "not 4" in dropped.text
    assert subjects(transit.presence.discover()) == [("MOL.DISCOVER", "4")]
    assert transit.presence.version_for("nobody") == "4"


# Both versions at once


def test_an_answer_has_the_version_of_its_question() -> None:
    transit = make_transit()
    for ver in ("4", "5"):
        answer = transit.response(request("math.add", ver=ver), {}, {})
        assert answer.ver == ver
        assert (answer.headers is UNSET) == (ver == "4")


# Heartbeats


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


# Pings


def test_a_ping_is_answered_to_its_sender() -> None:
    ping = Ping(ver="4", sender="js-1", time=5, id="p")
    assert make_transit().receive("PING", ping, 0.0) == [
        Publish("MOL.PONG.js-1", Pong(ver="4", sender="py-1", time=5, id="p"))
    ]


def test_a_pong_arrives() -> None:
    pong = Pong(ver="5", sender="js-1", time=5, id="p", arrived=6)
    assert make_transit().receive("PONG", pong, 0.0) == [PongArrived(pong)]


def test_a_ping_goes_to_one_node() -> None:
    (publish,) = publishes(make_transit().presence.ping("js-1", "p", 5))
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
    transit.streams = IncomingStreams("py-1", 1, 100, 1000, 60.0, JSONCodec().decode_chunk)
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
    assert transit.receive("REQ", chunk, 0.0, "mark") == [AnswerMark("mark", STOP)]


def test_c33_a_stopping_node_serves_until_it_has_told_so_and_then_refuses() -> None:
    transit = make_transit()
    offer(transit, Math())
    transit.presence.leave()
    (run,) = transit.receive("REQ", request("math.add"), 0.0)
    assert isinstance(run, RunAction)
    transit.stopping = True
    _, error, _ = refusal(transit.receive("REQ", request("math.add"), 0.0))
    assert error["name"] == "ServiceNotAvailableError"
    assert error["data"] == {"action": "math.add", "nodeID": "py-1"}


def test_past_the_bound_a_call_is_refused_at_once_and_may_be_retried() -> None:
    transit = make_transit(requests_in_work=2)
    offer(transit, Math())
    first, _ = [run for _ in range(2) for run in transit.receive("REQ", request("math.add"), 0.0)]
    assert isinstance(first, RunAction)
    _, error, _ = refusal(transit.receive("REQ", request("math.add"), 0.0))
    assert (error["name"], error["retryable"]) == ("QueueIsFullError", True)
    assert error["data"] == {"action": "math.add", "nodeID": "py-1", "size": 2, "limit": 2}
    transit.in_work.discard(first)
    (run,) = transit.receive("REQ", request("math.add"), 0.0)
    assert isinstance(run, RunAction)


# Calls of this node


def test_a_failure_names_whom_it_concerns_and_has_null_data() -> None:
    transit = make_transit()
    error = MoleculerError("mine", 599, "MINE", {"z": 1})
    subject, wire, response = refusal([transit.respond_error(request("math.add"), {"m": 1}, error, headers={})])
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
    assert isinstance(dropped, Log)


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
    assert isinstance(dropped, Log)
    assert len(dropped.text) < 500
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

    deliver(first.presence.discover(), "py-1")
    assert first.registry.find_action("math.add").node_id == "py-2"
    call = request("math.add", "py-1", id="1")
    first.requests.expect(call, "py-2", "waiter", 0.0)
    deliver([Publish("MOL.REQ.py-2", call)], "py-1")
    run = next(effect for _, effect in done if isinstance(effect, RunAction))
    answer = second.response(run.request, {}, {})
    answer.data = Raw(b"3")
    deliver([Publish("MOL.RES.py-1", answer)], "py-2")
    settled = next(effect for _, effect in done if isinstance(effect, Settle))
    assert settled.response.data == Raw(b"3")
    deliver(second.presence.leave(), "py-2")
    deliver(second.presence.disconnect(), "py-2")
    assert not first.registry.nodes["py-2"].available


@pytest.mark.parametrize("protocol", ["4", "5"])
def test_c87_every_captured_packet_can_be_received(protocol: str) -> None:
    codec, transit = JSONCodec(), make_transit()
    offer(transit, Math())
    for number, command, packet, note in captured(protocol):
        decoded = codec.decode(command, json.dumps(packet).encode())
        if command == "RES":
            transit.requests.expect(request("a.b", "py-1", id=packet["id"]), packet["sender"], number, 0.0)
        effects = transit.receive(command, decoded, float(number))
        assert not any(isinstance(effect, Log | Conflict) for effect in effects), note
        if command == "RES":
            assert [type(effect) for effect in effects] == ([] if packet.get("seq") else [Settle]), note
        if command == "REQ" and packet["action"] == "math.add" and not packet.get("seq"):
            assert [type(effect) for effect in effects] == [RunAction], note
        for effect in effects:
            if isinstance(effect, Publish):
                assert effect.packet.ver == protocol, note
                codec.encode(effect.packet)


def test_nodes_above_the_bound_are_ignored_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.registry.registry.NODES_KNOWN", 2)
    transit = make_transit()
    effects = [effect for number in range(5) for effect in transit.receive("INFO", info(f"js-{number}"), 0.0)]
    assert transit.registry.nodes.keys() == {"py-1", "js-0"}
    assert all(isinstance(effect, Notify) for effect in effects)
    assert [effect.text for effect in [*transit.tick(0.1), *transit.tick(0.2)] if isinstance(effect, Log)] == [
        "2 nodes are known, and others are ignored until some leave"
    ]
