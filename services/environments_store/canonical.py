"""JSON text as JavaScript would print it with sorted keys: the form that the content hash is made of.

A JavaScript program that parses a document, sorts its keys and prints it again gives a text that differs from Python's
in a few traps, all held here: integer-like keys come first and ascending, the others in the order of their UTF-16
units; numbers are doubles (`1.0` is `1`, `12345678901234567890` is `12345678901234567000`, `-0` is `0`, `1e400` is
infinite and printed as `null`); a member `__proto__` sets a prototype and so disappears; a lone surrogate stays an
escape; of a repeated key the last one counts.

Most documents have none of these traps: msgspec reads and prints them as they are. For the others the C code of the
standard library does the work; what nests deeper than it goes is printed by `canonical_large`.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from typing import Any, NamedTuple, NoReturn

import msgspec

__all__ = [
    "Document",
    "Hooks",
    "NotAnObjectError",
    "after_gap",
    "canonical_text",
    "encoded",
    "name_order",
    "parse",
    "parse_plain",
    "print_plain",
    "quote",
]

_SAFE_DIGITS = 15  # so many digits fit into a double exactly
_SAFE_INTEGER = 2.0**53
_EXPONENT_FROM = 1e21  # JavaScript prints larger numbers with an exponent, as Python prints these too
_PLAIN_FROM = 1e-4  # smaller ones: Python prints an exponent below 1e-4, JavaScript below 1e-6 and without padding
_ARRAY_INDEX_LIMIT = 2**32 - 1
_ARRAY_INDEX = re.compile(r"(?:0|[1-9][0-9]{0,9})\Z")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_GAP = re.compile(r"[ \t\n\r]*")
quote: Callable[[str], str] = json.encoder.encode_basestring


class NotAnObjectError(ValueError):
    """The JSON text is an array or a scalar."""

    def __init__(self) -> None:
        super().__init__("the document is not a JSON object")


class Document(NamedTuple):
    """A parsed document: `value` has its keys in canonical order, `tiny` tells whether it holds a number that only the
    slower printer prints as JavaScript does."""

    value: Any
    tiny: bool


class _FractionError(Exception):
    pass


def _refuse_fraction(_: str) -> NoReturn:
    raise _FractionError


_PLAIN_DECODER = msgspec.json.Decoder(float_hook=_refuse_fraction)
_KINDS = bytes(
    ord("0") if chr(byte).isdecimal() else ord("e") if byte in (0xEE, 0xEF) else ord("f") if byte >= 0xF0 else 0x20
    for byte in range(256)
)
"""Digits as `0`; the first byte of a character from U+E000 on as `e`, of one beyond 16 bits, which comes before it in
UTF-16, as `f`."""
_LONG_INTEGER = b"0" * (_SAFE_DIGITS + 1)
_INDEX_NAME = re.compile(rb'"[0-9]+"[ \t\n\r]*:')


def parse_plain(text: bytes) -> Any:
    """The value of a document that `print_plain` prints as JavaScript does; None for one that may hold a trap, or is no
    JSON. Both together take a fifth of the time of `parse` and `canonical_text`."""
    kinds = text.translate(_KINDS)
    if (
        b"\\u" in text
        or b"__proto__" in text
        or _LONG_INTEGER in kinds
        or (b"f" in kinds and b"e" in kinds)
        or _INDEX_NAME.search(text)
    ):
        return None
    try:
        return _PLAIN_DECODER.decode(text)
    except (_FractionError, ValueError, RecursionError):
        return None


print_plain: Callable[[Any], bytes] = msgspec.json.Encoder(order="sorted").encode


def parse(text: str) -> Document:
    """Read a JSON text as `JSON.parse` does. Raises ValueError for what is not JSON, RecursionError for what nests too
    deep."""
    hooks = Hooks()
    return Document(hooks.decoder.decode(text), hooks.tiny)


def canonical_text(document: Document) -> bytes:
    """The document as `JSON.stringify` prints it after sorting keys, in UTF-8."""
    if not document.tiny:
        try:
            return encoded(_ENCODER.encode(document.value))
        except RecursionError:
            pass
    return b"".join(map(encoded, _print(document.value)))


def encoded(text: str) -> bytes:
    """UTF-8, with an escape for each half of a surrogate pair."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return _LONE_SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text).encode()


_ENCODER = json.JSONEncoder(ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":"))


class Hooks:
    """What the parser does with numbers and objects; remembers whether a tiny number was met."""

    def __init__(self) -> None:
        self.tiny = False
        self.decoder = json.JSONDecoder(
            parse_int=self.integer,
            parse_float=self.number,
            parse_constant=_refuse_constant,
            object_pairs_hook=sorted_object,
        )
        self.scan: Callable[[str, int], tuple[Any, int]] = self.decoder.scan_once  # type: ignore[attr-defined]

    def integer(self, text: str) -> int | float | None:
        return int(text) if len(text) <= _SAFE_DIGITS else self.number(text)

    def number(self, text: str) -> int | float | None:
        number = float(text)
        if math.isinf(number):
            return None
        size = abs(number)
        if size < _EXPONENT_FROM and number.is_integer():
            # Beyond 2**53 JavaScript prints the shortest digits that mean the number, filled up with zeros.
            return int(number) if size < _SAFE_INTEGER else int(Decimal(repr(number)))
        if size < _PLAIN_FROM:
            self.tiny = True
        return number


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def sorted_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The members as JavaScript lists them after they were added sorted."""
    members = dict(pairs)
    members.pop("__proto__", None)
    return {name: members[name] for name in _sorted_names(members)}


def name_order(name: str) -> tuple[int, int | bytes]:
    """What names are sorted by one at a time: slower than `_sorted_names`."""
    return (0, int(name)) if name[:1].isdigit() and _is_array_index(name) else (1, _utf16(name))


def _sorted_names(members: Iterable[str]) -> list[str]:
    """The names in that order."""
    names = sorted(members)
    if not all(map(str.isascii, names)):
        names.sort(key=_utf16)
    indexes = [name for name in names if name[:1].isdigit() and _is_array_index(name)]
    if indexes:
        indexes.sort(key=int)
        chosen = set(indexes)
        names = indexes + [name for name in names if name not in chosen]
    return names


def _utf16(name: str) -> bytes:
    return name.encode("utf-16-be", "surrogatepass")


def _is_array_index(name: str) -> bool:
    return _ARRAY_INDEX.match(name) is not None and int(name) < _ARRAY_INDEX_LIMIT


def after_gap(text: str, position: int) -> int:
    match = _GAP.match(text, position)
    return match.end() if match else position


def _print(value: Any) -> Iterator[str]:
    """The text of a value piece by piece, without recursion; exact for every number."""
    waiting: list[Any] = [(value,)]  # texts as they are; a value to print in a tuple
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
            continue
        item = item[0]
        if isinstance(item, dict):
            yield "{"
            waiting.append("}")
            for index, name in reversed(list(enumerate(item))):
                waiting.append((item[name],))
                waiting.append(("," if index else "") + quote(name) + ":")
        elif isinstance(item, list):
            yield "["
            waiting.append("]")
            for index in range(len(item) - 1, -1, -1):
                waiting.append((item[index],))
                if index:
                    waiting.append(",")
        else:
            yield _print_scalar(item)


def _print_scalar(value: Any) -> str:
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, float):
        return _print_number(value)
    return json.dumps(value)


def _print_number(number: float) -> str:
    text = repr(number)
    mantissa, _, exponent = text.partition("e-")
    if not exponent or abs(number) >= _PLAIN_FROM:
        return text
    if abs(number) >= 1e-6:
        return format(Decimal(text), "f")
    return f"{mantissa}e-{int(exponent)}"
