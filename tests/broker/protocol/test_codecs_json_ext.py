"""JSONExt: the vectors of real nodes, and documents that only look marked (protocol §11)."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec import Raw, Struct

from broker.errors import InvalidPacketDataError
from broker.protocol.codecs.json_ext import JSONExtCodec
from broker.protocol.packets import Event, Info, Request
from broker.protocol.values import RegExp

CODEC = JSONExtCodec()

VECTOR = (
    b'{"d":"[[DT]]1700000000000","big":"[[BI]]12345678901234567890","buf":"[[BF]]aGVsbG8=",'
    b'"map":"[[MP]]{\\"a\\":1,\\"b\\":\\"[[DT]]0\\"}","set":"[[ST]][1,\\"x\\"]","re":"[[RE]]gi|a|b",'
    b'"esc":"[[ES]][[hi","esc2":"[[ES]][[DT]]5","arr":["[[DT]]1"],"nul":null,"nan":null}'
)
VALUES: dict[str, Any] = {
    "d": datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC),
    "big": 12345678901234567890,
    "buf": b"hello",
    "map": {"a": 1, "b": datetime(1970, 1, 1, tzinfo=UTC)},
    "set": {1, "x"},
    "re": RegExp("a|b", "gi"),
    "esc": "[[hi",
    "esc2": "[[DT]]5",
    "arr": [datetime(1970, 1, 1, 0, 0, 0, 1000, tzinfo=UTC)],
    "nul": None,
    "nan": None,
}


def test_c84_the_vector_decodes() -> None:
    assert CODEC.decode_value(Raw(VECTOR)) == VALUES


def test_c84_the_vector_encodes() -> None:
    values = VALUES | {"nan": float("nan"), "set": {1}}
    wanted = json.loads(VECTOR) | {"set": "[[ST]][1]", "map": {"a": 1, "b": "[[DT]]0"}}  # a dict is a plain object
    assert json.loads(bytes(CODEC.encode_value(values))) == wanted


def test_c84_integers_are_big_only_where_a_number_is_not_exact() -> None:
    safe, beyond = 2**53 - 1, 2**53
    sent = bytes(CODEC.encode_value([safe, -safe, beyond, -beyond, 1e300]))
    assert sent == b'[9007199254740991,-9007199254740991,"[[BI]]9007199254740992","[[BI]]-9007199254740992",1e300]'


def test_c84_sets_nest_and_those_of_objects_are_lists() -> None:
    text = b'["[[ST]][{\\"a\\":1},\\"[[ST]][\\\\\\"[[DT]]0\\\\\\"]\\"]","[[ST]][]"]'
    assert CODEC.decode_value(Raw(text)) == [[{"a": 1}, {datetime(1970, 1, 1, tzinfo=UTC)}], set()]
    nested = CODEC.decode_value(CODEC.encode_value({frozenset({"[[x"})}))
    assert nested == [{"[[x"}]


def test_c84_unknown_marks_stay_text_and_odd_ones_are_read_as_javascript_reads_them() -> None:
    read = CODEC.decode_value(Raw(b'["[[XX]]1","[[DT]]NaN","[[DT]]","[[BF]]_-8","[[RE]]g|[[|]","[[DT]]1e300"]'))
    assert read == ["[[XX]]1", None, datetime(1970, 1, 1, tzinfo=UTC), b"\xff\xef", RegExp("[[|]", "g"), 1e300]


@pytest.mark.parametrize("text", [b'"[[BI]]abc"', b'["[[MP]]{"]', b'"[[ST]]5"', b'"[[DT]]yesterday"'])
def test_a_mark_that_holds_something_else_is_invalid_data(text: bytes) -> None:
    with pytest.raises(InvalidPacketDataError):
        CODEC.decode_value(Raw(text))
    with pytest.raises(InvalidPacketDataError):
        CODEC.decode("EVENT", b'{"ver":"5","sender":"js-1","event":"e","meta":{"a":' + text + b"}}")


def test_c84_marks_are_read_in_every_part_of_a_packet() -> None:
    data = (
        b'{"ver":"5","sender":"js-1","id":"[[ES]][[1","event":"[[ES]][[e","data":"[[DT]]0","groups":["[[ES]][[g"],'
        b'"meta":{"when":"[[DT]]0"},"headers":{"h":"[[ES]][[DT]]"},"requestID":"[[ES]][[r"}'
    )
    event = CODEC.decode("EVENT", data)
    assert isinstance(event, Event)
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert (event.id, event.event, event.groups, event.request_id) == ("[[1", "[[e", ["[[g"], "[[r")
    assert (event.meta, event.headers, CODEC.decode_value(event.data)) == ({"when": epoch}, {"h": "[[DT]]"}, epoch)
    again = json.loads(CODEC.encode(event))
    assert {name: again[name] for name in json.loads(data)} == json.loads(data)
    address = CODEC.decode_address(b'{"sender":"[[ES]][[node","id":"[[ES]][[1","ver":"5"}')
    assert address is not None
    assert (address.sender, address.id) == ("[[node", "[[1")


def test_what_a_node_announces_of_itself_is_escaped_too() -> None:
    info = Info(ver="5", sender="py-1", services=[{"name": "s", "settings": {"text": "[[DT]]5"}}], metadata={"a": "[["})
    sent = json.loads(CODEC.encode(info))
    assert sent["services"][0]["settings"] == {"text": "[[ES]][[DT]]5"}
    assert sent["metadata"] == {"a": "[[ES]][["}


DOCUMENT = b'{ "uuid" : "u-1" ,"a":"[[DT]]5","b": "[[hi" ,"n":1.50,"k":{"[[key":["[[ES]]","\\"[["]},"e":""}'


def test_c84_a_document_keeps_its_bytes_both_ways() -> None:
    class Wanted(Struct):
        environment: Raw
        when: datetime | None = None
        data: bytes = b""
        anything: Any = None

    params = b'{"environment":%s,"when":"[[DT]]0","data":"[[BF]]aGVsbG8=","anything":{"s":"[[ST]][1]"}}'
    marked = DOCUMENT.replace(b'"a":"[[', b'"a":"[[ES]][[').replace(b'"b": "[[', b'"b": "[[ES]][[')
    marked = marked.replace(b'["[[ES]]"', b'["[[ES]][[ES]]"')
    packet = CODEC.decode("REQ", b'{"ver":"5","sender":"js","id":"1","action":"a.b","params":' + params % marked + b"}")
    assert isinstance(packet, Request)
    read = CODEC.value_decoder(Wanted)(packet.params)
    assert bytes(read.environment) == DOCUMENT
    assert (read.when, read.data, read.anything) == (datetime(1970, 1, 1, tzinfo=UTC), b"hello", {"s": {1}})
    assert bytes(CODEC.encode_value(Raw(DOCUMENT))) == marked
    assert bytes(CODEC.encode_value({"rows": [Raw(DOCUMENT)]})) == b'{"rows":[' + marked + b"]}"


def test_c84_in_a_document_rich_values_are_what_json_stringify_would_have_printed() -> None:
    class Wanted(Struct):
        document: Raw

    read = CODEC.value_decoder(Wanted)(Raw(b'{"document":%s}' % VECTOR))
    wanted = {
        **{"d": "2023-11-14T22:13:20.000Z", "big": 12345678901234567890, "nul": None, "nan": None},
        **{
            "buf": {"type": "Buffer", "data": [104, 101, 108, 108, 111]},
            "map": {"a": 1, "b": "1970-01-01T00:00:00.000Z"},
        },
        **{
            "re": {"source": "a|b", "flags": "gi"},
            "esc": "[[hi",
            "esc2": "[[DT]]5",
            "arr": ["1970-01-01T00:00:00.001Z"],
        },
    }
    document = json.loads(bytes(read.document))
    assert sorted(map(str, document.pop("set"))) == ["1", "x"]
    assert document == wanted


def test_text_without_marks_is_exactly_json() -> None:
    value = {"a": [1, "b", None, {"c": "]]["}], "\u2028": "é"}
    assert bytes(CODEC.encode_value(value)) == json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
