"""JSON, the default serializer: as `JSON.stringify` would write the same values (moleculer protocol §11).

Bytes are Buffers, as JS nodes write them: `{"type":"Buffer","data":[1,2,…]}` (§8.3). A chunk of a stream is nearly a
megabyte of such numbers. Skipping them to find the rest of a packet takes as long as half of reading them, so they are
cut out by searching for their brackets, which numbers do not contain.
"""

import json
from collections.abc import Mapping
from dataclasses import is_dataclass
from datetime import datetime
from functools import cache
from typing import Any

import msgspec
from msgspec import Raw, Struct
from msgspec import inspect as types

from broker.protocol.codecs.base import Codec, ValueDecoder, decoder_in_one_go
from broker.protocol.encoding import UNDECODABLE, UNENCODABLE
from broker.protocol.members import load, split_object
from broker.protocol.packets import COMMANDS, Command, Packet, Request, Response
from broker.protocol.values import holds, holds_bytes, in_utc, no_form, opened, rewriter

__all__ = ["Codec", "JSONCodec", "ValueDecoder", "json_text", "parse_json"]

_DECODER = msgspec.json.Decoder()
_MEMBERS = msgspec.json.Decoder(dict[str, Raw])
_ENCODER = msgspec.json.Encoder(enc_hook=no_form)
_IN_ONE_GO = frozenset({dict, list, str, int, float, bool, type(None), Raw})
_NULL, _EMPTY = Raw(b"null"), Raw(b"{}")

LARGE_BYTES = 16_384
"""Below this a packet is decoded in one go sooner than it is searched for a Buffer."""

HEAD, TAIL = b'{"type":"Buffer","data":[', b"]}"
_JSON_BYTES_A_BYTE = 4  # "255,"
_NUMBERS = msgspec.json.Decoder(list[int])

PLACEHOLDER = Raw(b"-0.000004711e-217")
"""No JS number looks like this one, so a packet that holds it in another place was not cut where it seems."""


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
        return _plain(opened(value))
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


def _escaped(value: object) -> Raw:
    """JSON with every character beyond ASCII escaped, as `JSON.stringify` escapes lone surrogates."""
    return Raw(json.dumps(value, separators=(",", ":"), default=_builtins, allow_nan=False).encode())


def _builtins(value: object) -> object:
    return load(bytes(value)) if isinstance(value, Raw) else msgspec.to_builtins(value)


def parse_json(raw: Raw) -> Any:
    """The value of a JSON text, lone surrogates of JavaScript allowed. Raises one of UNDECODABLE."""
    try:
        return _DECODER.decode(raw)
    except UNDECODABLE:
        return load(bytes(raw))


def cut_buffer(data: bytes) -> tuple[bytes, Raw] | None:
    """A packet without its one large Buffer, and that Buffer; None when there is not exactly one."""
    start = data.find(HEAD)
    if start < 0:
        return None
    first = start + len(HEAD)
    last = data.find(b"]", first)  # single bytes are found many times sooner than longer words
    end = last + len(TAIL)
    if last < 0 or data[last:end] != TAIL or data.find(b"{", first, last) >= 0 or data.find(HEAD, end) >= 0:
        return None
    return b"".join((data[:start], PLACEHOLDER, data[end:])), Raw(data[start:end])


class JSONCodec(Codec):
    """UTF-8 JSON; halves of surrogate pairs are escaped."""

    name = "JSON"

    def __init__(self) -> None:
        decoders = {command: msgspec.json.Decoder(kind).decode for command, kind in COMMANDS.items()}
        super().__init__(decoders, load=parse_json, prepare=_plain, write=_ENCODER.encode, escape=_escaped)

    def decode(self, command: Command, data: bytes) -> Packet:
        if len(data) >= LARGE_BYTES and command in ("REQ", "RES") and (packet := self._decode_cut(command, data)):
            return packet
        try:
            return self._decoders[command](data)
        except UNDECODABLE as error:
            return self._decode_leniently(command, data, error)

    def _decode_cut(self, command: Command, data: bytes) -> Packet | None:
        """A packet whose value is one large Buffer, several times faster; None for any other."""
        parts = cut_buffer(data)
        if parts is None:
            return None
        rest, buffer = parts
        try:
            packet = self._decoders[command](rest)
        except UNDECODABLE:
            return None
        name = "params" if isinstance(packet, Request) else "data"
        if getattr(packet, name) != PLACEHOLDER:
            return None
        setattr(packet, name, buffer)
        return packet

    def _split(self, data: bytes | Raw, fields: Mapping[str, bool]) -> dict[str, Any]:
        try:
            members = _MEMBERS.decode(data)
        except UNDECODABLE:
            members = {name: Raw(member) for name, member in split_object(bytes(data)).items()}
        values = {name: parse_json(members[name]) for name in fields if name in members}
        return values | {name: members[name] for name in values if fields[name]}

    def _text(self, encoded: Raw) -> Raw:
        return encoded

    def encode_with(self, packet: Request | Response, value: object) -> bytes:
        """In one go, unless something in it needs care or cannot be encoded at all."""
        if type(value) in _IN_ONE_GO:
            try:
                plain = _plain(value)
                if packet.meta:
                    packet.meta = _plain(packet.meta)
                if packet.headers:
                    packet.headers = _plain(packet.headers)
                if type(packet) is Response:
                    packet.data = plain
                elif isinstance(packet, Request):
                    packet.params = plain
                return _ENCODER.encode(packet)
            except UNENCODABLE:
                pass
        return super().encode_with(packet, value)

    def encode_value(self, value: object) -> Raw:
        return value if type(value) is Raw else super().encode_value(value)

    def decode_value(self, raw: Raw) -> Any:
        if not raw:
            return None
        try:
            return _DECODER.decode(raw)
        except UNDECODABLE:
            return super().decode_value(raw)

    def chunk_limit(self, room: int) -> int:
        return max(1, (room - len(HEAD + TAIL)) // _JSON_BYTES_A_BYTE)

    def decode_chunk(self, raw: Raw, *, objects: bool) -> Any:
        if memoryview(raw)[: len(HEAD)] != HEAD:
            return super().decode_chunk(raw, objects=objects)
        return bytes(bytearray(_NUMBERS.decode(memoryview(raw)[len(HEAD) - 1 : -1])))  # sooner than by bytes alone

    def value_decoder(self, kind: type[Struct]) -> ValueDecoder:
        return decoder_in_one_go(msgspec.json.Decoder(kind).decode, super().value_decoder(kind), _NULL, _EMPTY)


json_text = JSONCodec().encode_value
"""A user's value as JSON text: what a parameter annotated `msgspec.Raw` gets, whatever the serializer. Raises
MoleculerError `UNSERIALIZABLE`."""
