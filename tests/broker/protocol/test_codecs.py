"""What every serializer keeps to: packets of real nodes, values, typed parameters, chunks, bad bytes (protocol §11)."""

import contextlib
import enum
import json
import random
import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw, Struct, UnsetType

from broker.errors import BrokerOptionsError, InvalidPacketDataError, MoleculerError
from broker.protocol.codecs import make_codec
from broker.protocol.codecs.json import Codec, JSONCodec, json_text
from broker.protocol.packets import COMMANDS, NULL, Command, Event, Heartbeat, Packet, Ping, Request, Response
from broker.protocol.transforms import Compression, Encryption
from tests.support.transits import captured

NAMES = ("JSON", "JSONExt", "MsgPack", "Notepack", "CBOR")
TRANSFORMED = make_codec("JSONExt", [Encryption("a password"), Compression(threshold=None)])
CODECS = [*(make_codec(name) for name in NAMES), TRANSFORMED]
JSON = JSONCodec()
MOMENT = datetime(2024, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)

every_codec = pytest.mark.parametrize("codec", CODECS, ids=[*NAMES, "transformed"])
"""Also one behind transit middlewares, which must not be noticed."""

other_codecs = pytest.mark.parametrize("codec", CODECS[1:], ids=[*NAMES[1:], "transformed"])


def values_of(packet: Packet, codec: Codec) -> dict[str, Any]:
    """A packet as plain values, whatever it came in."""
    fields = {field.encode_name: getattr(packet, field.name) for field in msgspec.structs.fields(packet)}
    raw = ("params", "data")
    return {name: codec.decode_value(value) if name in raw else value for name, value in fields.items()}


def through(codec: Codec, value: object) -> Any:
    """A user's value sent as the params of a packet, and read."""
    packet = Request(ver="5", sender="py-1", id="1", action="a.b", params=codec.encode_value(value))
    received = codec.decode("REQ", codec.encode(packet))
    assert isinstance(received, Request)
    return codec.decode_value(received.params)


def typed(codec: Codec, value: object, kind: type[Struct]) -> Any:
    """A user's value sent as params and read into a type."""
    packet = Request(ver="5", sender="py-1", id="1", action="a.b", params=codec.encode_value(value))
    received = codec.decode("REQ", codec.encode(packet))
    assert isinstance(received, Request)
    return codec.value_decoder(kind)(received.params)


@pytest.mark.parametrize("name", NAMES)
def test_the_serializer_is_chosen_by_its_name_in_any_case(name: str) -> None:
    assert make_codec(name).name == make_codec(name.lower()).name == name


def test_an_unknown_serializer_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BrokerOptionsError, match=r"'Avro' is not known.*JSON, JSONExt, MsgPack, Notepack, CBOR"):
        make_codec("Avro")


@other_codecs
@pytest.mark.parametrize("protocol", ["4", "5"])
def test_c84_every_captured_packet_goes_through_every_serializer_unchanged(codec: Codec, protocol: str) -> None:
    for number, command, payload, note in captured(protocol):
        packet = JSON.decode(command, json.dumps(payload).encode())
        wanted = values_of(packet, JSON)
        for field in msgspec.structs.fields(packet):
            value = getattr(packet, field.name)
            if isinstance(value, Raw):
                setattr(packet, field.name, codec.encode_value(value) if value else NULL)
        assert values_of(codec.decode(command, codec.encode(packet)), codec) == wanted, (number, note)


@pytest.mark.parametrize(
    ("command", "name", "value", "expected"),
    [
        ("REQ", "id", 17_000_000_000_001, 17_000_000_000_001),
        ("REQ", "id", 7, 7),
        ("REQ", "requestID", 0, 0),
        ("REQ", "parentID", {"x": [1]}, {"x": [1]}),
        ("REQ", "caller", {"a": 1}, {"a": 1}),
        ("REQ", "meta", [1, None], {"0": 1, "1": None}),
        ("REQ", "meta", [], {}),
        ("REQ", "meta", "text", {}),
        ("REQ", "meta", False, {}),
        ("REQ", "headers", [1], {"0": 1}),
        ("REQ", "timeout", "5000", 5000),
        ("REQ", "timeout", "soon", 0),
        ("REQ", "timeout", [], 0),
        ("REQ", "level", "2", 2),
        ("RES", "id", 7, 7),
        ("RES", "meta", [1], {"0": 1}),
        ("EVENT", "requestID", 42, 42),
        ("EVENT", "id", {"x": 1}, {"x": 1}),
        ("EVENT", "groups", "", None),
        ("EVENT", "groups", [1, "mail"], [1, "mail"]),
        ("EVENT", "broadcast", 1, True),
        ("HEARTBEAT", "cpu", "12", 12),
        ("INFO", "metadata", [], {}),
        ("INFO", "client", [], {}),
    ],
)
@pytest.mark.parametrize("codec", CODECS[:-1], ids=NAMES)
def test_c13_what_js_nodes_let_pass_is_read_as_they_read_it(
    codec: Codec, command: Command, name: str, value: Any, expected: Any
) -> None:
    packet = {"ver": "5", "sender": "js-1", "id": "1", "event": "e", "params": {"a": "[["}, "data": [1.5], "more": [{}]}
    read = values_of(codec.decode(command, bytes(codec.encode_value(packet | {name: value}))), codec)
    assert read[name] == expected
    assert [read[own] for own in ("params", "data") if own in read] in ([], [{"a": "[["}], [[1.5]])


@every_codec
def test_missing_fields_stay_missing_and_null_stays_null(codec: Codec) -> None:
    sent = codec.encode(Response(ver="5", sender="py-1", id="1", headers=None, success=True, data=NULL))
    packet = codec.decode("RES", sent)
    assert isinstance(packet, Response)
    assert (packet.headers, packet.error, packet.stream, packet.sequence) == (None, UNSET, UNSET, UNSET)
    assert packet.data, "null is not missing"
    assert codec.decode_value(packet.data) is None
    beat = codec.decode("HEARTBEAT", codec.encode(Heartbeat(ver="5", sender="py-1", cpu=None)))
    assert isinstance(beat, Heartbeat)
    assert beat.cpu is None


@every_codec
def test_absent_params_are_none_and_an_empty_object_where_a_type_is_wanted(codec: Codec) -> None:
    class Wanted(Struct):
        a: int = 5

    assert codec.decode_value(Raw()) is None
    for params in (Raw(), codec.encode_value(None), codec.encode_value({})):
        assert codec.value_decoder(Wanted)(params).a == 5


@every_codec
def test_what_users_put_into_meta_headers_and_errors_comes_through_as_a_value_does(codec: Codec) -> None:
    user = {"when": MOMENT, "bytes": b"\x00\xff", "text": "[[DT]]5", "deep": [{"a": (1, MOMENT)}], "odd": "\ud800x"}
    error = {"name": "E", "data": user}
    packet = Response(ver="5", sender="py-1", id="1", meta=user, headers=user, error=error, data=NULL)
    read = codec.decode("RES", codec.encode(packet))
    assert isinstance(read, Response)
    wanted = through(codec, user)
    assert read.meta == read.headers == read.error["data"] == wanted
    assert wanted["text"] == "[[DT]]5"


@every_codec
def test_the_time_of_a_ping_is_a_number_for_every_reader(codec: Codec) -> None:
    ping = codec.decode("PING", codec.encode(Ping(ver="5", sender="py-1", time=1_795_351_433_769, id="7")))
    assert isinstance(ping, Ping)
    assert (ping.time, type(ping.time)) == (1_795_351_433_769, int)


# Values

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    # Half a surrogate pair has no form in UTF-8; its own test is below.
    | st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(["[[DT]]5", "[[", "[[ES]]", "\\[[", '"[[x']),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3),
    max_leaves=15,
)  # fmt: skip


@given(value=PLAIN)
def test_c83_c84_plain_values_come_back_as_they_were(value: Any) -> None:
    for codec in CODECS:
        assert through(codec, value) == value, codec.name


RICH = st.recursive(
    PLAIN
    | st.binary()
    | st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)).map(
        lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000)
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab[", max_size=3), inner, max_size=3),
    max_leaves=15,
)


@given(value=RICH)
def test_c84_dates_and_bytes_come_back_as_they_were(value: Any) -> None:
    for codec in CODECS[1:]:
        assert through(codec, value) == value, codec.name


def javascript_number(text: str) -> int | float:
    """CBOR has numbers and big integers, and JSON numbers alone."""
    return int(text) if abs(int(text)) <= 2**53 else float(text)


@given(value=PLAIN)
def test_json_text_given_by_a_user_means_its_value(value: Any) -> None:
    text = Raw(json.dumps(value).encode())
    for codec in CODECS:
        wanted = json.loads(bytes(text), parse_int=javascript_number if codec.name == "CBOR" else int)
        assert through(codec, {"rows": [text, {"deep": text}]}) == {"rows": [wanted, {"deep": wanted}]}, codec.name
        assert through(codec, text) == wanted, codec.name


class Named(Struct):
    document: Raw
    name: str = ""


@given(value=PLAIN)
def test_a_raw_parameter_gets_the_json_text_of_its_value(value: Any) -> None:
    for codec in CODECS:
        read = typed(codec, {"document": value, "name": "[[DT]]5"}, Named)
        assert JSON.decode_value(read.document) == value, codec.name
        assert read.name == "[[DT]]5", codec.name


@every_codec
def test_raw_parameters_inside_lists_and_structs_get_json_text_too(codec: Codec) -> None:
    class Part(Struct):
        text: Raw
        following: "Part | None" = None

    class Wanted(Struct):
        parts: list[Part]
        when: datetime
        first: Raw = Raw()

    Part.__annotations__["following"] = Part | None
    value = {"parts": [{"text": {"a": [1, "[[ES]]"]}}], "when": MOMENT, "first": [None], "unknown": b"x"}
    read = typed(codec, value, Wanted)
    assert [JSON.decode_value(part.text) for part in read.parts] == [{"a": [1, "[[ES]]"]}]
    assert (read.when, JSON.decode_value(read.first)) == (MOMENT, [None])


@every_codec
def test_typed_parameters_take_what_other_languages_have_no_type_for(codec: Codec) -> None:
    class Colour(enum.Enum):
        RED = "red"

    class Wanted(Struct):
        when: datetime
        day: date
        price: Decimal
        id: uuid.UUID
        colour: Colour
        numbers: set[int]
        stamp: int
        ratio: float
        anything: Any

    given_id = uuid.uuid4()
    value = {
        **{"when": MOMENT, "day": date(2024, 1, 2), "price": Decimal("1.50"), "id": given_id, "colour": Colour.RED},
        **{"numbers": {1, 2}, "stamp": 1_795_351_433_769, "ratio": 2, "anything": {"a": [1]}},
    }
    wanted = Wanted(MOMENT, date(2024, 1, 2), Decimal("1.50"), given_id, Colour.RED, {1, 2}, 1_795_351_433_769, 2.0, {"a": [1]})  # fmt: skip # noqa: E501 - one value
    assert typed(codec, value, Wanted) == wanted


@every_codec
def test_params_that_do_not_fit_a_type_are_a_validation_error_with_the_place(codec: Codec) -> None:
    class Wanted(Struct):
        a: int
        document: Raw = Raw()

    for value, place in [({"a": "[[ES]]x"}, r"\$\.a"), ({"document": "[[x"}, "a"), ([1], "object"), ("[[x", "object")]:
        with pytest.raises(msgspec.ValidationError, match=place):
            typed(codec, value, Wanted)


class Point(Struct, omit_defaults=True, tag="point"):
    x: int
    y: int = 0
    note: str | UnsetType = UNSET
    tags: list[str] = []
    text: Raw | None = None


class Pair(Struct, array_like=True):
    first: Any
    second: Any


@dataclass
class Box:
    content: Any


@every_codec
def test_structs_and_other_objects_are_what_msgspec_makes_of_them(codec: Codec) -> None:
    value = [
        *(Point(1), Point(2, 3, "n", ["t"], Raw(b'{"a":[[1],"[[b"]}')), Pair(1, Pair("[[x", 2)), Box({"a": 1})),
        *(Decimal("1.50"), date(2024, 1, 2), timedelta(seconds=90), {1: "a", 2.5: "b"}, (1, (2,))),
    ]
    assert through(codec, value) == [
        {"type": "point", "x": 1},
        {"type": "point", "x": 2, "y": 3, "note": "n", "tags": ["t"], "text": {"a": [[1], "[[b"]}},
        *([1, ["[[x", 2]], {"content": {"a": 1}}),
        *("1.50", "2024-01-02", "PT90S", {"1": "a", "2.5": "b"}, [1, [2]]),
    ]


@every_codec
def test_a_date_without_a_zone_means_utc(codec: Codec) -> None:
    naive = MOMENT.replace(tzinfo=None)
    assert through(codec, [naive, {"in": Point(1), "at": naive}]) == through(codec, [MOMENT, {"in": Point(1), "at": MOMENT}])  # fmt: skip # noqa: E501 - one comparison


def loop() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@every_codec
@pytest.mark.parametrize("value", [object(), {"a": {1, object()}}, [lambda: 1], loop(), {(1, 2): 3}, {"m": [object]}])
def test_what_has_no_form_is_a_typed_error(codec: Codec, value: object) -> None:
    with pytest.raises(MoleculerError) as caught:
        codec.encode_value(value)
    assert (caught.value.code, caught.value.type) == (500, "UNSERIALIZABLE")
    assert caught.value.data == {"type": type(value).__name__}
    for packet in (
        Response(ver="5", sender="py-1", id="1", meta={"m": value}, data=NULL),
        Event(ver="5", sender="py-1", event="e", data=NULL, meta={"odd": "\ud800", "bad": value}),
    ):
        with pytest.raises(MoleculerError) as caught:
            codec.encode(packet)
        assert caught.value.type == "UNSERIALIZABLE"


@pytest.mark.parametrize("result", [{"a": [1, None]}, None, {"at": MOMENT, "b": b"\x00"}, Raw(b"[1]"), "\ud83d", {1}])
@pytest.mark.parametrize("meta", [{}, {"at": MOMENT}, {"half": "\ud83d"}])
@every_codec
def test_an_answer_encoded_in_one_go_is_as_one_encoded_in_two_steps(
    codec: Codec, result: object, meta: dict[str, Any]
) -> None:
    def answer() -> Response:
        return Response(ver="5", sender="py-1", id="1", success=True, meta=dict(meta), headers={})

    steps = answer()
    steps.data = codec.encode_value(result)
    one, two = (codec.decode("RES", data) for data in (codec.encode_with(answer(), result), codec.encode(steps)))
    assert values_of(one, codec) == values_of(two, codec)
    if codec is CODECS[0]:
        assert codec.encode_with(answer(), result) == codec.encode(steps)


@every_codec
def test_a_result_or_meta_without_a_form_is_a_typed_error(codec: Codec) -> None:
    for result, meta in ((object(), {}), (UNSET, {}), ({"a": 1}, {"b": object()})):
        with pytest.raises(MoleculerError) as caught:
            codec.encode_with(Response(ver="5", sender="py-1", id="1", success=True, meta=meta), result)
        assert caught.value.type == "UNSERIALIZABLE"


@every_codec
def test_halves_of_surrogate_pairs_do_not_end_a_call(codec: Codec) -> None:
    half, replacement = chr(0xD800), chr(0xFFFD)
    kept = half if codec.name.startswith("JSON") else replacement  # UTF-8 has no form for it: as JS nodes do
    assert through(codec, {"a": [f"x{half}", {"k": half}]}) == {"a": [f"x{kept}", {"k": kept}]}
    assert through(codec, Raw(b'["\\ud800"]')) == [kept]


# Streams


@every_codec
@pytest.mark.parametrize("room", [200, 1_000, 70_000])
def test_c65_a_chunk_of_the_limit_always_fits(codec: Codec, room: int) -> None:
    noise = random.Random(7).randbytes(codec.chunk_limit(room))
    for chunk in (noise, b"\xff" * len(noise)):
        assert len(noise) > room // 6
        assert codec.size(codec.encode_value(chunk)) <= room


@every_codec
def test_chunks_are_bytes_or_any_value(codec: Codec) -> None:
    for data in (b"", b"\x00\xff" * 100):
        assert codec.decode_chunk(codec.encode_value(data), objects=False) == data
        assert codec.decode_chunk(codec.encode_value(data), objects=True) == data
    assert codec.decode_chunk(codec.encode_value("text é"), objects=False) == "text é".encode()
    assert codec.decode_chunk(codec.encode_value({"a": "[[b"}), objects=True) == {"a": "[[b"}
    assert codec.decode_chunk(codec.encode_value({"type": "Buffer", "data": [1]}), objects=True) == b"\x01"
    for objects in (False, True):
        assert codec.decode_chunk(codec.encode_value(None), objects=objects) is None
    for value in (5, {"a": 1}, [1]):
        with pytest.raises(ValueError, match="bytes"):
            codec.decode_chunk(codec.encode_value(value), objects=False)


# The size of replies


@pytest.mark.parametrize("codec", CODECS[:-1], ids=NAMES)
def test_the_parts_of_a_list_are_counted_at_least_as_large_as_the_list_is(codec: Codec) -> None:
    chance = random.Random(3)
    documents = [
        json.dumps([chance.choice([0.1, 1, 1e9, -0.5, 2**40, 2**60, 1e300]) for _ in range(2000)]).encode(),
        json.dumps({f"k{number}": "[[" for number in range(500)}).encode(),
        json.dumps([{}] * 3000).encode(),
        json.dumps({"text": "é\u2028" * 1000, "nested": [[[]]] * 100}).encode(),
    ]
    counted = len(b"[]") + sum(codec.size(codec.encode_value(Raw(text))) for text in documents) + len(documents) - 1
    together = codec.size(codec.encode_value(Raw(b"[%s]" % b",".join(documents))))
    assert together <= counted <= together + 200


# Bad bytes


@every_codec
@pytest.mark.parametrize("count", [300, pytest.param(2000, marks=pytest.mark.long)])
def test_c11_whatever_bytes_arrive_nothing_else_is_raised(codec: Codec, count: int) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - a randomised test prints its seed
    chance = random.Random(seed)
    packets = []
    for _, command, payload, _ in captured("5"):
        packet = JSON.decode(command, json.dumps(payload).encode())
        for field in msgspec.structs.fields(packet):
            if isinstance(value := getattr(packet, field.name), Raw):
                setattr(packet, field.name, codec.encode_value(value) if value else NULL)
        packets.append((command, codec.encode(packet)))
    for _ in range(count):
        command, good = chance.choice(packets)
        damaged = bytearray(good)
        for _ in range(chance.randint(1, 5)):
            at = chance.randrange(len(damaged))
            damaged[at : at + chance.randrange(3)] = bytes([chance.randrange(256)]) * chance.randrange(3)
            damaged = damaged or bytearray(b"x")
        assert_read_or_refused(codec, bytes(damaged))


@every_codec
@given(data=st.binary(max_size=60))
def test_c11_random_bytes_are_read_or_refused(codec: Codec, data: bytes) -> None:
    assert_read_or_refused(codec, data)


class Typed(Struct):
    a: int = 0
    document: Raw = Raw()


def assert_read_or_refused(codec: Codec, data: bytes) -> None:
    for command in COMMANDS:
        try:
            packet = codec.decode(command, data)
        except InvalidPacketDataError as error:
            assert error.data["reason"]  # noqa: PT017 - both outcomes are right
            continue
        finally:
            codec.decode_address(data)
        if isinstance(packet, Request):
            for read in (codec.decode_value, codec.value_decoder(Typed), codec.value_decoder(Point)):
                with contextlib.suppress(InvalidPacketDataError, msgspec.ValidationError, MoleculerError):
                    read(packet.params)


@every_codec
@pytest.mark.parametrize("data", [b"", b"\x00", b"\xff" * 20, b"[" * 100_000, b"\x81" * 100_000, b"\x91" * 100_000])
def test_c11_bytes_that_are_not_a_packet_are_named_as_such(codec: Codec, data: bytes) -> None:
    for command in COMMANDS:
        with pytest.raises(InvalidPacketDataError) as caught:
            codec.decode(command, data)
        assert (caught.value.data["command"], caught.value.data["size"]) == (command, len(data))
    assert codec.decode_address(data) is None


@every_codec
def test_an_unusable_request_still_says_whom_to_answer(codec: Codec) -> None:
    request = Request(ver="5", sender="js-1", id="7", action=5, params=NULL)  # type: ignore[arg-type]  # the mistake of a peer
    with pytest.raises(InvalidPacketDataError):
        codec.decode("REQ", codec.encode(request))
    address = codec.decode_address(codec.encode(request))
    assert address is not None
    assert (address.sender, address.id, address.ver) == ("js-1", "7", "5")


def test_json_text_is_json_whatever_the_serializer() -> None:
    assert bytes(json_text({"a": [b"\x01", MOMENT]})) == (
        b'{"a":[{"type":"Buffer","data":[1]},"2024-01-02T03:04:05.678Z"]}'
    )
    assert bytes(json_text(Raw(b"{ }"))) == b"{ }"


class Attachment(Struct):
    body: bytes
    note: str = ""


class Mail(Struct):
    subject: bytes
    parts: list[Attachment] = []
    anything: Any = None
    document: Raw = NULL


@every_codec
def test_typed_bytes_are_the_bytes_that_were_sent(codec: Codec) -> None:
    sent = {"subject": b"\x00\xff", "parts": [{"body": b"a", "note": "n"}], "anything": 1, "document": {"a": [1]}}
    mail = typed(codec, sent, Mail)
    assert (mail.subject, mail.parts, mail.anything) == (b"\x00\xff", [Attachment(b"a", "n")], 1)
    assert json.loads(bytes(mail.document)) == {"a": [1]}


@pytest.mark.parametrize("name", ["JSON", "JSONExt"])
def test_typed_bytes_may_come_as_base64_or_as_javascript_writes_a_buffer(name: str) -> None:
    codec, buffer = make_codec(name), {"type": "Buffer", "data": [1, 255]}
    assert typed(codec, {"subject": "Af8="}, Mail).subject == b"\x01\xff"
    mail = typed(codec, {"subject": buffer, "anything": buffer}, Mail)
    assert (mail.subject, mail.anything) == (b"\x01\xff", buffer), "what is not typed stays as it is in JSON"
    with pytest.raises(msgspec.ValidationError, match="subject"):
        typed(codec, {"subject": {"type": "Buffer", "data": [256]}}, Mail)
