"""MessagePack: the vectors of msgpack5 and notepack.io (protocol §11)."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from broker.errors import MoleculerError
from broker.protocol.codecs.msgpack import MsgPackCodec
from broker.protocol.packets import Heartbeat

CODEC = MsgPackCodec()

MOMENT = datetime(2023, 11, 14, 22, 13, 20, 123_000, tzinfo=UTC)


def raw(text: str) -> Raw:
    return Raw(bytes.fromhex(text))


@pytest.mark.parametrize(
    ("vector", "value"),
    [
        ("81a176d7ff1d5353006553f100", {"v": MOMENT}),
        ("81a176c403010203", {"v": b"\x01\x02\x03"}),
        ("81a176c0", {"v": None}),
        ("81a176cb3ff8000000000000", {"v": 1.5}),
        ("81a176cf0000010000000000", {"v": 2**40}),
        ("81a17681a16101", {"v": {"a": 1}}),
    ],
)
def test_c84_vectors_decode_and_encode(vector: str, value: Any) -> None:
    assert CODEC.decode_value(raw(vector)) == value
    assert bytes(CODEC.encode_value(value)).hex() == vector


@pytest.mark.parametrize(
    ("vector", "value"),
    [
        ("80", {}),  # undefined, Set and RegExp of msgpack5, Map of notepack.io
        ("81a176ca3fc00000", {"v": 1.5}),  # a fraction that 32 bits hold exactly
        ("81a17680", {"v": {}}),
        ("81a17692c001", {"v": [None, 1]}),  # [undefined, 1] of notepack.io
        ("81a176d40000", {"v": None}),  # undefined of msgpack5 where it cannot be dropped
        ("81a176d6ff00000001", {"v": datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)}),
        ("81a176c70cff00000000ffffffffffffffff", {"v": datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)}),
        ("81a176d50701ff", {"v": b"\x01\xff"}),  # an extension that is not known here
        ("8101a161", {1: "a"}),
    ],
)
def test_c84_other_forms_of_peers_decode(vector: str, value: Any) -> None:
    assert CODEC.decode_value(raw(vector)) == value


def test_c84_the_captured_heartbeat_decodes_and_one_of_ours_has_the_same_content() -> None:
    captured = bytes.fromhex("83a36370750da3766572a135a673656e646572a66e6f64652d31")
    beat = CODEC.decode("HEARTBEAT", captured)
    assert isinstance(beat, Heartbeat)
    assert (beat.cpu, beat.ver, beat.sender) == (13, "5", "node-1")
    ours = CODEC.encode(Heartbeat(ver="5", sender="node-1", cpu=13))
    assert msgspec.msgpack.decode(ours) == msgspec.msgpack.decode(captured)


def test_what_only_javascript_distinguishes_goes_out_as_the_nearest_form() -> None:
    assert CODEC.decode_value(CODEC.encode_value([{1}, frozenset(), (1, 2), bytearray(b"x")])) == [
        [1],
        [],
        [1, 2],
        b"x",
    ]


def test_numbers_of_a_json_document_are_those_a_js_node_would_send() -> None:
    text = Raw(b"[1.0,1e9,-0.0,1e300,123456789012345678901234567890,0.1]")
    read = CODEC.decode_value(CODEC.encode_value(text))
    assert read == [1, 10**9, 0, 1e300, 1.2345678901234568e29, 0.1]
    assert [type(number) for number in read] == [int, int, float, float, float, float]


def test_an_integer_beyond_64_bits_has_no_form_as_in_javascript() -> None:
    with pytest.raises(MoleculerError, match="cannot be sent as MsgPack"):
        CODEC.encode_value(2**64)
