"""MessagePack, as msgpack5 (`MsgPack`) and notepack.io (`Notepack`) of JS nodes write it (moleculer protocol §11)."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Raw, Struct
from msgspec import inspect as types

from broker.protocol.codecs.base import Codec, ValueDecoder, decoder_in_one_go
from broker.protocol.codecs.json import json_text, parse_json
from broker.protocol.packets import COMMANDS
from broker.protocol.values import holds, in_utc, no_form, opened, rewriter, text_key, well_formed

_MIN, _MAX = -(2**63), 2**64 - 1
_SIMPLE: frozenset[type] = frozenset({float, bool, type(None), bytes, bytearray, memoryview})


def _extension(code: int, data: memoryview) -> Any:
    """msgpack5 writes undefined as extension 0; others are the bytes they hold. Dates are not extensions here."""
    return None if code == 0 else bytes(data)


def _leaf(value: Any) -> Any:
    match value:
        case datetime():
            return in_utc(value)
        case set() | frozenset():
            return _prepare(list(value))
        case Raw():
            return _as_javascript(parse_json(value))
        case _:
            return _prepare(opened(value))


_prepare = rewriter(_SIMPLE | {str, int}, _leaf, text_key)


def _javascript_number(value: float | int) -> float | int:
    """Whole numbers as integers where the format has them, which takes less room, else as fractions."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**53 and value else value
    return value if _MIN <= value <= _MAX else float(value)


_as_javascript = rewriter(frozenset({str, bool, type(None)}), _javascript_number)
"""JSON text as the values that a JS node would send in its place."""

_well_formed = rewriter(
    _SIMPLE | {int, datetime}, lambda value: well_formed(value) if isinstance(value, str) else value
)

_ENCODER = msgspec.msgpack.Encoder(enc_hook=no_form)
_DECODER = msgspec.msgpack.Decoder(ext_hook=_extension)
_MEMBERS = msgspec.msgpack.Decoder(dict[Any, Raw])
_NIL, _EMPTY = Raw(b"\xc0"), Raw(b"\x80")


class MsgPackCodec(Codec):
    """A datetime is a Date, bytes are a Buffer; a set goes out as an array."""

    name = "MsgPack"

    def __init__(self) -> None:
        decoders = {
            command: msgspec.msgpack.Decoder(kind, ext_hook=_extension).decode for command, kind in COMMANDS.items()
        }
        super().__init__(decoders, load=_DECODER.decode, prepare=_prepare, write=_ENCODER.encode, escape=_well_formed)

    def _split(self, data: bytes | Raw, fields: Mapping[str, bool]) -> dict[str, Any]:
        members = {} if data == _NIL else _MEMBERS.decode(data)
        return {
            name: member if fields[name] else _DECODER.decode(member)
            for name, member in members.items()
            if name in fields
        }

    def _text(self, encoded: Raw) -> Raw:
        return json_text(self.decode_value(encoded))

    def value_decoder(self, kind: type[Struct]) -> ValueDecoder:
        by_members = super().value_decoder(kind)
        if holds(kind, types.RawType):
            return by_members
        decoder = msgspec.msgpack.Decoder(kind, ext_hook=_extension)
        return decoder_in_one_go(decoder.decode, by_members, _NIL, _EMPTY)


class NotepackCodec(MsgPackCodec):
    """The same format: JS nodes write fractions differently in the two, and read both."""

    name = "Notepack"
