"""Values as fastest-validator, the validator of JS nodes, hands them on by the published rules of an action: null takes
the default, and with `convert` text, as in a request that came over HTTP, stands for a value."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any

from broker.protocol.javascript import to_number

Rule = dict[str, Any]

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
