"""Bytes to packets and back, with decoders built once (moleculer protocol §11).

One serializer serves a whole cluster and nothing in a packet names it, so a node has one codec. Values of the user are
encoded apart from the packet that carries them: an unserialisable result is then the handler's error, not the node's.
In a user's value a `msgspec.Raw` is JSON text, whatever the serializer; in a packet it is what the codec made of it.
"""

import json
from dataclasses import is_dataclass
from datetime import datetime
from functools import cache
from typing import Any, Protocol

import msgspec
from msgspec import UNSET, Raw, Struct
from msgspec import inspect as types

from broker.protocol import buffers, members
from broker.protocol.encoding import (
    UNDECODABLE,
    UNENCODABLE,
    USER_FIELDS,
    chunk_of,
    invalid_packet,
    invalid_value,
    lenient,
    reason,
    rewritten,
    unserializable_packet,
    unserializable_value,
)
from broker.protocol.packets import COMMANDS, Address, Command, Packet, Request, Response
from broker.protocol.typed import TypedReader, holds, holds_bytes, typed
from broker.protocol.values import in_utc, opened, rewriter


class Codec(Protocol):
    """A serializer of Moleculer."""

    name: str

    def decode(self, command: Command, data: bytes) -> Packet:
        """A packet. Raises InvalidPacketDataError, with what is wrong in `data`."""

    def decode_address(self, data: bytes) -> Address | None:
        """Who sent an unusable request or answer, and its id; None when even that is missing."""

    def encode(self, packet: Packet) -> bytes:
        """The bytes of a packet, whose values were encoded before by `encode_value`.

        Raises MoleculerError `UNSERIALIZABLE` for meta, headers or error data that have no form.
        """

    def encode_value(self, value: object) -> Raw:
        """Any value of a user, in which each Raw is JSON text. Raises MoleculerError `UNSERIALIZABLE`."""

    def encode_answer(self, answer: Response, result: object) -> bytes:
        """The bytes of an answer with a result. Raises MoleculerError `UNSERIALIZABLE`."""
        answer.data = self.encode_value(result)
        return self.encode(answer)

    def encode_request(self, request: Request) -> bytes:
        """The bytes of a request whose params are not encoded yet. Raises MoleculerError `UNSERIALIZABLE`."""
        request.params = self.encode_value(request.params)
        return self.encode(request)

    def decode_value(self, raw: Raw) -> Any:
        """A value as plain dicts, lists and scalars, and what else the serializer knows; missing (empty) gives None.

        Raises InvalidPacketDataError for what only now shows to be broken.
        """

    def size(self, raw: Raw) -> int:
        """How many bytes of a message an encoded value takes, on the safe side."""
        return len(raw)

    def chunk_limit(self, room: int) -> int:
        """How many bytes a stream's chunk may have so that, encoded, it never takes more than `room` (§8.3)."""

    def decode_chunk(self, raw: Raw, *, objects: bool) -> Any:
        """A stream's chunk: bytes, or any value in object mode; None where there is none (§8.3).

        Raises ValueError for what is neither, InvalidPacketDataError for what is broken.
        """
        return chunk_of(self.decode_value(raw), objects=objects)

    def value_decoder(self, kind: type[Struct]) -> "ValueDecoder":
        """A decoder of values into `kind`, to be made once and kept. A field of type Raw gets JSON text."""


class ValueDecoder(Protocol):
    """Decodes a value into one Struct type; missing and null are an empty object (§2.3).

    Raises msgspec.ValidationError when it does not fit, InvalidPacketDataError when it is broken.
    """

    def __call__(self, raw: Raw, /) -> Any: ...


def json_text(value: object) -> Raw:
    """A user's value as JSON text: what a parameter annotated `msgspec.Raw` gets, whatever the serializer.

    Raises MoleculerError `UNSERIALIZABLE`.
    """
    if type(value) is Raw:
        return value
    try:
        plain = _plain(value)
        try:
            return Raw(_ENCODER.encode(plain))
        except UnicodeEncodeError:
            return Raw(_dumps(plain))
    except UNENCODABLE as error:
        raise unserializable_value(value, "JSON", error) from error


class JSONCodec(Codec):
    """The default serializer: UTF-8 JSON, as `JSON.stringify` would write the same values."""

    name = "JSON"

    encode_value = staticmethod(json_text)

    def __init__(self) -> None:
        self._decoders = {command: msgspec.json.Decoder(kind) for command, kind in COMMANDS.items()}
        self._address = msgspec.json.Decoder(Address)

    def decode(self, command: Command, data: bytes) -> Packet:
        if len(data) >= buffers.WORTH_CUTTING_BYTES and command in ("REQ", "RES"):
            large = self._decode_cut(command, data)
            if large is not None:
                return large
        try:
            packet: Packet = self._decoders[command].decode(data)
        except UNDECODABLE as error:
            return _decode_loosely(command, data, error)
        return packet

    def _decode_cut(self, command: Command, data: bytes) -> Packet | None:
        """A packet whose value is one large Buffer, several times faster; None when it is not."""
        parts = buffers.cut(data)
        if parts is None:
            return None
        rest, buffer = parts
        try:
            packet = self._decoders[command].decode(rest)
        except UNDECODABLE:
            return None
        if isinstance(packet, Request) and packet.params == _CUT:
            packet.params = buffer
            return packet
        if isinstance(packet, Response) and packet.data == _CUT:
            packet.data = buffer
            return packet
        return None

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
            prepared = rewritten(packet, USER_FIELDS, _plain)
            try:
                return _ENCODER.encode(prepared)
            except UnicodeEncodeError:
                return _encode_by_members(prepared)
        except UNENCODABLE as error:
            raise unserializable_packet(packet, self.name, error) from error

    def encode_request(self, request: Request) -> bytes:
        """In one go, unless something in it needs care or cannot be encoded at all."""
        if type(request.params) in _IN_ONE_GO:
            try:
                request.params = _plain(request.params)
                if request.meta:
                    request.meta = _plain(request.meta)
                if request.headers:
                    request.headers = _plain(request.headers)
                return _ENCODER.encode(request)
            except UNENCODABLE:
                pass
        return Codec.encode_request(self, request)

    def encode_answer(self, answer: Response, result: object) -> bytes:
        """In one go, unless something in it needs care or cannot be encoded at all."""
        if type(result) in _IN_ONE_GO:
            try:
                answer.data = _plain(result)
                if answer.meta:
                    answer.meta = _plain(answer.meta)
                if answer.headers:
                    answer.headers = _plain(answer.headers)
                return _ENCODER.encode(answer)
            except UNENCODABLE:
                pass
        return Codec.encode_answer(self, answer, result)

    def decode_value(self, raw: Raw) -> Any:
        if not raw:
            return None
        try:
            return _DECODER.decode(raw)
        except UNDECODABLE:
            pass
        try:
            return members.load(bytes(raw))
        except UNDECODABLE as error:
            raise invalid_value(raw, error) from None

    def chunk_limit(self, room: int) -> int:
        return max(1, (room - _BUFFER_FRAME) // _JSON_BYTES_A_BYTE)

    def decode_chunk(self, raw: Raw, *, objects: bool) -> Any:
        if buffers.is_buffer(raw):
            return buffers.buffer_bytes(raw)
        return super().decode_chunk(raw, objects=objects)

    def value_decoder(self, kind: type[Struct]) -> ValueDecoder:
        decoder = msgspec.json.Decoder(kind)
        with_buffers = _decoder_of_buffers(kind)

        def decode(raw: Raw) -> Any:
            try:
                return decoder.decode(raw if raw and raw != _NULL else b"{}")
            except msgspec.ValidationError:
                if with_buffers is not None and buffers.MARK in bytes(raw):
                    return with_buffers(raw)
                raise
            except UNDECODABLE:
                pass
            try:
                return typed(_members(bytes(raw), kind), kind)
            except msgspec.ValidationError:
                raise
            except UNDECODABLE:
                self.decode_value(raw)  # raises when it is not JSON at all
                raise msgspec.ValidationError("Expected `object`") from None

        return decode


def _decoder_of_buffers(kind: type[Struct]) -> ValueDecoder | None:
    """A decoder for params with bytes as a Buffer of JS, not as base64; None for a type without bytes."""
    binary = {field.encode_name for field in msgspec.structs.fields(kind) if holds_bytes(field.type)}
    if not binary:
        return None
    reader = TypedReader(kind)
    slices = msgspec.json.Decoder(reader.slices)

    def value(member: tuple[str, Raw]) -> Any:
        plain = parse_json(member[1])
        return buffers.with_bytes(plain) if member[0] in binary else plain

    def decode(raw: Raw) -> Any:
        members = {name: (name, slice) for name, slice in reader.members(slices.decode(raw)).items()}
        return reader.read(members, value, lambda member: member[1])

    return decode


def parse_json(raw: Raw) -> Any:
    """The value of a JSON text, lone surrogates of JavaScript allowed. Raises one of UNDECODABLE."""
    try:
        return _DECODER.decode(raw)
    except UNDECODABLE:
        return members.load(bytes(raw))


def _decode_loosely(command: Command, data: bytes, error: Exception) -> Packet:
    """A packet that does not fit its type, as JS nodes take it; `error` says why it does not."""
    try:
        packet: Packet = lenient(COMMANDS[command], _members(data, COMMANDS[command]))
    except RecursionError as too_deep:
        raise invalid_packet(command, data, reason(too_deep)) from None
    except UNDECODABLE:
        raise invalid_packet(command, data, str(error)) from None
    return packet


_IN_ONE_GO = frozenset({dict, list, str, int, float, bool, type(None), Raw})
_CUT = Raw(buffers.PLACEHOLDER)
_NULL = Raw(b"null")
_BUFFER_FRAME = len('{"type":"Buffer","data":[]}')
_JSON_BYTES_A_BYTE = 4  # "255,"


def _leaf(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return {"type": "Buffer", "data": list(bytes(value))}
    if isinstance(value, datetime):
        return in_utc(value).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, dict):
        return _plain(dict(value))
    if isinstance(value, tuple | list | set | frozenset):
        return _plain(list(value))
    kind: type = type(value)
    if (isinstance(value, Struct) or is_dataclass(kind)) and _holds_others(kind):
        return _plain(opened(value, parse_json))
    return value


@cache
def _holds_others(kind: type) -> bool:
    """Whether there may be bytes or dates in a record, which msgspec writes in its own way."""
    try:
        return holds_bytes(kind) or holds(kind, types.DateTimeType, types.AnyType)
    except (TypeError, NameError):  # a type that msgspec does not know, or that only a type checker does
        return True


_plain = rewriter(frozenset({str, int, float, bool, type(None), Raw}), _leaf)
"""The value with bytes as Buffer objects and datetimes as JavaScript prints them."""


def _unknown_type(value: object) -> object:
    raise TypeError(f"objects of type {type(value).__name__} have no JSON form")


_DECODER = msgspec.json.Decoder()
_ENCODER = msgspec.json.Encoder(enc_hook=_unknown_type)


def _members(data: bytes, kind: type[Struct]) -> dict[str, Any]:
    """The members of JSON that msgspec refuses: `Raw` fields keep their bytes, the others go through json."""
    wanted = {item.encode_name: item for item in msgspec.structs.fields(kind)}
    values: dict[str, Any] = {}
    for name, value in members.split_object(data).items():
        if name not in wanted:
            continue
        if wanted[name].type is Raw:
            members.check(value)
            values[name] = Raw(value)
        else:
            values[name] = members.load(value)
    return values


def _encode_by_members(packet: Packet) -> bytes:
    """A packet with lone surrogates in its meta, headers or error, each escaped as `JSON.stringify` does."""
    parts = []
    for item in msgspec.structs.fields(packet):
        value = getattr(packet, item.name)
        if value is UNSET:
            continue
        encoded = bytes(value) if type(value) is Raw else _dumps(_plain(value))
        parts.append(json.dumps(item.encode_name).encode() + b":" + encoded)
    return b"{" + b",".join(parts) + b"}"


def _dumps(value: object) -> bytes:
    """JSON with every character beyond ASCII escaped, lone surrogates too."""
    return json.dumps(value, separators=(",", ":"), default=_builtins, allow_nan=False).encode()


def _builtins(value: object) -> object:
    return members.load(bytes(value)) if isinstance(value, Raw) else msgspec.to_builtins(value)
