"""Typed parameters: from a signature to values, to violations, and to what JS tools show (protocol §6.4, §3.2)."""

import enum
from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta, Raw, Struct

from broker.context import Context
from broker.errors import ServiceSchemaError, ValidationError
from broker.protocol.codecs import make_codec
from broker.protocol.codecs.json import JSONCodec
from broker.services.parameters import Parameters

CODEC = JSONCodec()
NULL = Raw(b"null")


class Place(Struct):
    street: str
    number: int = 1


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


async def handler(
    ctx: Context,
    name: str,
    age: Annotated[int, Meta(ge=0, le=150)],
    place: Place | None = None,
    tags: list[str] = [],  # noqa: B006 - what is promised for mutable defaults is tested here
    if_hash: str = "",
    document: Raw = NULL,
) -> None: ...


PARAMETERS = Parameters(handler, {"if_hash": "ifHash"})


def convert(params: Any) -> dict[str, Any]:
    return PARAMETERS.arguments(PARAMETERS.convert(params, CODEC.encode_value))


def violations(params: Any) -> ValidationError:
    with pytest.raises(msgspec.ValidationError) as caught:
        PARAMETERS.convert(params, CODEC.encode_value)
    return PARAMETERS.violations(params, caught.value)


def test_values_and_defaults_become_arguments() -> None:
    assert convert({"name": "Ada", "age": 36, "ifHash": "x", "place": {"street": "Main"}}) == {
        "name": "Ada",
        "age": 36,
        "place": Place("Main"),
        "tags": [],
        "if_hash": "x",
        "document": Raw(b"null"),
    }


def test_a_mutable_default_is_new_for_each_call() -> None:
    first = convert({"name": "Ada", "age": 1})
    first["tags"].append("changed")
    assert convert({"name": "Ada", "age": 1})["tags"] == []


def test_unknown_params_are_ignored() -> None:
    assert convert({"name": "Ada", "age": 1, "colour": "green"})["name"] == "Ada"


def test_a_raw_parameter_gets_the_bytes_of_its_value_on_both_ways() -> None:
    assert bytes(convert({"name": "Ada", "age": 1, "document": {"a": [1.5]}})["document"]) == b'{"a":[1.5]}'
    decode = CODEC.value_decoder(PARAMETERS.kind)
    values = decode(Raw(b'{"name":"Ada","age":1,"document":{ "a" : [1.50] }}'))
    assert bytes(PARAMETERS.arguments(values)["document"]) == b'{ "a" : [1.50] }'


def test_c58_every_violation_is_named_with_its_field() -> None:
    error = violations({"name": 7, "place": {"street": 5}, "tags": ["a", 1]})
    assert (error.message, error.code, error.type) == ("Parameters validation error!", 422, "VALIDATION_ERROR")
    assert error.data == [
        {
            "type": "string",
            "field": "name",
            "message": "The 'name' field does not fit: expected `str`, got `int`.",
            "actual": 7,
        },
        {"type": "required", "field": "age", "message": "The 'age' field is required."},
        {
            "type": "object",
            "field": "place.street",
            "message": "The 'place.street' field does not fit: expected `str`, got `int`.",
        },
        {
            "type": "array",
            "field": "tags[1]",
            "message": "The 'tags[1]' field does not fit: expected `str`, got `int`.",
        },
    ]


def test_c58_a_value_out_of_its_limits_names_the_limit_and_the_value() -> None:
    (item,) = violations({"name": "Ada", "age": 151}).data
    assert (item["type"], item["field"], item["actual"]) == ("number", "age", 151)
    assert "150" in item["message"]


def test_c58_a_value_that_is_not_allowed_is_refused_with_those_that_are() -> None:
    async def resolve(ctx: Context, on_conflict: Literal["skip", "fail"]) -> None: ...

    given = {"on_conflict": "x"}
    (item,) = Parameters(resolve, {}).violations(given, msgspec.ValidationError("x")).data
    assert (item["type"], item["actual"], item["expected"]) == ("enum", "x", "fail, skip")
    assert item["message"].endswith("invalid enum value 'x'. Allowed: fail, skip.")


def test_a_null_for_a_required_parameter_is_named_as_js_names_it() -> None:
    (item,) = violations({"name": None, "age": 1, "ifHash": None}).data
    assert item == {"type": "required", "field": "name", "message": "The 'name' field is required.", "actual": None}


def test_violations_use_wire_names() -> None:
    (item,) = violations({"name": "Ada", "age": 1, "ifHash": 5}).data
    assert item["field"] == "ifHash"


@pytest.mark.parametrize("params", [5, "text", [1], True])
def test_params_that_are_no_object_are_one_violation(params: Any) -> None:
    assert violations(params).data == [
        {"type": "object", "field": "", "message": "The params must be an object."},
    ]


def test_params_of_null_are_an_empty_object() -> None:
    optional = Parameters(two_optional, {})
    assert optional.arguments(optional.convert(None, CODEC.encode_value)) == {"first": 1, "second": "b"}


async def two_optional(ctx: Context, first: int = 1, *, second: str = "b") -> None: ...


def test_types_are_described_in_the_words_of_js_tools() -> None:
    assert PARAMETERS.describe() == {
        "name": {"type": "string"},
        "age": {"type": "number", "integer": True, "min": 0, "max": 150},
        "place": {
            "type": "object",
            "props": {"street": {"type": "string"}, "number": {"type": "number", "integer": True, "optional": True}},
            "nullable": True,
            "optional": True,
        },
        "tags": {"type": "array", "items": {"type": "string"}, "optional": True},
        "ifHash": {"type": "string", "optional": True, "default": ""},
        "document": {"type": "any", "optional": True},
    }


async def of_all_kinds(
    ctx: Context,
    flag: bool,
    ratio: float,
    short: Annotated[str, Meta(min_length=1, max_length=3, pattern="^a")],
    choice: Literal["a", "b"],
    colour: Colour,
    mapping: dict[str, int],
    either: int | str,
    anything: Any,
    few: Annotated[list[int], Meta(max_length=2)],
) -> None: ...


def test_every_kind_of_type_is_described() -> None:
    assert Parameters(of_all_kinds, {}).describe() == {
        "flag": {"type": "boolean"},
        "ratio": {"type": "number"},
        "short": {"type": "string", "min": 1, "max": 3, "pattern": "^a"},
        "choice": {"type": "enum", "values": ["a", "b"]},
        "colour": {"type": "enum", "values": ["red", "blue"]},
        "mapping": {"type": "record", "value": {"type": "number", "integer": True}},
        "either": {"type": "multi", "rules": [{"type": "number", "integer": True}, {"type": "string"}]},
        "anything": {"type": "any"},
        "few": {"type": "array", "items": {"type": "number", "integer": True}, "max": 2},
    }


async def untyped(ctx: Context, name) -> None: ...  # type: ignore[no-untyped-def]  # the point of the test


async def collecting(ctx: Context, *names: str) -> None: ...


async def without_context() -> None: ...


@pytest.mark.parametrize(
    ("method", "wanted"),
    [(untyped, "'name'.*has no type"), (collecting, "no \\*args"), (without_context, "must take the context")],
)
def test_a_signature_that_cannot_be_served_is_refused(method: Any, wanted: str) -> None:
    with pytest.raises(ServiceSchemaError, match=wanted):
        Parameters(method, {})


def test_only_the_types_of_parameters_must_be_there_when_the_program_runs() -> None:
    async def for_a_type_checker(ctx: "NotHere", name: "str") -> "NorThis": ...  # type: ignore[name-defined]  # noqa: F821 - as with `if TYPE_CHECKING`

    async def missing(ctx: Context, place: "NotHere") -> None: ...  # type: ignore[name-defined]  # noqa: F821 - as with `if TYPE_CHECKING`

    assert Parameters(for_a_type_checker, {}).describe() == {"name": {"type": "string"}}
    with pytest.raises(ServiceSchemaError, match=r"'NotHere' is not defined\. Import it outside `if TYPE_CHECKING`"):
        Parameters(missing, {})


def test_bytes_as_javascript_sends_them_are_no_violation() -> None:
    async def upload(ctx: Context, body: bytes, name: str) -> None: ...

    parameters = Parameters(upload, {})
    failure = parameters.violations({"body": {"type": "Buffer", "data": [1]}, "name": 5}, msgspec.ValidationError("x"))
    assert [item["field"] for item in failure.data] == ["name"]


async def of_bytes(
    ctx: Context, data: bytes = b"", document: Raw | None = None, counts: dict[int, int] | None = None
) -> None: ...


OF_BYTES = Parameters(of_bytes, {})


def read_everywhere(params: dict[str, Any]) -> list[dict[str, Any]]:
    """The arguments of a call in this process, and of calls over the wire by each serializer."""
    found = [OF_BYTES.arguments(OF_BYTES.convert(params, CODEC.encode_value))]
    for name in ("JSON", "JSONExt", "MsgPack", "Notepack", "CBOR"):
        codec = make_codec(name, ())
        found.append(OF_BYTES.arguments(codec.value_decoder(OF_BYTES.kind)(codec.encode_value(params))))
    return found


@pytest.mark.parametrize(
    ("params", "name", "expected"),
    [
        ({"data": b"abc"}, "data", b"abc"),
        ({"data": "YWJj"}, "data", b"abc"),
        ({}, "document", None),
        ({"document": None}, "document", None),
        ({"document": {"a": [1.5]}}, "document", Raw(b'{"a":[1.5]}')),
        ({"document": "null"}, "document", Raw(b'"null"')),
        ({"counts": {1: 2}}, "counts", {1: 2}),
        ({"counts": {"1": 2}}, "counts", {1: 2}),
    ],
)
def test_a_value_is_read_alike_in_this_process_and_by_every_serializer(
    params: dict[str, Any], name: str, expected: Any
) -> None:
    assert [arguments[name] for arguments in read_everywhere(params)] == [expected] * 6


def test_a_buffer_that_a_js_node_sent_may_be_handed_on_in_this_process() -> None:
    values = OF_BYTES.convert({"data": {"type": "Buffer", "data": [97, 98]}}, CODEC.encode_value)
    assert OF_BYTES.arguments(values)["data"] == b"ab"


def test_a_violation_that_only_the_reader_sees_names_its_place() -> None:
    failure = OF_BYTES.violations({}, msgspec.ValidationError("Expected `bytes`, got `object` - at `$.data`"))
    assert failure.data == [{"type": "invalid", "field": "data", "message": "Expected `bytes`, got `object`"}]
