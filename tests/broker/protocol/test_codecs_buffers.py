"""Large Buffers in JSON packets, cut out instead of skipped."""

import json
import random

import pytest
from msgspec import Raw

from broker.protocol.codecs.json import HEAD, LARGE_BYTES, JSONCodec, cut_buffer
from broker.protocol.packets import Request, Response

DATA = random.Random(1).randbytes(LARGE_BYTES)
BUFFER = json.dumps({"type": "Buffer", "data": list(DATA)}, separators=(",", ":")).encode()


def packet(value: bytes, **fields: object) -> bytes:
    rest = json.dumps({"id": "1", "action": "a.b", "sender": "js", "ver": "5", "stream": True, "seq": 3, **fields})
    return rest[:-1].encode() + b',"params":' + value + b',"meta":{"after":1}}'


def test_a_large_buffer_is_cut_out_and_its_bytes_are_read() -> None:
    decoded = JSONCodec().decode("REQ", packet(BUFFER))
    assert isinstance(decoded, Request)
    assert (decoded.sequence, decoded.meta) == (3, {"after": 1})
    assert bytes(decoded.params) == BUFFER
    assert JSONCodec().decode_chunk(decoded.params, objects=False) == DATA


def test_a_large_buffer_in_an_answer_is_read_alike() -> None:
    text = b'{"id":"1","sender":"js","ver":"5","success":true,"stream":true,"seq":1,"data":' + BUFFER + b"}"
    decoded = JSONCodec().decode("RES", text)
    assert isinstance(decoded, Response)
    assert JSONCodec().decode_chunk(decoded.data, objects=False) == DATA


@pytest.mark.parametrize(
    "value",
    [
        b'{"one":' + BUFFER + b"}",
        b"[" + BUFFER + b"," + BUFFER + b"]",
        b'"' + BUFFER.replace(b'"', b'\\"') + b'"',
        b'"' + b"x" * LARGE_BYTES + b'"',
        b'{"type":"Buffer","data":[1],"more":"' + b"x" * LARGE_BYTES + b'"}',
    ],
)
def test_a_buffer_in_another_place_is_left_where_it_is(value: bytes) -> None:
    decoded = JSONCodec().decode("REQ", packet(value))
    assert isinstance(decoded, Request)
    assert bytes(decoded.params) == value


def test_a_buffer_in_meta_is_not_taken_for_the_params() -> None:
    text = packet(b"null", meta={"params": json.loads(BUFFER)}).replace(b',"meta":{"after":1}', b"")
    decoded = JSONCodec().decode("REQ", text)
    assert isinstance(decoded, Request)
    assert bytes(decoded.params) == b"null"
    assert decoded.meta == {"params": json.loads(BUFFER)}


@pytest.mark.parametrize("data", [b"", b"1,2", b"1,256", b"1,-1", b"1,x", b'"a"', b"1,,2"])
def test_what_holds_no_bytes_is_refused(data: bytes) -> None:
    raw = Raw(HEAD + data + b"]}")
    if data in (b"", b"1,2"):
        assert JSONCodec().decode_chunk(raw, objects=False) == bytes(json.loads(b"[" + data + b"]"))
    else:
        with pytest.raises(ValueError, match=r"."):
            JSONCodec().decode_chunk(raw, objects=False)


def test_a_broken_packet_with_a_buffer_is_still_a_broken_packet() -> None:
    assert cut_buffer(packet(BUFFER)[:-20]) is not None
    with pytest.raises(Exception, match="Invalid packet"):
        JSONCodec().decode("REQ", packet(BUFFER)[:-20])
