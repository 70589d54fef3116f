"""How JavaScript prints values, reads numbers and finds its way into values: what JS nodes compute is computed alike
here."""

import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

MISSING: Any = type("Missing", (), {"__repr__": lambda self: "<missing>"})()
"""What a path leads to when there is nothing: `undefined`."""

_EXPONENT = re.compile(r"e([+-])0*")
_STEPS = re.compile(r"[.\[\]]+")
_DECIMAL = re.compile(r"[+-]?(?:Infinity|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)", re.ASCII)
_RADIX = re.compile(r"0(?:[xX][\da-fA-F]+|[oO][0-7]+|[bB][01]+)", re.ASCII)
_BLANKS = "\t\n\v\f\r \u00a0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff" + "".join(map(chr, range(0x2000, 0x200B)))


def camel(name: str) -> str:
    """A Python name as JavaScript spells it: `request_timeout` as `requestTimeout`."""
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def text(value: Any) -> str:
    """`String(value)` of JavaScript, for what JSON can carry."""
    if isinstance(value, str):
        return value
    if value is None or value is MISSING:
        return "null" if value is None else "undefined"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, Mapping):
        return "[object Object]"
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return ",".join("" if item is None else text(item) for item in value)
    return str(value)


def number(value: float) -> str:
    """A number as JavaScript prints it: `1`, `1.5`, `1e+21`, `1e-7`."""
    if isinstance(value, int) and abs(value) <= 2**53:
        return str(value)
    try:
        value = float(value)
    except OverflowError:
        value = math.inf if value > 0 else -math.inf
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    printed = repr(value or 0)
    if "e" in printed and 1e-6 <= abs(value) < 1e21:  # Python writes an exponent sooner
        printed = format(Decimal(printed), "f")
    return _EXPONENT.sub(r"e\1", printed.removesuffix(".0"))


def to_number(value: Any) -> float:
    """`Number(value)` of JavaScript, NaN for what it is not a number to. A whole number that it holds exactly is an
    int."""
    if isinstance(value, bool | None):
        return int(value or 0)
    if isinstance(value, int | float):
        return value
    if isinstance(value, datetime):
        return float(epoch_ms(value))
    if not isinstance(value, str | list | tuple):
        return math.nan
    digits = text(value).strip(_BLANKS)
    if _DECIMAL.fullmatch(digits):
        number = float(digits.replace("Infinity", "inf"))
    elif _RADIX.fullmatch(digits):
        whole = int(digits, 0)
        number = float(whole) if whole.bit_length() <= 1024 else math.inf
    else:
        return math.nan if digits else 0
    return int(number) if number.is_integer() and abs(number) <= 2**53 else number


def dig(value: Any, path: str) -> Any:
    """What a path such as `user.id` or `ids[0]` leads to; MISSING when it leads nowhere. A key that holds dots wins."""
    if isinstance(value, Mapping) and path in value:
        return value[path]
    steps = [step for step in _STEPS.split(path) if step]
    if not steps:
        return MISSING
    for step in steps:
        if isinstance(value, Mapping) and step in value:
            value = value[step]
        elif isinstance(value, list | tuple) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            return MISSING
    return value


def epoch_ms(moment: datetime) -> str:
    """A date as its milliseconds."""
    return str(round(moment.timestamp() * 1000))
