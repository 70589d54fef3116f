"""CBOR: the vectors of cbor-x, and what a hostile packet could make a decoder do (protocol §11)."""

from datetime import UTC, datetime
from typing import Any

import cbor2
import pytest
from msgspec import UNSET, Raw, Struct

from broker.errors import InvalidPacketDataError
from broker.protocol.codecs.cbor import CBORCodec
from broker.protocol.packets import Heartbeat, Ping, Request, Response
from broker.protocol.values import RegExp

CODEC = CBORCodec()

MOMENT = datetime(2023, 11, 14, 22, 13, 20, 123_000, tzinfo=UTC)


def raw(text: str) -> Raw:
    return Raw(bytes.fromhex(text))


@pytest.mark.parametrize(
    ("vector", "value"),
    [
        ("b900016176c1fb41d954fc4007df3b", {"v": MOMENT}),
        ("b90001617643010203", {"v": b"\x01\x02\x03"}),
        ("b900016176f6", {"v": None}),
        ("b900016176fb3ff8000000000000", {"v": 1.5}),
        ("b900016176fb4270000000000000", {"v": 2**40}),
        ("b900016176a1616101", {"v": {"a": 1}}),
        ("b900016176d901028101", {"v": {1}}),
        ("b900016176d81b836652656745787061616167", {"v": RegExp("a", "g")}),
    ],
)
def test_c84_vectors_decode_and_encode(vector: str, value: Any) -> None:
    read = CODEC.decode_value(raw(vector))
    assert read == value
    assert type(read["v"]) is type(value["v"])
    assert bytes(CODEC.encode_value(value)).hex() == "a1" + vector.removeprefix("b90001"), "a map of any length form"


@pytest.mark.parametrize(
    ("vector", "value"),
    [
        ("b900016176f7", {"v": None}),  # undefined
        ("b90001617682f701", {"v": [None, 1]}),
        ("b9000161761b000000000000007b", {"v": 123}),  # BigInt
        ("c11a6553f100", datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)),
        ("c120", datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)),
        ("c1fb7ff8000000000000", None),  # an invalid date
        ("c1fb7e37e43c8800759c", 1e300),
        ("bf61619f01ffff", {"a": [1]}),  # lengths left open
        ("d9010282a1616101a1616101", [{"a": 1}, {"a": 1}]),  # a Set of objects
        ("d81b83656572726f7261616162", ["error", "a", "b"]),
        ("d84043010203", b"\x01\x02\x03"),  # Uint8Array
        ("c249010000000000000000", 2**64),
        ("d823613a", ":"),
        ("6561eda08062", "a\ufffd\ufffd\ufffdb"),  # half of a surrogate pair, as cbor-x writes it and reads it back
    ],
)
def test_c84_other_forms_of_peers_decode(vector: str, value: Any) -> None:
    assert CODEC.decode_value(raw(vector)) == value


def test_c84_the_captured_heartbeat_decodes_and_one_of_ours_has_the_same_content() -> None:
    captured = bytes.fromhex("b90003636370750d6376657261356673656e646572666e6f64652d31")
    beat = CODEC.decode("HEARTBEAT", captured)
    assert isinstance(beat, Heartbeat)
    assert (beat.cpu, beat.ver, beat.sender) == (13, "5", "node-1")
    ours = CODEC.encode(Heartbeat(ver="5", sender="node-1", cpu=13))
    assert cbor2.loads(ours) == cbor2.loads(captured)
    assert len(ours) == len(captured)


def test_c84_the_time_of_a_ping_is_not_a_big_integer_for_a_js_node() -> None:
    sent = CODEC.encode(Ping(ver="5", sender="py-1", time=1_795_351_433_769, id="7"))
    assert type(cbor2.loads(sent)["time"]) is float
    assert bytes(CODEC.encode_value([2**32 - 1, -(2**32), 2**32, 2**53])).hex() == (
        "841affffffff3afffffffffb41f00000000000001b0020000000000000"
    )


def test_numbers_of_a_json_document_are_those_a_js_node_would_send() -> None:
    read = cbor2.loads(bytes(CODEC.encode_value(Raw(b"[1,4294967296,9007199254740993,1e300]"))))
    assert [type(number) for number in read] == [int, float, float, float]


def test_a_big_integer_of_any_size_comes_back() -> None:
    assert CODEC.decode_value(CODEC.encode_value([2**60, -(2**70)])) == [2**60, -(2**70)]


@pytest.mark.parametrize(
    "hostile",
    [
        "d81c81d81d00",  # an array that holds itself
        "82d81c8101d81d00",  # a part used twice
        "d9010082656161616161d81900",  # a table of strings
        "d8236128",  # a Python regular expression that does not compile
        "d8246461626364",  # a mail
        "c4821b7fffffffffffffff01",  # 10 to the power of 2**63
        "c5821b7fffffffffffffff01",
        "d81e820100",  # a fraction by zero
    ],
)
def test_tags_that_could_make_cycles_or_run_parsers_are_read_as_what_they_hold(hostile: str) -> None:
    value = CODEC.decode_value(raw(hostile))
    assert CODEC.decode_value(CODEC.encode_value(value)) == value


def test_c84_undefined_is_none_and_for_typed_parameters_absent() -> None:
    class Part(Struct):
        b: int = 6

    class Wanted(Struct):
        a: int = 5
        part: Part | None = None
        items: list[Any] = []

    params = "a36161f76470617274a16162f7656974656d7382f701"
    head = "6376657261356673656e646572626a73626964613166616374696f6e63612e6266706172616d73"
    packet = CODEC.decode("REQ", bytes.fromhex("a5" + head + params))
    assert isinstance(packet, Request)
    assert CODEC.decode_value(packet.params) == {"a": None, "part": {"b": None}, "items": [None, 1]}
    assert CODEC.value_decoder(Wanted)(packet.params) == Wanted(5, Part(6), [None, 1])
    answer = CODEC.decode("RES", bytes.fromhex("a46376657261356673656e646572626a73626964613163736571f7"))
    assert isinstance(answer, Response)
    assert answer.sequence is UNSET


@pytest.mark.parametrize("data", ["", "01", "80", "a1", "ff", "9bffffffffffffffff", "b9ffff", "7a7fffffff61"])
def test_what_is_not_a_map_is_not_a_packet(data: str) -> None:
    with pytest.raises(InvalidPacketDataError):
        CODEC.decode("REQ", bytes.fromhex(data))


def test_params_of_a_packet_count_with_the_size_of_the_packet() -> None:
    packet = CODEC.decode("REQ", CODEC.encode(Request(ver="5", sender="a", id="1", action="b", params=raw("f6"))))
    assert isinstance(packet, Request)
    assert len(packet.params) > 10
