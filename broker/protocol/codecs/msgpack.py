"""MessagePack, as msgpack5 (`MsgPack`) and notepack.io (`Notepack`) of JS nodes write it (moleculer protocol §11)."""

from datetime import datetime
from typing import Any

import msgspec
from msgspec import Raw, Struct

from broker.protocol.codecs.json import Codec, ValueDecoder, json_text, parse_json
from broker.protocol.encoding import (
    PLAIN_FIELDS,
    RAW_FIELDS,
    UNDECODABLE,
    UNENCODABLE,
    USER_FIELDS,
    invalid_packet,
    invalid_value,
    lenient,
    reason,
    rewritten,
    unserializable_packet,
    unserializable_value,
)
from broker.protocol.packets import COMMANDS, Address, Command, Packet
from broker.protocol.typed import TypedReader, typed
from broker.protocol.values import in_utc, opened, rewriter, text_key, well_formed

_HEADER = 5  # of a bin 32
_MIN, _MAX = -(2**63), 2**64 - 1


class MsgPackCodec(Codec):
    """Both names are one format: they differ in how JS nodes write fractions, and read each other.

    A datetime is a Date, bytes are a Buffer; a set goes out as an array.
    """

    def __init__(self, name: str = "MsgPack") -> None:
        self.name = name
        self._decoders = {
            command: msgspec.msgpack.Decoder(kind, ext_hook=_extension) for command, kind in COMMANDS.items()
        }
        self._address = msgspec.msgpack.Decoder(Address, ext_hook=_extension)
        self._any = msgspec.msgpack.Decoder(ext_hook=_extension)
        self._members = msgspec.msgpack.Decoder(dict[str, Raw])

    def decode(self, command: Command, data: bytes) -> Packet:
        try:
            packet: Packet = self._decoders[command].decode(data)
        except UNDECODABLE as error:
            try:
                packet = lenient(COMMANDS[command], self._split(data, RAW_FIELDS[COMMANDS[command]]))
            except UNDECODABLE:
                raise invalid_packet(command, data, reason(error)) from None
        return packet

    def _split(self, data: bytes, raw: tuple[str, ...]) -> dict[str, Any]:
        members = self._members.decode(data)
        return {name: value if name in raw else self._any.decode(value) for name, value in members.items()}

    def decode_address(self, data: bytes) -> Address | None:
        try:
            return self._address.decode(data)
        except UNDECODABLE:
            return None

    def encode(self, packet: Packet) -> bytes:
        try:
            prepared = rewritten(packet, USER_FIELDS, _prepare)
            try:
                return _ENCODER.encode(prepared)
            except UnicodeEncodeError:
                return _ENCODER.encode(rewritten(prepared, PLAIN_FIELDS, _well_formed))
        except UNENCODABLE as error:
            raise unserializable_packet(packet, self.name, error) from error

    def encode_value(self, value: object) -> Raw:
        try:
            prepared = _prepare(value)
            try:
                return Raw(_ENCODER.encode(prepared))
            except UnicodeEncodeError:
                return Raw(_ENCODER.encode(_well_formed(prepared)))
        except UNENCODABLE as error:
            raise unserializable_value(value, self.name, error) from error

    def decode_value(self, raw: Raw) -> Any:
        if not raw:
            return None
        try:
            return self._any.decode(raw)
        except UNDECODABLE as error:
            raise invalid_value(raw, error) from None

    def chunk_limit(self, room: int) -> int:
        return max(1, room - _HEADER)

    def value_decoder(self, kind: type[Struct]) -> ValueDecoder:
        decoder = msgspec.msgpack.Decoder(kind, ext_hook=_extension)
        reader = TypedReader(kind)
        slices = msgspec.msgpack.Decoder(reader.slices)

        def text(raw: Raw) -> Raw:
            return json_text(self.decode_value(raw))

        def decode(raw: Raw) -> Any:
            if not raw or raw == _NIL:
                raw = _EMPTY
            try:
                if reader.has_raw:
                    return reader.read(reader.members(slices.decode(raw)), self.decode_value, text)
                try:
                    return decoder.decode(raw)
                except msgspec.ValidationError:  # it takes no text for bytes, nor for a number as a key
                    return typed(self.decode_value(raw), kind)
            except msgspec.ValidationError:
                raise
            except UNDECODABLE as error:
                raise invalid_value(raw, error) from None

        return decode


def _leaf(value: Any) -> Any:
    match value:
        case datetime():
            return in_utc(value)
        case set() | frozenset():
            return _prepare(list(value))
        case Raw():
            return _from_json(value)
        case _:
            return _prepare(opened(value, _from_json))


_SIMPLE: frozenset[type] = frozenset({float, bool, type(None), bytes, bytearray, memoryview})
_prepare = rewriter(_SIMPLE | {str, int}, _leaf, text_key)


def _from_json(raw: Raw) -> Any:
    """JSON text as the values a JS node would send in its place."""
    return _as_javascript(parse_json(raw))


def _javascript_number(value: float | int) -> float | int:
    """Whole numbers as integers where the format has them, which takes less room, else as fractions."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**53 and value else value
    return value if _MIN <= value <= _MAX else float(value)


_as_javascript = rewriter(frozenset({str, bool, type(None)}), _javascript_number)


def _replaced(value: Any) -> Any:
    return well_formed(value) if isinstance(value, str) else value


_well_formed = rewriter(_SIMPLE | {int, datetime}, _replaced)


def _extension(code: int, data: memoryview) -> Any:
    """msgpack5 writes undefined as extension 0; others are the bytes they hold. Dates are not extensions here."""
    return None if code == 0 else bytes(data)


def _unknown_type(value: object) -> object:
    raise TypeError(f"objects of type {type(value).__name__} have no MessagePack form")


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_unknown_type)
_NIL = Raw(b"\xc0")
_EMPTY = Raw(b"\x80")
