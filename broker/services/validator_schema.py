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
