"""JSON in and out: what real nodes sent is read, what Python nodes send is what JSON.stringify would (protocol §11)."""

import json
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from msgspec import Raw, Struct

from broker.errors import InvalidPacketDataError, MoleculerError
from broker.protocol.codecs.json import JSONCodec
from broker.protocol.packets import COMMANDS, Address, Command, Event, Info, Packet, Request, Response
from tests.support.transits import captured

CODEC = JSONCodec()


def read(command: Command, packet: dict[str, Any]) -> Packet:
    """A packet from its JSON; values that are missing there are null, so that it can be written again."""
    decoded = CODEC.decode(command, json.dumps(packet).encode())
    for field in msgspec.structs.fields(decoded):
        if getattr(decoded, field.name) == Raw():
            setattr(decoded, field.name, Raw(b"null"))
    return decoded


@pytest.mark.parametrize("protocol", ["4", "5"])
def test_c87_every_captured_packet_is_read_and_written_again(protocol: str) -> None:
    count = 0
    for number, command, packet, note in captured(protocol):
        decoded = read(command, packet)
        assert decoded.sender == packet["sender"], (number, note)
        assert decoded.ver == protocol, (number, note)
        again = json.loads(CODEC.encode(decoded))
        for name, value in packet.items():
            if name != "cpuSeq":
                assert again.get(name) == value, (number, note, name)
        count += 1
    assert count == 136


@pytest.mark.parametrize("protocol", ["4", "5"])
def test_c87_the_slow_path_reads_every_captured_packet_alike(protocol: str) -> None:
    for number, command, packet, note in captured(protocol):
        fast, slow = read(command, packet), read(command, {**packet, "odd": "\ud800"})
        fast_again, slow_again = json.loads(CODEC.encode(fast)), json.loads(CODEC.encode(slow))
        assert fast_again == slow_again, (number, note)


def test_c13_unknown_fields_are_ignored() -> None:
    packet = CODEC.decode("DISCONNECT", b'{"ver":"5","sender":"js-1","colour":"green"}')
    assert packet.sender == "js-1"


def test_absent_params_and_null_are_kept_apart() -> None:
    absent = CODEC.decode("REQ", b'{"ver":"5","sender":"js-1","id":"1","action":"a.b"}')
    null = CODEC.decode("REQ", b'{"ver":"5","sender":"js-1","id":"1","action":"a.b","params":null}')
    assert isinstance(absent, Request)
    assert isinstance(null, Request)
    assert absent.params == Raw()
    assert null.params == Raw(b"null")


def test_c10_any_version_is_read_so_that_it_can_be_refused_by_name() -> None:
    for ver, text in [(4, b"4"), ("3", b'"3"'), (None, b"null"), ([], b"[]")]:
        assert CODEC.decode("DISCONNECT", b'{"sender":"js-1","ver":' + text + b"}").ver == ver
    assert CODEC.decode("DISCONNECT", b'{"sender":"js-1"}').ver is None


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "data", [b"", b"null", b"[]", b"5", b"{", b"{}", b"\xff\xfe", b'{"sender":5,"ver":"5"}', b"[" * 100_000]
)
def test_c11_bytes_that_are_not_a_packet_are_named_as_such(command: Command, data: bytes) -> None:
    with pytest.raises(InvalidPacketDataError) as caught:
        CODEC.decode(command, data)
    assert caught.value.data["command"] == command
    assert caught.value.data["size"] == len(data)
    assert caught.value.data["reason"]


def test_params_keep_their_bytes_on_both_paths() -> None:
    for extra in (b"", b',"odd":"\\ud800"'):
        data = b'{"ver":"5","sender":"js-1","id":"1","action":"a.b","params":{ "a" : 1.50 }' + extra + b"}"
        packet = CODEC.decode("REQ", data)
        assert isinstance(packet, Request)
        assert bytes(packet.params) == b'{ "a" : 1.50 }'


def test_lone_surrogates_of_javascript_are_read_and_written() -> None:
    packet = CODEC.decode("REQ", b'{"ver":"5","sender":"js-1","id":"1","action":"a.b","params":{"a":"\\ud800"}}')
    assert isinstance(packet, Request)
    assert CODEC.decode_value(packet.params) == {"a": "\ud800"}
    assert bytes(CODEC.encode_value({"a": "\ud800"})) == b'{"a":"\\ud800"}'
    sent = CODEC.encode(Response(ver="5", sender="py-1", id="1", meta={"m": "\udfff"}, data=Raw(b'{"a":1}')))
    assert json.loads(sent)["meta"] == {"m": "\udfff"}
    assert b'"data":{"a":1}' in sent
    assert b"stream" not in sent


def test_an_unusable_request_still_says_whom_to_answer() -> None:
    address = CODEC.decode_address(b'{"ver":"5","sender":"js-1","id":"7","action":5}')
    assert address is not None
    assert (address.sender, address.id, address.ver) == ("js-1", "7", "5")
    odd = CODEC.decode_address(b'{"ver":"4","sender":"js-1","id":"7","odd":"\\ud800"}')
    assert odd is not None
    assert odd.ver == "4"


@pytest.mark.parametrize("data", [b"", b"{}", b'{"sender":"a"}', b'{"sender":"a","id":null}', b"[" * 10_000, b"\xff"])
def test_bytes_without_a_sender_or_id_have_no_address(data: bytes) -> None:
    assert CODEC.decode_address(data) is None


def test_values_are_written_as_javascript_writes_them() -> None:
    moment = datetime(2024, 1, 2, 3, 4, 5, 678_900, tzinfo=UTC)
    elsewhere = datetime(2024, 1, 2, 5, 4, 5, 678_900, tzinfo=timezone(timedelta(hours=2)))
    value = {"a": [1, "é", None, True, 1.5], "t": moment, "e": elsewhere, "b": b"\x00\xff", "n": {"deep": [(1, 2)]}}
    assert json.loads(bytes(CODEC.encode_value(value))) == {
        "a": [1, "é", None, True, 1.5],
        "t": "2024-01-02T03:04:05.678Z",
        "e": "2024-01-02T03:04:05.678Z",
        "b": {"type": "Buffer", "data": [0, 255]},
        "n": {"deep": [[1, 2]]},
    }


class Photo(Struct):
    taken: datetime
    data: bytes


@dataclass
class Album:
    cover: Photo
    more: Any = None


def test_c83_bytes_and_dates_are_written_alike_wherever_they_are() -> None:
    """A JS node reads a Buffer and a date, not base64 and another form of a date."""
    moment, buffer = datetime(2024, 1, 2, tzinfo=UTC), {"type": "Buffer", "data": [1, 2]}
    photo = {"taken": "2024-01-02T00:00:00.000Z", "data": buffer}
    for value, expected in (
        (Photo(moment, b"\x01\x02"), photo),
        ([Photo(moment, b"\x01\x02")], [photo]),
        (Album(Photo(moment, b"\x01\x02"), more=[b"\x01\x02"]), {"cover": photo, "more": [buffer]}),
        (OrderedDict(at=moment), {"at": photo["taken"]}),
        (defaultdict(list, data=[b"\x01\x02"]), {"data": [buffer]}),
        ({b"\x01\x02"}, [buffer]),
    ):
        assert json.loads(bytes(CODEC.encode_value(value))) == expected


def test_c83_nan_and_infinity_become_null_as_in_json_stringify() -> None:
    assert bytes(CODEC.encode_value([float("nan"), float("inf")])) == b"[null,null]"


def test_structs_and_encoded_values_are_taken() -> None:
    class Point(Struct):
        x: int
        y: int = 0

    assert json.loads(bytes(CODEC.encode_value([Point(1)]))) == [{"x": 1, "y": 0}]
    assert bytes(CODEC.encode_value(Raw(b'{ "as" : "it is" }'))) == b'{ "as" : "it is" }'
    assert bytes(CODEC.encode_value({"rows": [Raw(b"[ 1 ]")]})) == b'{"rows":[[ 1 ]]}'


def loop() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "packet",
    [
        Response(ver="5", sender="py-1", id="1", meta={"m": object()}, data=Raw(b"1")),
        Response(ver="5", sender="py-1", id="1", error={"name": "E", "data": {1, object()}}, data=Raw(b"null")),
        Request(ver="5", sender="py-1", id="1", action="a.b", params=Raw(b"{}"), headers={"h": loop()}),
        Info(ver="5", sender="py-1", metadata={"odd": object()}),
        Event(ver="5", sender="py-1", event="e", data=Raw(b"1"), meta={"odd": "\ud800", "bad": object()}),
    ],
)
def test_a_packet_that_has_no_json_form_is_a_typed_error_too(packet: Any) -> None:
    with pytest.raises(MoleculerError) as caught:
        CODEC.encode(packet)
    assert caught.value.type == "UNSERIALIZABLE"


def test_a_value_decoder_reads_into_the_type_also_with_lone_surrogates() -> None:
    class Wanted(Struct):
        a: int
        text: str = ""
        rest: Raw = Raw(b"null")
        data: bytes = b""

    class Inside(Struct):
        rows: list[Wanted]

    decode = CODEC.value_decoder(Wanted)
    odd = b'{"a":1,"text":"\\ud800","data":{"type":"Buffer","data":[1,2]}}'
    assert decode(Raw(odd)) == Wanted(1, "\ud800", data=b"\x01\x02")
    with pytest.raises(
        msgspec.ValidationError
    ):  # Raw inside a list is found by msgspec alone, which takes no such text
        CODEC.value_decoder(Inside)(Raw(b'{"rows":[%s]}' % odd))
    assert decode(Raw(b'{"a":1,"rest":{ "b":2}}')).rest == Raw(b'{ "b":2}')
    assert decode(Raw(b'{"a":1,"text":"\\ud800"}')).text == "\ud800"
    with pytest.raises(msgspec.ValidationError):
        decode(Raw(b'{"a":"x"}'))


def test_a_decimal_goes_out_as_msgspec_writes_it() -> None:
    assert bytes(CODEC.encode_value(Decimal("1.50"))) == b'"1.50"'


def test_a_packet_deeper_than_a_parser_goes_is_invalid_and_its_address_is_read() -> None:
    deep = b"[" * 200_000 + b"]" * 200_000
    data = b'{"action":"a","params":{"document":%s},"id":"1","sender":"n","ver":"5"}' % deep
    codec = JSONCodec()
    with pytest.raises(InvalidPacketDataError) as caught:
        codec.decode("REQ", data)
    assert "deep" in caught.value.data["reason"]
    assert codec.decode_address(data) == Address("n", "1", "5")
