"""CBOR, as the package cbor-x of JS nodes writes and reads it (protocol §11). Needs the package cbor2."""

from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Any

import cbor2
import msgspec
from cbor2 import CBORTag
from msgspec import UNSET, Raw, Struct

from broker.protocol.codecs.base import Codec
from broker.protocol.codecs.json import json_text, parse_json
from broker.protocol.encoding import FIELDS, PLAIN_FIELDS, packet_of
from broker.protocol.packets import COMMANDS, Packet
from broker.protocol.values import (
    SAFE_INTEGER,
    RegExp,
    as_date,
    as_set,
    in_utc,
    opened,
    rewriter,
    text_key,
    well_formed,
)

_INT32 = 2**32
_DEPTH = 900  # what Python can go through, as it can JSON
_SIMPLE: frozenset[type] = frozenset({str, int, bool, type(None), bytes, datetime})
_SCALARS = _SIMPLE | {float}


class Decoded(Struct):
    """A value of a packet, decoded with it: what is nested in CBOR cannot be cut out of it. Its length is that of the
    packet, which is on the safe side."""

    value: Any
    size: int

    def __len__(self) -> int:
        return self.size


def _leaf(value: Any) -> Any:
    match value:
        case int():  # cbor-x reads an integer of 64 bits as a BigInt, which JavaScript does not mix with numbers
            return float(value) if _INT32 <= value <= SAFE_INTEGER or -SAFE_INTEGER <= value < -_INT32 else value
        case datetime():
            return in_utc(value)
        case bytearray() | memoryview():
            return bytes(value)
        case set() | frozenset():
            return CBORTag(258, _prepare(list(value)))
        case RegExp():
            return CBORTag(27, ["RegExp", value.source, value.flags])
        case Raw():
            return _as_javascript(parse_json(value))
        case CBORTag():
            return value
        case _:
            return _prepare(opened(value))


_prepare = rewriter(frozenset({str, float, bool, type(None), bytes}), _leaf, text_key)


def _javascript_number(value: float | int) -> float | int:
    return value if isinstance(value, float) or -_INT32 <= value < _INT32 else float(value)


_as_javascript = rewriter(frozenset({str, bool, type(None)}), _javascript_number)
"""JSON text as the values that a JS node would send in its place: it has no BigInt."""


def _replaced(value: Any) -> Any:
    if isinstance(value, str):
        return well_formed(value)
    return CBORTag(value.tag, _well_formed(value.value)) if isinstance(value, CBORTag) else value


_well_formed = rewriter(frozenset({int, float, bool, type(None), bytes, datetime}), _replaced)


def _whole_leaf(value: Any) -> Any:
    """As integers the whole numbers that cbor-x writes as fractions: those beyond 32 bits."""
    is_whole = isinstance(value, float) and value.is_integer() and _INT32 <= abs(value) <= SAFE_INTEGER
    return int(value) if is_whole else value


_whole = rewriter(_SIMPLE, _whole_leaf)
_with_null = rewriter(_SCALARS, lambda value: None if value is cbor2.undefined else value)


def _present(value: Any) -> Any:
    """A value without members that are undefined: JavaScript means them to be absent."""
    if isinstance(value, dict):
        return {name: _present(item) for name, item in value.items() if item is not cbor2.undefined}
    return [_present(item) for item in value] if isinstance(value, list) else _with_null(value)


def _loads(data: bytes) -> Any:
    """Halves of surrogate pairs, which cbor-x writes as they are, are replaced: so does it when it reads them."""
    try:
        value = cbor2.loads(data, tag_hook=_plain_tag, semantic_decoders=_TAGS, max_depth=_DEPTH, str_errors="replace")
    except cbor2.CBORError as error:
        raise ValueError(str(error)) from error
    return _whole(value) if b"\xfb" in data else value


def _plain_tag(tag: CBORTag, _immutable: bool) -> Any:
    """A RegExp; any other tag is what it holds, as cbor-x also tags what JSON has plain (errors, typed arrays)."""
    value = tag.value
    is_generic = tag.tag == 27 and isinstance(value, list | tuple) and len(value) == 3
    if is_generic and value[0] == "RegExp" and all(isinstance(part, str) for part in value):
        return RegExp(value[1], value[2])
    return list(value) if isinstance(value, tuple) else value


# No tag may make cycles, share parts (a small packet would unfold into a huge value), or run a parser of other formats.
_UNUSED = (0, 4, 5, 25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 260, 261, 1004, 43000, 55799)
_TAGS: dict[int, Any] = {
    **dict.fromkeys(_UNUSED, lambda value, _immutable: value),
    1: lambda epoch_s, _immutable: as_date(epoch_s, 1000) if isinstance(epoch_s, int | float) else None,
    258: lambda values, _immutable: as_set(values),
}

_NAMES = {kind: [(item.encode_name, item.name) for item in msgspec.structs.fields(kind)] for kind in COMMANDS.values()}


def _write(prepared: Any) -> bytes:
    if type(prepared) not in _NAMES:
        return cbor2.dumps(prepared, datetime_as_timestamp=True)
    fields = ((wire, getattr(prepared, name)) for wire, name in _NAMES[type(prepared)])
    present = [field for field in fields if field[1] is not UNSET]
    members = dict(sorted(present, key=lambda field: type(field[1]) is Raw))
    written = cbor2.dumps(
        members, datetime_as_timestamp=True, default=lambda encoder, encoded: encoder.write(bytes(encoded))
    )
    return b"\xb9" + len(members).to_bytes(2, "big") + written[1:]  # the length as cbor-x writes it: in 16 bits


def _load(data: Any) -> Any:
    return _with_null(data.value if type(data) is Decoded else _loads(bytes(data)))


def _split(data: Any, fields: Mapping[str, bool]) -> dict[str, Any]:
    members = data.value if type(data) is Decoded else _loads(bytes(data))
    if members is None:
        return {}
    if type(members) is not dict:
        raise ValueError("it is not an object")
    return {
        name: Decoded(value, len(data)) if fields[name] else value if type(value) in _SCALARS else _present(value)
        for name in fields
        if name in members and (value := members[name]) is not cbor2.undefined
    }


def _packet(kind: type[Packet], data: bytes) -> Packet:
    return packet_of(kind, _split(data, FIELDS[kind]))


class CBORCodec(Codec):
    """A datetime is a Date, bytes are a Buffer, a set is a Set, an int is a BigInt where a JavaScript number could not
    hold it."""

    name = "CBOR"

    def __init__(self) -> None:
        decoders = {command: partial(_packet, kind) for command, kind in COMMANDS.items()}
        super().__init__(
            decoders, load=_load, prepare=_prepare, write=_write, escape=_well_formed, user_fields=PLAIN_FIELDS
        )

    _split = staticmethod(_split)

    def _text(self, encoded: Decoded) -> Raw:
        return json_text(_present(encoded.value))
