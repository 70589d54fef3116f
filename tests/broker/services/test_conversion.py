"""Text that stands for a value, by the published rules. That the validator of JS nodes does the same is shown in
interop/test_tools."""

from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta, Raw, Struct

from broker.context import Context
from broker.errors import ServiceSchemaError
from broker.protocol.codecs.json import json_text
from broker.services.decorators import action
from broker.services.parameters import Parameters
from broker.services.service import Service, define
from broker.services.validator_schema import converted, converting

NUMBER, BOOLEAN, TEXT = {"type": "number"}, {"type": "boolean"}, {"type": "string"}
NONE = Raw(b"null")


@pytest.mark.parametrize(
    ("value", "rule", "expected"),
    [
        ("10", NUMBER, 10),
        ("1e21", {**NUMBER, "integer": True}, 10**21),
        ("", NUMBER, 0),
        (None, NUMBER, None),
        ("ten", NUMBER, "ten"),
        ("Infinity", NUMBER, "Infinity"),
        ("on", BOOLEAN, True),
        (0, BOOLEAN, False),
        ("yes", BOOLEAN, "yes"),
        (2, BOOLEAN, 2),
        ("2024-01-02", {"type": "date"}, datetime(2024, 1, 2, tzinfo=UTC)),
        ("1704153600000", {"type": "date"}, datetime(2024, 1, 2, tzinfo=UTC)),
        ("5", {"type": "array", "items": NUMBER}, [5]),
        (["5", "x"], {"type": "array", "items": NUMBER}, [5, "x"]),
        ({"a": "5", "b": "5"}, {"type": "object", "props": {"a": NUMBER}}, {"a": 5, "b": "5"}),
        ({"a": "5"}, {"type": "record", "value": NUMBER}, {"a": 5}),
        (["5", "on"], {"type": "tuple", "items": [NUMBER, BOOLEAN]}, [5, True]),
        ("5", {"type": "multi", "rules": [NUMBER, TEXT]}, "5"),
        ("5", {"type": "multi", "rules": [NUMBER, BOOLEAN]}, 5),
        ("true", {"type": "multi", "rules": [NUMBER, BOOLEAN]}, True),
        (True, {"type": "multi", "rules": [NUMBER, BOOLEAN]}, True),
        (["5"], {"type": "multi", "rules": [NUMBER, {"type": "array", "items": NUMBER}]}, [5]),
        (5, TEXT, 5),
        ("5", {"type": "any"}, "5"),
    ],
)
def test_values_are_converted_by_their_rule(value: Any, rule: dict[str, Any], expected: Any) -> None:
    found = converted(value, converting(rule))
    assert (found, type(found)) == (expected, type(expected))


OPTIONAL: dict[str, Any] = {"type": "number", "optional": True}


@pytest.mark.parametrize("rule", [OPTIONAL, {**OPTIONAL, "default": 5}, converting(OPTIONAL)])
def test_null_stands_for_an_absent_value_where_a_type_does_not_allow_it(rule: dict[str, Any]) -> None:
    props = {"plain": rule, "nullable": {**rule, "nullable": True}, "required": TEXT, "any": {**rule, "type": "any"}}
    assert converted(dict.fromkeys(props), {"type": "object", "props": props}) == dict.fromkeys(list(props)[1:])


def test_without_convert_text_stays_text() -> None:
    values = {"number": "5", "numbers": ["5"], "one": "5"}
    props = {"number": NUMBER, "numbers": {"type": "array", "items": NUMBER}, "one": {"type": "array", "items": NUMBER}}
    assert converted(values, {"type": "object", "props": props}) == values


class Place(Struct):
    number: int


class Typed(Service):
    name = "typed"

    @action(convert=True)
    async def find(
        self,
        ctx: Context,
        count: Annotated[int, Meta(ge=1)],
        place: Place | None = None,
        label: str = "",
        document: Raw = NONE,
    ) -> None: ...

    @action(convert=False)
    async def exact(self, ctx: Context, count: int) -> None: ...

    @action
    async def open(self, ctx: Context, count: int) -> None: ...


def parameters(name: str, *, convert: bool = False) -> Parameters:
    found = define(Typed(), convert=convert).actions[f"typed.{name}"].parameters
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "convert", "converts"),
    [("find", False, True), ("exact", True, False), ("open", False, False), ("open", True, True)],
)
def test_an_action_says_itself_whether_it_converts_or_its_broker_does(name: str, convert: bool, converts: bool) -> None:
    made = parameters(name, convert=convert)
    assert made.describe()["count"].get("convert", False) is converts


def test_only_rules_that_the_validator_converts_say_so() -> None:
    described = parameters("find").describe()
    assert described["place"]["props"] == {"number": {"type": "number", "integer": True, "convert": True}}
    assert described["label"] == {"type": "string", "optional": True, "default": ""}
    assert converting({"type": "array", "items": NUMBER}) == {
        "type": "array",
        "items": {"type": "number", "convert": True},
        "convert": True,
    }


def test_a_violation_shows_the_value_that_was_given() -> None:
    made, params = parameters("find"), {"count": "0", "place": {"number": "x"}}
    with pytest.raises(msgspec.ValidationError) as caught:
        made.convert(made.converted(params), json_text)
    first, second = made.violations(params, caught.value).data
    assert (first["field"], first["actual"], first["type"]) == ("count", "0", "number")
    assert second["field"] == "place.number"


def test_convert_without_typed_parameters_is_refused() -> None:
    class Untyped(Service):
        name = "untyped"

        @action(convert=True)
        async def run(self, ctx: Context) -> None: ...

    with pytest.raises(ServiceSchemaError, match="convert=True"):
        define(Untyped())
