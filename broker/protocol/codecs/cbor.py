"""CBOR, as the package cbor-x of JS nodes writes and reads it (protocol §11). Needs the package cbor2."""

from datetime import UTC, datetime, timedelta
from typing import Any, cast

import cbor2
import msgspec
from cbor2 import CBORTag
from msgspec import UNSET, Raw, Struct

from broker.protocol.codecs.json import Codec, ValueDecoder, json_text, parse_json
from broker.protocol.encoding import (
    RAW_FIELDS,
    UNDECODABLE,
    UNENCODABLE,
    invalid_packet,
    invalid_value,
    lenient,
    reason,
    unserializable_packet,
    unserializable_value,
)
from broker.protocol.packets import COMMANDS, Address, Command, Packet
from broker.protocol.typed import TypedReader
from broker.protocol.values import SAFE_INTEGER, RegExp, in_utc, opened, rewriter, text_key, well_formed

_HEADER = 5  # of a byte string with a length of 32 bits
_INT32 = 2**32
_DEPTH = 900  # what Python can go through, as it can JSON


class Decoded:
    """A value of a packet, decoded with it: what is nested in CBOR cannot be cut out of it. Its length is that of the
    packet, which is on the safe side."""

    __slots__ = ("_size", "_value")

    def __init__(self, value: Any, size: int) -> None:
        self._value = value
        self._size = size

    @property
    def value(self) -> Any:
        """With undefined as None."""
        return _defined(self._value)

    @property
    def members(self) -> Any:
        """Without members that are undefined: JavaScript means them to be absent."""
        return _present(self._value)

    def __len__(self) -> int:
        return self._size


class CBORCodec(Codec):
    """A datetime is a Date, bytes are a Buffer, a set is a Set, an int is a BigInt where a JavaScript number could not
    hold it."""

    name = "CBOR"

    def decode(self, command: Command, data: bytes) -> Packet:
        kind = COMMANDS[command]
        try:
            read = _loads(data)
            if not isinstance(read, dict):
                raise ValueError("it is not an object")
            fields = {name: value for name, value in read.items() if value is not cbor2.undefined}
            values = {name: fields.pop(name) for name in RAW_FIELDS[kind] if name in fields}
            packet: Packet = _packet(kind, _defined(fields))
        except _UNDECODABLE as error:
            raise invalid_packet(command, data, reason(error)) from None
        for name, value in values.items():
            setattr(packet, name, Decoded(value, len(data)))
        return packet

    def decode_address(self, data: bytes) -> Address | None:
        try:
            return msgspec.convert(_defined(_loads(data)), Address)
        except _UNDECODABLE:
            return None

    def encode(self, packet: Packet) -> bytes:
        fields = {field.encode_name: getattr(packet, field.name) for field in msgspec.structs.fields(packet)}
        encoded = {name: value for name, value in fields.items() if type(value) is Raw}
        plain = {name: value for name, value in fields.items() if name not in encoded and value is not UNSET}
        try:
            parts = [_dumps(part) for pair in plain.items() for part in pair]
        except _UNENCODABLE as error:
            raise unserializable_packet(packet, self.name, error) from error
        parts += [part for name, value in encoded.items() for part in (_dumps(name), bytes(value))]
        return b"\xb9" + (len(plain) + len(encoded)).to_bytes(2, "big") + b"".join(parts)

    def encode_value(self, value: object) -> Raw:
        try:
            return Raw(_dumps(value))
        except _UNENCODABLE as error:
            raise unserializable_value(value, self.name, error) from error

    def decode_value(self, raw: Raw) -> Any:
        if isinstance(raw, Decoded):
            return raw.value
        if not raw:
            return None
        try:
            return _defined(_loads(bytes(raw)))
        except _UNDECODABLE as error:
            raise invalid_value(raw, error) from None

    def chunk_limit(self, room: int) -> int:
        return max(1, room - _HEADER)

    def value_decoder(self, kind: type[Struct]) -> ValueDecoder:
        reader = TypedReader(kind)

        def decode(raw: Raw) -> Any:
            value = raw.members if isinstance(raw, Decoded) else self.decode_value(raw)
            members = {} if value is None else value
            if not isinstance(members, dict):
                return msgspec.convert(members, kind)  # raises, with what was expected
            return reader.read(reader.known(members), lambda member: member, json_text)

        return decode


def _packet(kind: type[Packet], fields: dict[str, Any]) -> Any:
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        try:
            return lenient(kind, fields)
        except msgspec.ValidationError:
            raise error from None


_UNDECODABLE = (*UNDECODABLE, cbor2.CBORError)
_UNENCODABLE = (*UNENCODABLE, cbor2.CBORError)


def _dumps(value: object) -> bytes:
    prepared = _prepare(value)
    try:
        return cbor2.dumps(prepared, datetime_as_timestamp=True)
    except UnicodeEncodeError:
        return cbor2.dumps(_well_formed(prepared), datetime_as_timestamp=True)


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
            return _from_json(value)
        case CBORTag():
            return value
        case _:
            return _prepare(opened(value, _from_json))


_prepare = rewriter(frozenset({str, float, bool, type(None), bytes}), _leaf, text_key)


def _from_json(raw: Raw) -> Any:
    """JSON text as the values a JS node would send in its place: it has no BigInt."""
    return _as_javascript(parse_json(raw))


def _javascript_number(value: float | int) -> float | int:
    return value if isinstance(value, float) or -_INT32 <= value < _INT32 else float(value)


_as_javascript = rewriter(frozenset({str, bool, type(None)}), _javascript_number)


def _replaced(value: Any) -> Any:
    if isinstance(value, str):
        return well_formed(value)
    return CBORTag(value.tag, _well_formed(value.value)) if isinstance(value, CBORTag) else value


_well_formed = rewriter(frozenset({int, float, bool, type(None), bytes, datetime}), _replaced)


def _loads(data: bytes) -> Any:
    """Halves of surrogate pairs, which cbor-x writes as they are, are replaced: so does it when it reads them."""
    value = cbor2.loads(data, tag_hook=_plain_tag, semantic_decoders=_TAGS, max_depth=_DEPTH, str_errors="replace")
    return _whole(value) if b"\xfb" in data else value


_SIMPLE: frozenset[type] = frozenset({str, int, bool, type(None), bytes, datetime})


def _whole_leaf(value: Any) -> Any:
    """As integers the whole numbers that cbor-x writes as fractions: those beyond 32 bits."""
    is_whole = isinstance(value, float) and value.is_integer() and _INT32 <= abs(value) <= SAFE_INTEGER
    return int(value) if is_whole else value


_whole = rewriter(_SIMPLE, _whole_leaf)
_defined = rewriter(_SIMPLE | {float}, lambda value: None if value is cbor2.undefined else value)


def _present(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _present(item) for name, item in value.items() if item is not cbor2.undefined}
    return [_present(item) for item in value] if isinstance(value, list) else _defined(value)


def _plain_tag(tag: CBORTag, _immutable: bool) -> Any:
    """A RegExp; any other tag is what it holds, as cbor-x also tags what JSON has plain (errors, typed arrays)."""
    value = tag.value
    is_generic = tag.tag == 27 and isinstance(value, list | tuple) and len(value) == 3
    if is_generic and value[0] == "RegExp" and all(isinstance(part, str) for part in value):
        return RegExp(value[1], value[2])
    return list(value) if isinstance(value, tuple) else value


def _date(epoch_s: Any, _immutable: bool) -> Any:
    """None for an invalid date; the number itself for a year that Python has not."""
    if not isinstance(epoch_s, int | float) or epoch_s != epoch_s:
        return None
    try:
        return _EPOCH + timedelta(seconds=epoch_s)
    except OverflowError:
        return epoch_s


def _set(values: Any, _immutable: bool) -> Any:
    """A set, or a list where an element has no hash."""
    try:
        return set(values)
    except TypeError:
        return values


def _untagged(value: Any, _immutable: bool) -> Any:
    return value


# No tag may make cycles, share parts (a small packet would unfold into a huge value), or run a parser of other formats.
_UNUSED = (0, 4, 5, 25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 260, 261, 1004, 43000, 55799)
_TAGS = cast("dict[int, Any]", {**dict.fromkeys(_UNUSED, _untagged), 1: _date, 258: _set})
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
