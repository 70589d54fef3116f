"""Types in the words of fastest-validator. Whether JS nodes take them alike is asked in interop/test_tools.py."""

import datetime
import enum
import uuid
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import pytest
from msgspec import Meta, Struct
from msgspec import inspect as types

from broker.services.validator_schema import rule_of


class Color(enum.Enum):
    RED = "red"


class Tree(Struct):
    name: str
    children: "list[Tree]" = []


class Point(TypedDict):
    x: float


@dataclass
class Size:
    width: int
    height: int = 1


class Pair(Struct, array_like=True):
    a: int


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        (bool, {"type": "boolean"}),
        (Annotated[int, Meta(ge=1, lt=10)], {"type": "number", "integer": True, "min": 1, "max": 9}),
        (Annotated[int, Meta(gt=0, le=10)], {"type": "number", "integer": True, "min": 1, "max": 10}),
        (Annotated[float, Meta(gt=0)], {"type": "number", "positive": True}),
        (Annotated[float, Meta(lt=0)], {"type": "number", "negative": True}),
        (Annotated[float, Meta(gt=1.5, lt=2.5)], {"type": "number", "min": 1.5, "max": 2.5}),
        (Annotated[int, Meta(le=2**62)], {"type": "number", "integer": True}),
        (Annotated[str, Meta(min_length=1, pattern="^a+$")], {"type": "string", "min": 1, "pattern": "^a+$"}),
        (Annotated[str, Meta(pattern="(?P<name>a)")], {"type": "string"}),
        (Annotated[str, Meta(pattern=r"\Aa\Z")], {"type": "string"}),
        (Annotated[str, Meta(pattern="(?:a)(?=b)")], {"type": "string", "pattern": "(?:a)(?=b)"}),
        (list[str], {"type": "array", "items": {"type": "string"}}),
        (frozenset[int], {"type": "array", "items": {"type": "number", "integer": True}}),
        (tuple[int, str], {"type": "tuple", "items": [{"type": "number", "integer": True}, {"type": "string"}]}),
        (Literal["a", 1], {"type": "enum", "values": [1, "a"]}),
        (Literal["a", None], {"type": "enum", "values": ["a"], "nullable": True}),
        (Color, {"type": "enum", "values": ["red"]}),
        (dict[str, Any], {"type": "object"}),
        (dict[str, bool], {"type": "record", "value": {"type": "boolean"}}),
        (str | None, {"type": "string", "nullable": True}),
        (str | int, {"type": "multi", "rules": [{"type": "number", "integer": True}, {"type": "string"}]}),
        (datetime.datetime, {"type": "date", "convert": True}),
        (datetime.date, {"type": "string"}),
        (uuid.UUID, {"type": "uuid"}),
        (bytes, {"type": "multi", "rules": [{"type": "string", "base64": True}, {"type": "object"}]}),
        (Point, {"type": "object", "props": {"x": {"type": "number"}}}),
        (msgspec.Raw, {"type": "any"}),
        (Pair, {"type": "any"}),
        (Any, {"type": "any"}),
    ],
    ids=str,
)
def test_a_type_has_its_rule(kind: Any, rule: dict[str, Any]) -> None:
    found = rule_of(types.type_info(kind))
    for part in (found, rule):
        if "rules" in part:
            part["rules"].sort(key=str)
        if "values" in part:
            part["values"].sort(key=str)
    assert found == rule


def test_a_field_with_a_default_is_optional() -> None:
    properties = rule_of(types.type_info(Size))["props"]
    number = {"type": "number", "integer": True}
    assert properties == {"width": number, "height": number | {"optional": True}}


def test_a_type_that_holds_its_own_kind_ends() -> None:
    inner = {"type": "array", "items": {"type": "object"}, "optional": True}
    assert rule_of(types.type_info(Tree)) == {
        "type": "object",
        "props": {"name": {"type": "string"}, "children": inner},
    }
