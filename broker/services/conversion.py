"""Values as fastest-validator, the validator of JS nodes, hands them on by the published rules of an action: null takes
the default, and with `convert` text, as in a request that came over HTTP, stands for a value."""

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from broker.protocol.javascript import to_number

Rule = dict[str, Any]

_BOOLEANS: dict[Any, bool] = {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def converting(rule: Rule) -> Rule:
    """The rule with `convert` where the validator has it: in numbers, booleans, dates and arrays. Text stays text."""
    inner: Rule = {}
    match rule["type"]:
        case "number" | "boolean" | "date":
            inner = {"convert": True}
        case "array":
            inner = {"items": converting(rule["items"]), "convert": True}
        case "tuple":
            inner = {"items": [converting(item) for item in rule["items"]]}
        case "record":
            inner = {"value": converting(rule["value"])}
        case "multi":
            inner = {"rules": [converting(one) for one in rule["rules"]]}
        case "object" if "props" in rule:
            inner = {"props": {name: converting(one) for name, one in rule["props"].items()}}
    return {**rule, **inner}


def converted(value: Any, rule: Rule) -> Any:
    """The value that the validator hands on; itself where there is nothing to convert, or it cannot be."""
    convert = (_CONVERSIONS if rule.get("convert") else _CONTAINERS).get(rule["type"])
    return value if value is None or convert is None else convert(value, rule)


def _takes_default(value: Any, rule: Rule) -> bool:
    """Null stands for an absent value, unless the type allows None: JS too keeps null where a rule is `nullable`."""
    return value is None and bool(rule.get("optional")) and not rule.get("nullable") and rule["type"] != "any"


def _number(value: Any, rule: Rule) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    number = to_number(value)
    if not math.isfinite(number):
        return value
    return int(number) if rule.get("integer") and number == int(number) else number


def _boolean(value: Any, _rule: Rule) -> Any:
    if isinstance(value, str):
        return _BOOLEANS.get(value, value)
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else value


def _date(value: Any, _rule: Rule) -> Any:
    """Milliseconds, as text too, or a date as text. (JavaScript reads more forms than those of ISO 8601.)"""
    number = math.nan if value in ("", []) else to_number(value)
    try:
        if not math.isnan(number):
            return _EPOCH + timedelta(milliseconds=math.trunc(number))
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError, OverflowError):
        return value
    return moment if moment.tzinfo or len(value) > len("2024-01-02") else moment.replace(tzinfo=UTC)


def _array(value: Any, rule: Rule) -> Any:
    if not isinstance(value, list | tuple):
        if not rule.get("convert"):
            return value
        value = [value]
    return [converted(item, rule["items"]) for item in value]


def _tuple(value: Any, rule: Rule) -> Any:
    if not isinstance(value, list | tuple) or len(value) != len(rule["items"]):
        return value
    return [converted(item, one) for item, one in zip(value, rule["items"], strict=True)]


def _object(value: Any, rule: Rule) -> Any:
    if not isinstance(value, dict):
        return value
    rules = rule.get("props", {})
    pairs = ((name, item, rules.get(name, _ANY)) for name, item in value.items())
    return {name: converted(item, one) for name, item, one in pairs if not _takes_default(item, one)}


def _record(value: Any, rule: Rule) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: converted(item, rule["value"]) for name, item in value.items()}


def _multi(value: Any, rule: Rule) -> Any:
    """By the first rule for values of its kind; else by the first that makes something else of it."""
    for one in rule["rules"]:
        if isinstance(value, _KINDS.get(one["type"], ())) and isinstance(value, bool) == (one["type"] == "boolean"):
            return converted(value, one)
    attempts = (converted(value, one) for one in rule["rules"])
    return next((attempt for attempt in attempts if attempt is not value), value)


_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("string", "enum", "uuid"), (str,)),
    **dict.fromkeys(("array", "tuple"), (list, tuple)),
    **dict.fromkeys(("object", "record"), (dict,)),
    "number": (int, float),
    "boolean": (bool,),
}
_ANY: Rule = {"type": "any"}
_CONTAINERS: dict[str, Callable[[Any, Rule], Any]] = {
    "array": _array,
    "tuple": _tuple,
    "object": _object,
    "record": _record,
    "multi": _multi,
}
_CONVERSIONS = {**_CONTAINERS, "number": _number, "boolean": _boolean, "date": _date}
