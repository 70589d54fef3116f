"""Values of users: what each part is on the wire, and how decoded values become the types that a handler asks for."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from msgspec import Raw, Struct
from msgspec import inspect as types

SAFE_INTEGER = 2**53 - 1
"""The largest integer that a JavaScript number holds exactly."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Rewrite = Callable[[Any], Any]

_SURROGATE = re.compile("[\ud800-\udfff]")


class RegExp(Struct, frozen=True):
    """A regular expression of JavaScript. Its syntax is not Python's, so it is not compiled here."""

    source: str
    flags: str = ""


_LEFT_AS_THEY_ARE = (datetime, bytes, bytearray, memoryview, Raw, RegExp)


def rewriter(plain: frozenset[type], leaf: Rewrite, key: Rewrite | None = None) -> Rewrite:
    """A function that rewrites a value: it walks through dicts, lists and tuples, leaves the types of `plain` as they
    are, and asks `leaf` for what stands for anything else, and `key` for a key that is not a str.

    A value in which nothing has to be rewritten is returned itself, so that the common case costs little.
    """

    def rewrite(value: Any) -> Any:
        kind = type(value)
        if kind in plain:
            return value
        if kind is dict:
            for name, item in value.items():
                if type(item) not in plain or (key is not None and type(name) is not str):
                    return _dict(value)
            return value
        if kind is list or kind is tuple:
            for item in value:
                if type(item) not in plain:
                    return [rewrite(item) for item in value]
            return value
        return leaf(value)

    def _dict(value: dict[Any, Any]) -> dict[Any, Any]:
        if key is None:
            return {name: rewrite(item) for name, item in value.items()}
        return {name if type(name) is str else key(name): rewrite(item) for name, item in value.items()}

    return rewrite


def opened(value: object) -> Any:
    """A Struct, a dataclass, an enum member, a UUID… as the dicts, lists and scalars that msgspec makes of it, with
    dates, bytes, JSON text and regular expressions left in it. Raises TypeError for what has no form on the wire."""
    return msgspec.to_builtins(value, builtin_types=_LEFT_AS_THEY_ARE, str_keys=True, enc_hook=no_form)


def no_form(value: object) -> Any:
    """Refuse a value that no serializer can write."""
    raise TypeError(f"objects of type {type(value).__name__} have no form on the wire")


def text_key(key: object) -> str:
    """A dict's key as JavaScript has it: always text."""
    if isinstance(key, bool) or not isinstance(key, str | int | float):
        key = msgspec.to_builtins(key, str_keys=True)
        if not isinstance(key, str):
            raise TypeError(f"a {type(key).__name__} cannot be the key of an object")
    return str(key)


def well_formed(text: str) -> str:
    """Text with halves of surrogate pairs replaced, as JS nodes do: UTF-8 has no form for them."""
    return _SURROGATE.sub("\ufffd", text)


def in_utc(moment: datetime) -> datetime:
    """A datetime without a zone means UTC."""
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def as_date(number: float, ms: int = 1) -> datetime | float | None:
    """The date after a number of units of so many milliseconds since 1970: None for an invalid one, the number itself
    for a year that Python has not."""
    if number != number:
        return None
    try:
        return EPOCH + timedelta(milliseconds=number * ms)
    except OverflowError:
        return number


def as_set(values: Any) -> Any:
    """A set, or the list itself where an element has no hash."""
    try:
        return set(values)
    except TypeError:
        return values


def with_bytes(value: Any) -> Any:
    """A decoded value with bytes for the objects that JavaScript writes for a Buffer (§8.3). An object whose numbers
    are not bytes stays."""
    if isinstance(value, dict):
        if value.get("type") == "Buffer" and isinstance(value.get("data"), list):
            try:
                return bytes(value["data"])
            except (TypeError, ValueError):
                return value
        return {name: with_bytes(item) for name, item in value.items()}
    return [with_bytes(item) for item in value] if isinstance(value, list) else value


def typed(value: Any, kind: Any) -> Any:
    """Plain values as a type, equally lenient for each serializer: text may stand for bytes (base64), and for a number
    that is a key, as it must in JSON. Raises msgspec.ValidationError."""
    return msgspec.convert(value, kind, str_keys=True)


def holds(kind: Any, *wanted: type[types.Type]) -> bool:
    """Whether one of these, such as `RawType`, is anywhere in a type."""
    waiting: list[Any] = [types.type_info(kind)]
    seen: set[int] = set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, wanted):
            return True
        if id(node) in seen:
            continue
        seen.add(id(node))
        for name in node.__struct_fields__:
            inner = getattr(node, name)
            waiting += [item for item in (inner if isinstance(inner, tuple) else (inner,)) if isinstance(item, _NODES)]
    return False


def holds_bytes(kind: Any) -> bool:
    """Whether bytes are anywhere in a type."""
    return holds(kind, types.BytesType, types.ByteArrayType, types.MemoryViewType)


_NODES = (types.Type, types.Field)
