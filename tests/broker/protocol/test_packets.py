"""Packets have the fields of the reference and its names on the wire (protocol §2.3)."""

import msgspec
import pytest
from msgspec import UNSET, Raw

from broker.protocol.packets import COMMANDS, Event, Heartbeat, Info, Packet, Ping, Request, Response
from tests.support.transits import captured

NOT_DECLARED = {
    # No code acts on these; they are skipped.
    "EVENT": set(),
    "REQ": set(),
    "RES": set(),
    "HEARTBEAT": {"cpuSeq"},
}


@pytest.mark.parametrize("protocol", ["4", "5"])
def test_every_captured_field_is_declared(protocol: str) -> None:
    for number, command, packet, _note in captured(protocol):
        declared = {field.encode_name for field in msgspec.structs.fields(COMMANDS[command])}
        unknown = packet.keys() - declared - NOT_DECLARED.get(command, set())
        assert not unknown, (number, command)


def test_c9_every_packet_has_a_version_and_a_sender() -> None:
    for kind in COMMANDS.values():
        assert issubclass(kind, Packet)
        assert {field.encode_name for field in msgspec.structs.fields(kind)} >= {"ver", "sender"}


def test_a_discover_holds_only_version_and_sender() -> None:
    assert wire(COMMANDS["DISCOVER"](ver="5", sender="py-1")) == {"ver": "5", "sender": "py-1"}


def test_c35_a_request_has_every_field_of_the_reference() -> None:
    sent = Request(ver="5", sender="py-1", id="1", action="a.b", params=Raw(b"null"), meta={}, headers={}, timeout=0)
    assert wire(sent) == {
        "ver": "5",
        "sender": "py-1",
        "id": "1",
        "action": "a.b",
        "params": None,
        "meta": {},
        "headers": {},
        "timeout": 0,
        "level": None,
        "tracing": None,
        "parentID": None,
        "requestID": None,
        "caller": None,
        "stream": False,
    }


def test_c36_headers_are_left_out_when_unset() -> None:
    assert "headers" not in wire(Request(ver="4", sender="py-1", id="1", action="a.b", params=Raw(b"{}")))
    assert "headers" not in wire(Response(ver="4", sender="py-1", id="1", data=Raw(b"1")))
    assert "headers" not in wire(Event(ver="4", sender="py-1", event="e", data=Raw(b"1")))
    assert wire(Response(ver="5", sender="py-1", id="1", headers=None, data=Raw(b"1")))["headers"] is None


def test_a_response_without_a_stream_or_error_names_neither() -> None:
    sent = wire(Response(ver="5", sender="py-1", id="1", success=True, headers={}, meta={}, data=Raw(b"3")))
    assert sent.keys() == {"ver", "sender", "id", "meta", "headers", "success", "data"}


def test_a_heartbeat_has_no_sequence() -> None:
    assert wire(Heartbeat(ver="5", sender="py-1", cpu=12)) == {"ver": "5", "sender": "py-1", "cpu": 12}


def test_a_ping_without_an_id_has_none() -> None:
    assert "id" not in wire(Ping(ver="5", sender="py-1", time=1))


def test_c15_info_has_every_field_of_the_reference() -> None:
    assert wire(Info(ver="5", sender="py-1")).keys() == {
        "ver",
        "sender",
        "services",
        "ipList",
        "hostname",
        "client",
        "config",
        "instanceID",
        "metadata",
        "seq",
    }


def test_an_event_has_every_field_of_the_reference() -> None:
    sent = wire(Event(ver="5", sender="py-1", event="e", data=Raw(b"null"), groups=["g"], headers={}))
    assert sent.keys() == {
        "ver",
        "sender",
        "id",
        "event",
        "data",
        "groups",
        "broadcast",
        "meta",
        "headers",
        "level",
        "tracing",
        "parentID",
        "requestID",
        "caller",
        "needAck",
    }


def test_groups_left_out_stay_left_out() -> None:
    assert Event(ver="5", sender="py-1", event="e").groups is UNSET


def wire(packet: Packet) -> dict[str, object]:
    encoded = msgspec.json.decode(msgspec.json.encode(packet))
    assert isinstance(encoded, dict)
    return encoded
