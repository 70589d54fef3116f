"""Python types in the words of fastest-validator, which JS nodes show and compile (moleculer protocol §3.2)."""

import re
from typing import Any

from msgspec import inspect as types

Rule = dict[str, Any]

_FOREIGN_TO_JS = re.compile(r"\(\?(?!:|=|!|<=|<!)|\\[AZz]|[*+?}]\+")
"""What a pattern of Python may hold and a RegExp of JavaScript does not, or takes for something else."""

_LARGE = 2**53
"""Beyond, numbers of JavaScript are not exact."""


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
            return _array(info, outer)
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
            return _union(info, outer)
        case types.Metadata():
            return _rule(info.type, outer)
        case _:
            return _formatted(info) or _object(info, outer) or {"type": "any"}


def _formatted(info: types.Type) -> Rule | None:
    """Strings of a certain form."""
    match info:
        case types.DateTimeType():
            return {"type": "date", "convert": True}
        case types.UUIDType():
            return {"type": "uuid"}
        case types.ByteArrayType() | types.BytesType():
            return {"type": "multi", "rules": [{"type": "string", "base64": True}, {"type": "object"}]}  # or a Buffer
        case types.DateType() | types.TimeType():
            return {"type": "string"}
        case _:
            return None


def _object(info: types.Type, outer: tuple[type, ...]) -> Rule | None:
    """Objects with known fields. One that holds its own kind is described once."""
    match info:
        case types.StructType() if not info.array_like:
            cls, properties = info.cls, {field.encode_name: field for field in info.fields}
        case types.TypedDictType() | types.DataclassType():
            cls, properties = info.cls, {field.encode_name: field for field in info.fields}
        case _:
            return None
    if cls in outer:
        return {"type": "object"}
    return {"type": "object", "props": {name: _field(field, (*outer, cls)) for name, field in properties.items()}}


def _field(field: types.Field, outer: tuple[type, ...]) -> Rule:
    return _rule(field.type, outer) | ({} if field.required else {"optional": True})


def _array(info: Any, outer: tuple[type, ...]) -> Rule:
    return _given({"type": "array", "items": _rule(info.item_type, outer)}, min=info.min_length, max=info.max_length)


def _union(info: types.UnionType, outer: tuple[type, ...]) -> Rule:
    members = [member for member in info.types if not isinstance(member, types.NoneType)]
    rules = [_rule(member, outer) for member in members]
    nullable = {"nullable": True} if len(members) < len(info.types) else {}
    return {**rules[0], **nullable} if len(rules) == 1 else {"type": "multi", "rules": rules, **nullable}


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
