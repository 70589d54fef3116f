"""Parameters as fastest-validator, the validator of JS nodes, has them: Python types in its words, which tools show and
compile (moleculer protocol §3.2), and values as it hands them on."""

import math
import re
from datetime import UTC, datetime, timedelta
from typing import Any

from msgspec import inspect as types

from broker.protocol.javascript import to_number

Rule = dict[str, Any]

_FOREIGN_TO_JS = re.compile(r"\(\?(?!:|=|!|<=|<!)|\\[AZz]|[*+?}]\+")
"""What a pattern of Python may hold and a RegExp of JavaScript does not, or takes for something else."""

_LARGE = 2**53
"""Beyond, numbers of JavaScript are not exact."""

_BOOLEANS: dict[Any, Any] = {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ANY: Rule = {"type": "any"}

_KINDS: dict[str, Any] = {
    **dict.fromkeys(("string", "enum", "uuid"), str),
    **dict.fromkeys(("array", "tuple"), list | tuple),
    **dict.fromkeys(("object", "record"), dict),
    "number": int | float,
    "boolean": bool,
}


def rule_of(info: types.Type) -> Rule:
    """The rule for one type: `any` for what there is no word for. It never refuses what the type takes."""
    return _rule(info, ())


def _rule(info: types.Type, outer: tuple[type, ...]) -> Rule:
    match info:
        case types.BoolType():
            return {"type": "boolean"}
        case types.IntType():
            return {"type": "number", "integer": True} | _bounds(info)
        case types.FloatType():
            return {"type": "number"} | _bounds(info)
        case types.StrType():
            pattern = None if info.pattern is None or _FOREIGN_TO_JS.search(info.pattern) else info.pattern
            return _given({"type": "string"}, min=info.min_length, max=info.max_length, pattern=pattern)
        case types.ListType() | types.SetType() | types.FrozenSetType() | types.VarTupleType():
            rule = {"type": "array", "items": _rule(info.item_type, outer)}
            return _given(rule, min=info.min_length, max=info.max_length)
        case types.TupleType():
            return {"type": "tuple", "items": [_rule(item, outer) for item in info.item_types]}
        case types.LiteralType():
            nullable = {"nullable": True} if None in info.values else {}
            return {"type": "enum", "values": [value for value in info.values if value is not None], **nullable}
        case types.EnumType():
            return {"type": "enum", "values": [member.value for member in info.cls]}
        case types.DictType():
            values = _rule(info.value_type, outer)
            return {"type": "object"} if values == {"type": "any"} else {"type": "record", "value": values}
        case types.UnionType():
            rules = [_rule(member, outer) for member in info.types if not isinstance(member, types.NoneType)]
            nullable = {"nullable": True} if len(rules) < len(info.types) else {}
            return {**rules[0], **nullable} if len(rules) == 1 else {"type": "multi", "rules": rules, **nullable}
        case types.Metadata():
            return _rule(info.type, outer)
        case types.StructType() if info.array_like:
            return {"type": "any"}
        case types.StructType() | types.TypedDictType() | types.DataclassType():
            if info.cls in outer:  # one that holds its own kind is described once
                return {"type": "object"}
            props = {field.encode_name: _rule(field.type, (*outer, info.cls)) for field in info.fields}
            for field in info.fields:
                props[field.encode_name] |= {} if field.required else {"optional": True}
            return {"type": "object", "props": props}
        case types.DateTimeType():
            return {"type": "date", "convert": True}
        case types.UUIDType():
            return {"type": "uuid"}
        case types.ByteArrayType() | types.BytesType():
            return {"type": "multi", "rules": [{"type": "string", "base64": True}, {"type": "object"}]}  # or a Buffer
        case types.DateType() | types.TimeType():
            return {"type": "string"}
        case _:
            return {"type": "any"}


def _bounds(info: types.IntType | types.FloatType) -> Rule:
    """There are no words for open bounds, but for whole numbers, and for above and below zero."""
    rule: Rule = {}
    step = 1 if isinstance(info, types.IntType) else None
    if info.gt is not None:
        rule |= {"min": info.gt + step} if step else {"positive": True} if info.gt == 0 else {"min": info.gt}
    if info.lt is not None:
        rule |= {"max": info.lt - step} if step else {"negative": True} if info.lt == 0 else {"max": info.lt}
    rule |= _given({}, min=info.ge, max=info.le)
    return {name: bound for name, bound in rule.items() if bound is True or abs(bound) <= _LARGE}


def _given(rule: Rule, **limits: Any) -> Rule:
    return rule | {name: limit for name, limit in limits.items() if limit is not None}


def converting(rule: Any) -> Any:
    """The rule with `convert` where the validator has it: in numbers, booleans, dates and arrays. Text stays text."""
    if isinstance(rule, list):
        return [converting(one) for one in rule]
    if not isinstance(rule, dict):
        return rule
    made = {name: converting(part) for name, part in rule.items()}
    return {**made, "convert": True} if rule.get("type") in ("number", "boolean", "date", "array") else made


def converted(value: Any, rule: Rule) -> Any:
    """The value that the validator hands on; itself where there is nothing to convert, or it cannot be."""
    converts = rule.get("convert") and value is not None
    match rule["type"], value:
        case "number", _ if converts:
            return _number(value, whole=bool(rule.get("integer")))
        case "boolean", str() if converts:
            return _BOOLEANS.get(value, value)
        case "boolean", 0 | 1 if converts:
            return bool(value)
        case "date", _ if converts:
            return _date(value)
        case "array", list() | tuple():
            return [converted(item, rule["items"]) for item in value]
        case "array", _ if converts:
            return [converted(value, rule["items"])]
        case "tuple", list() | tuple() if len(value) == len(rule["items"]):
            return [converted(item, one) for item, one in zip(value, rule["items"], strict=True)]
        case "record", dict():
            return {name: converted(item, rule["value"]) for name, item in value.items()}
        case "object", dict():
            return _object(value, rule.get("props", {}))
        case "multi", _ if value is not None:
            return _one_of(value, rule["rules"])
    return value


def _number(value: Any, *, whole: bool) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    number = to_number(value)
    if not math.isfinite(number):
        return value
    return int(number) if whole and number == int(number) else number


def _date(value: Any) -> Any:
    """Milliseconds, as text too, or a date as text. (JavaScript reads more forms than those of ISO 8601.)"""
    number = math.nan if value in ("", []) else to_number(value)
    try:
        if not math.isnan(number):
            return _EPOCH + timedelta(milliseconds=math.trunc(number))
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError, OverflowError):
        return value
    return moment if moment.tzinfo or len(value) > len("2024-01-02") else moment.replace(tzinfo=UTC)


def _object(value: dict[Any, Any], rules: dict[str, Rule]) -> dict[Any, Any]:
    """Null stands for an absent member, unless its type allows null: JS too keeps it where a rule is `nullable`."""
    pairs = [(name, item, rules.get(name, _ANY)) for name, item in value.items()]
    return {
        name: converted(item, rule)
        for name, item, rule in pairs
        if item is not None or not rule.get("optional") or rule.get("nullable") or rule["type"] == "any"
    }


def _one_of(value: Any, rules: list[Rule]) -> Any:
    """By the first rule for values of its kind; else by the first that makes something else of it."""
    for rule in rules:
        kind = _KINDS.get(rule["type"])
        if kind and isinstance(value, kind) and isinstance(value, bool) == (rule["type"] == "boolean"):
            return converted(value, rule)
    attempts = (converted(value, rule) for rule in rules)
    return next((attempt for attempt in attempts if attempt is not value), value)
