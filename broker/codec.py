"""Bytes to packets and back, with decoders built once (moleculer protocol §11).

One serializer serves a whole cluster and nothing in a packet names it, so a node has one codec. Values of the user are
encoded apart from the packet that carries them: an unserialisable result is then the handler's error, not the node's.
"""

import json
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec
from msgspec import Raw, Struct

from broker import members
from broker.errors import BrokerOptionsError, InvalidPacketDataError, MoleculerError
from broker.packets import COMMANDS, Address, Command, Packet

UNDECODABLE = (msgspec.MsgspecError, ValueError, RecursionError)
"""What msgspec and json raise for bytes they cannot read; UnicodeDecodeError and JSONDecodeError are ValueErrors."""

UNENCODABLE = (*UNDECODABLE, TypeError, OverflowError)

UNSERIALIZABLE = "UNSERIALIZABLE"
"""The type of the error for what has no form on the wire."""


class Codec(Protocol):
    """A serializer of Moleculer."""

    name: str

    def decode(self, command: Command, data: bytes) -> Packet:
        """A packet. Raises InvalidPacketDataError, with what is wrong in `data`."""

    def decode_address(self, data: bytes) -> Address | None:
        """Who sent an unusable request, so that it can be answered; None when even that is missing."""

    def encode(self, packet: Packet) -> bytes:
        """The bytes of a packet, whose values were encoded before by `encode_value`.

        Raises MoleculerError `UNSERIALIZABLE` for meta, headers or error data that have no form.
        """

    def encode_value(self, value: object) -> Raw:
        """Any value of a user. A Raw is taken as encoded. Raises MoleculerError `UNSERIALIZABLE`."""

    def decode_value(self, raw: Raw) -> Any:
        """A value as plain dicts, lists and scalars; missing (empty) gives None.

        Raises InvalidPacketDataError for bytes that are none, such as text that is not UTF-8.
        """

    def chunk_limit(self, room: int) -> int:
        """How many bytes a stream's chunk may have so that, encoded, it never takes more than `room` (§8.3)."""

    def decode_chunk(self, raw: Raw, *, objects: bool) -> Any:
        """A stream's chunk: bytes, or any value in object mode. Raises ValueError for what is neither (§8.3)."""

    def value_decoder(self, kind: type[Struct]) -> "ValueDecoder":
        """A decoder of values into `kind`, to be made once and kept."""


class ValueDecoder(Protocol):
    """Decodes a value into one Struct type. Raises msgspec.ValidationError when it does not fit."""

    def __call__(self, raw: Raw, /) -> Any: ...


class JSONCodec:
    """The default serializer: UTF-8 JSON, as `JSON.stringify` would write the same values."""

    name = "JSON"

    def __init__(self) -> None:
        self._decoders = {command: msgspec.json.Decoder(kind) for command, kind in COMMANDS.items()}
        self._address = msgspec.json.Decoder(Address)
        self._any = msgspec.json.Decoder()
        self._encoder = msgspec.json.Encoder(enc_hook=_unknown_type)

    def decode(self, command: Command, data: bytes) -> Packet:
        try:
            packet: Packet = self._decoders[command].decode(data)
        except UNDECODABLE as error:
            try:
                packet = _decode_by_members(data, COMMANDS[command])
            except RecursionError as too_deep:
                raise _invalid(command, data, _reason(too_deep)) from None
            except UNDECODABLE:
                raise _invalid(command, data, str(error)) from None
        return packet

    def decode_address(self, data: bytes) -> Address | None:
        try:
            return self._address.decode(data)
        except UNDECODABLE:
            pass
        try:
            fields = members.split_object(data)
            known = {name: fields[name] for name in ("sender", "id", "ver") if name in fields}
            return msgspec.convert({name: members.load(value) for name, value in known.items()}, Address)
        except UNDECODABLE:
            return None

    def encode(self, packet: Packet) -> bytes:
        try:
            try:
                return self._encoder.encode(packet)
            except UnicodeEncodeError:
                return _encode_by_members(packet)
        except UNENCODABLE as error:
            raise MoleculerError(
                f"Meta, headers or the data of an error cannot be sent as JSON: {error}",
                500,
                UNSERIALIZABLE,
                {"type": type(packet).__name__},
            ) from error

    def encode_value(self, value: object) -> Raw:
        if type(value) is Raw:
            return value
        try:
            plain = _plain(value)
            try:
                return Raw(self._encoder.encode(plain))
            except UnicodeEncodeError:
                return Raw(_dumps(plain))
        except UNENCODABLE as error:
            raise MoleculerError(
                f"The value cannot be sent as JSON: {error}", 500, UNSERIALIZABLE, {"type": type(value).__name__}
            ) from error

    def decode_value(self, raw: Raw) -> Any:
        if not raw:
            return None
        try:
            return self._any.decode(raw)
        except UNDECODABLE:
            pass
        try:
            return members.load(bytes(raw))
        except UNDECODABLE as error:
            raise InvalidPacketDataError({"command": "value", "reason": _reason(error), "size": len(raw)}) from None

    def chunk_limit(self, room: int) -> int:
        return max(1, (room - _BUFFER_FRAME) // _JSON_BYTES_A_BYTE)

    def decode_chunk(self, raw: Raw, *, objects: bool) -> Any:
        value = self.decode_value(raw)
        if isinstance(value, dict) and value.get("type") == "Buffer":
            return _buffer(value.get("data"))
        if objects:
            return value
        if isinstance(value, str):  # a JS stream of text in binary mode
            return value.encode("utf-8", "surrogatepass")
        raise ValueError(f"a chunk of bytes was expected, not {type(value).__name__}")

    def value_decoder(self, kind: type[Struct]) -> ValueDecoder:
        decoder = msgspec.json.Decoder(kind)

        def decode(raw: Raw) -> Any:
            try:
                return decoder.decode(raw)
            except msgspec.ValidationError:
                raise
            except UNDECODABLE:
                pass
            try:
                return _decode_by_members(bytes(raw), kind)
            except msgspec.ValidationError:
                raise
            except UNDECODABLE:
                self.decode_value(raw)  # raises when it is no JSON at all
                raise msgspec.ValidationError("Expected `object`") from None

        return decode


CODECS: dict[str, type[JSONCodec]] = {"json": JSONCodec}


def make_codec(serializer: str) -> Codec:
    """The codec of a `serializer` option. Raises BrokerOptionsError for a name that is not known."""
    try:
        return CODECS[serializer.lower()]()
    except KeyError:
        known = ", ".join(kind.name for kind in CODECS.values())
        raise BrokerOptionsError(f"The serializer '{serializer}' is not known. Known are: {known}.") from None


_BUFFER_FRAME = len('{"type":"Buffer","data":[]}')
_JSON_BYTES_A_BYTE = 4  # "255,"


def _buffer(data: object) -> bytes:
    """The bytes of a JS Buffer object. Text in `data` is UTF-8, not base64 (§8.3)."""
    if isinstance(data, str):
        return data.encode("utf-8", "surrogatepass")
    if isinstance(data, list):
        try:
            return bytes(data)
        except TypeError as error:
            raise ValueError("the bytes of a Buffer are numbers") from error
    raise ValueError("a Buffer has a list of numbers as its data")


_SCALARS = frozenset({str, int, float, bool, type(None), Raw})


def _plain(value: Any) -> Any:
    """The value with bytes as Buffer objects and datetimes as JavaScript prints them; itself when there is none."""
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is dict:
        if all(type(item) in _SCALARS for item in value.values()):
            return value
        return {key: _plain(item) for key, item in value.items()}
    if kind is list or kind is tuple:
        return value if all(type(item) in _SCALARS for item in value) else [_plain(item) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return {"type": "Buffer", "data": list(bytes(value))}
    if isinstance(value, datetime):
        moment = value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return value


def _unknown_type(value: object) -> object:
    raise TypeError(f"objects of type {type(value).__name__} have no JSON form")


def _reason(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _invalid(command: Command, data: bytes, reason: str) -> InvalidPacketDataError:
    return InvalidPacketDataError({"command": command, "reason": reason, "size": len(data)})


def _decode_by_members(data: bytes, kind: type[Struct]) -> Any:
    """A Struct from JSON that msgspec refuses: `Raw` fields keep their bytes, the others go through json."""
    wanted = {item.encode_name: item for item in msgspec.structs.fields(kind)}
    values: dict[str, Any] = {}
    for name, value in members.split_object(data).items():
        if name not in wanted:
            continue
        if wanted[name].type is Raw:
            members.check(value)  # a document may be deeper than a recursive parser goes; who decodes it will see
            values[name] = Raw(value)
        else:
            values[name] = members.load(value)
    return msgspec.convert(values, kind)


def _encode_by_members(packet: Packet) -> bytes:
    """A packet with lone surrogates in its meta, headers or error, each escaped as `JSON.stringify` does."""
    parts = []
    for item in msgspec.structs.fields(packet):
        value = getattr(packet, item.name)
        if value is msgspec.UNSET:
            continue
        encoded = bytes(value) if type(value) is Raw else _dumps(_plain(value))
        parts.append(json.dumps(item.encode_name).encode() + b":" + encoded)
    return b"{" + b",".join(parts) + b"}"


def _dumps(value: object) -> bytes:
    """JSON with every character beyond ASCII escaped, lone surrogates too."""
    return json.dumps(value, separators=(",", ":"), default=_builtins, allow_nan=False).encode()


def _builtins(value: object) -> object:
    return members.load(bytes(value)) if isinstance(value, Raw) else msgspec.to_builtins(value)
