"""Values that JSON has no form for: how each part of a value is found that a serializer writes in a way of its own."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct

SAFE_INTEGER = 2**53 - 1
"""The largest integer that a JavaScript number holds exactly."""

Rewrite = Callable[[Any], Any]

_SURROGATE = re.compile("[\ud800-\udfff]")


class RegExp(Struct, frozen=True):
    """A regular expression of JavaScript. Its syntax is not Python's, so it is not compiled here."""

    source: str
    flags: str = ""


def rewriter(plain: frozenset[type], leaf: Rewrite, key: Rewrite | None = None) -> Rewrite:
    """A function that rewrites a value: dicts, lists and tuples are gone through, the types of `plain` stay as they
    are, `leaf` gives what stands for anything else, and `key` for a key that is not a str.

    A value in which nothing has to be rewritten is given back itself, so that the common case costs little.
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


def opened(value: object, read_json: Callable[[Raw], Any]) -> Any:
    """A Struct, a dataclass, an enum member, a UUID… as what it is made of, with dates and bytes left in it.

    `read_json` gives the value of a Raw deep inside. Raises TypeError for what has no form on the wire.
    """
    if isinstance(value, Struct):
        return _members(value)

    def unknown(inner: object) -> Any:
        if isinstance(inner, Raw):
            return read_json(inner)
        raise TypeError(f"objects of type {type(inner).__name__} have no form on the wire")

    return msgspec.to_builtins(
        value, builtin_types=(datetime, bytes, bytearray, memoryview), str_keys=True, enc_hook=unknown
    )


def text_key(key: object) -> str:
    """A dict's key as JavaScript has it: always text."""
    if isinstance(key, bool) or not isinstance(key, str | int | float):
        plain = msgspec.to_builtins(key, str_keys=True)
        if isinstance(plain, str):
            return plain
        raise TypeError(f"a {type(key).__name__} cannot be the key of an object")
    return str(key)


def well_formed(text: str) -> str:
    """Text with halves of surrogate pairs replaced, as JS nodes do: UTF-8 has no form for them."""
    return _SURROGATE.sub("\ufffd", text)


def in_utc(moment: datetime) -> datetime:
    """A datetime without a zone means UTC."""
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _members(value: Struct) -> Any:
    """The fields of a Struct as msgspec would write them: names of the wire, tag, defaults and UNSET left out."""
    config, fields = value.__struct_config__, msgspec.structs.fields(value)
    if config.array_like:
        tag = [] if config.tag is None else [config.tag]
        return tag + [getattr(value, field.name) for field in fields]
    members: dict[str, Any] = {} if config.tag is None else {str(config.tag_field): config.tag}
    for field in fields:
        item = getattr(value, field.name)
        if item is UNSET or (config.omit_defaults and _is_default(item, field)):
            continue
        members[field.encode_name] = item
    return members


def _is_default(item: object, field: msgspec.structs.FieldInfo) -> bool:
    if field.default is not msgspec.NODEFAULT:
        return item is field.default or (type(item) is type(field.default) and item == field.default)
    return field.default_factory in (list, dict, set) and not item
