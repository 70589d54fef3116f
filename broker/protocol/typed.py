"""Typed parameters from a serializer that is not JSON: each field of type Raw gets the JSON text of its value."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import Raw, Struct
from msgspec import inspect as types

T = TypeVar("T")


def typed(value: Any, kind: Any) -> Any:
    """Plain values as a type, with the same leniency whatever they came from: text may stand for bytes (base64), and
    for a number as a key, as it must in JSON. Raises msgspec.ValidationError."""
    return msgspec.convert(value, kind, str_keys=True)


class TypedReader:
    """Makes Structs of one type from encoded or decoded members."""

    def __init__(self, kind: type[Struct]) -> None:
        fields = msgspec.structs.fields(kind)
        self._kind = kind
        self._raw = {field.encode_name for field in fields if field.type is Raw}
        self._inner_raw = any(field.type is not Raw and holds(field.type, types.RawType) for field in fields)
        self._json = msgspec.json.Decoder(kind)
        self.slices = msgspec.defstruct(
            "Slices",
            [(field.name, Raw, Raw()) for field in fields],
            rename={field.name: field.encode_name for field in fields},
        )
        """A Struct of the same members, each left encoded."""
        self._names = {field.name: field.encode_name for field in fields}

    @property
    def has_raw(self) -> bool:
        """Whether JSON text is wanted anywhere."""
        return bool(self._raw) or self._inner_raw

    def members(self, slices: Struct) -> dict[str, Raw]:
        """The members that were there, by their names on the wire."""
        found = {name: getattr(slices, own) for own, name in self._names.items()}
        return {name: slice for name, slice in found.items() if slice}

    def read(self, members: Mapping[str, T], value: Callable[[T], Any], text: Callable[[T], Raw]) -> Any:
        """The Struct; `value` gives a member as plain values, `text` as JSON. Raises msgspec.ValidationError."""
        if self._inner_raw:  # Raw inside lists or Structs: only a decoder of JSON finds the places
            pairs = [b"%s:%s" % (msgspec.json.encode(name), bytes(text(member))) for name, member in members.items()]
            return self._json.decode(b"{%s}" % b",".join(pairs))
        plain = {name: text(member) if name in self._raw else value(member) for name, member in members.items()}
        return typed(plain, self._kind)

    def known(self, members: Mapping[Any, T]) -> dict[str, T]:
        """Of decoded members those that the type has."""
        return {name: members[name] for name in self._names.values() if name in members}


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
