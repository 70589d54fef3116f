"""What all serializers do alike, with decoders built once (moleculer protocol §11).

One serializer serves a whole cluster and nothing in a packet names it, so a node has one codec. Values of the user are
encoded apart from the packet that carries them: an unserialisable result is then the handler's error, not the node's.
In a user's value a `msgspec.Raw` is JSON text, whatever the serializer; in a packet it is what the codec made of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec import Raw, Struct
from msgspec import inspect as types

from broker.protocol.encoding import (
    FIELDS,
    PLAIN_FIELDS,
    UNDECODABLE,
    UNENCODABLE,
    USER_FIELDS,
    chunk_of,
    encoded_fields,
    invalid,
    lenient_packet_of,
    rewritten,
    unserializable,
)
from broker.protocol.packets import COMMANDS, Address, Command, Packet, Request, Response
from broker.protocol.values import Rewrite, holds, holds_bytes, typed, with_bytes

_BINARY_HEADER = 5  # of a byte string with a length of 32 bits


ValueDecoder = Callable[[Raw], Any]
"""Decodes a value into one Struct type; missing and null are an empty object (§2.3).

Raises msgspec.ValidationError when it does not fit, InvalidPacketDataError when it is broken."""


class Codec(ABC):
    """A serializer of Moleculer: packets and values of users to bytes and back."""

    name: str

    def __init__(
        self,
        decoders: Mapping[Command, Callable[[bytes], Packet]],
        *,
        load: Callable[[Raw], Any],
        prepare: Rewrite,
        write: Callable[[Any], bytes],
        escape: Rewrite,
        user_fields: Mapping[type[Packet], tuple[str, ...]] = USER_FIELDS,
    ) -> None:
        """What one serializer does in its own way.

        `decoders` read packets and `load` reads a value; they raise one of UNDECODABLE. `prepare` turns a user's value,
        and the `user_fields` of a packet, into what `write` takes. `write` raises UnicodeEncodeError for lone
        surrogates, which `escape` replaces by what it takes, and one of UNENCODABLE for anything else.
        """
        self._decoders = decoders
        self._load = load
        self._prepare = prepare
        self._write = write
        self._escape = escape
        self._user_fields = user_fields

    @abstractmethod
    def _split(self, data: bytes | Raw, fields: Mapping[str, bool]) -> dict[str, Any]:
        """The members of an object that `fields` names, decoded, or as they are encoded where it says so. Raises one of
        UNDECODABLE."""

    @abstractmethod
    def _text(self, encoded: Any) -> Raw:
        """An encoded member as JSON text."""

    def decode(self, command: Command, data: bytes) -> Packet:
        """A packet. Raises InvalidPacketDataError, with what is wrong in `data`."""
        try:
            return self._decoders[command](data)
        except UNDECODABLE as error:
            return self._decode_leniently(command, data, error)

    def _decode_leniently(self, command: Command, data: bytes, refusal: Exception) -> Packet:
        kind = COMMANDS[command]
        try:
            return lenient_packet_of(kind, self._split(data, FIELDS[kind]))
        except UNDECODABLE as error:
            raise invalid(command, data, error if isinstance(error, RecursionError) else refusal) from None

    def decode_address(self, data: bytes) -> Address | None:
        """Who sent an unusable request or answer, and its id; None when even that is missing."""
        try:
            return msgspec.convert(self._split(data, FIELDS[Address]), Address)
        except UNDECODABLE:
            return None

    def encode(self, packet: Packet) -> bytes:
        """The bytes of a packet, whose values were encoded before by `encode_value`.

        Raises MoleculerError `UNSERIALIZABLE` for meta, headers or error data that have no form.
        """
        try:
            prepared = rewritten(packet, self._user_fields, self._prepare)
            try:
                return self._write(prepared)
            except UnicodeEncodeError:
                return self._write(rewritten(prepared, PLAIN_FIELDS, self._escape))
        except UNENCODABLE as error:
            raise unserializable(packet, self.name, error) from error

    def encode_with(self, packet: Request | Response, value: object) -> bytes:
        """The bytes of a request with params, or of an answer with data, that are not encoded yet.

        Raises MoleculerError `UNSERIALIZABLE`.
        """
        encoded = self.encode_value(value)
        if type(packet) is Response:
            packet.data = encoded
        elif isinstance(packet, Request):
            packet.params = encoded
        return self.encode(packet)

    def encode_value(self, value: object) -> Raw:
        """Any value of a user, in which each Raw is JSON text. Raises MoleculerError `UNSERIALIZABLE`."""
        try:
            prepared = self._prepare(value)
            try:
                return Raw(self._write(prepared))
            except UnicodeEncodeError:
                return Raw(self._write(self._escape(prepared)))
        except UNENCODABLE as error:
            raise unserializable(value, self.name, error) from error

    def decode_value(self, raw: Raw) -> Any:
        """A value as plain dicts, lists and scalars, and what else the serializer knows; missing (empty) gives None.

        Raises InvalidPacketDataError for what only now shows to be broken.
        """
        if not raw:
            return None
        try:
            return self._load(raw)
        except UNDECODABLE as error:
            raise invalid("value", raw, error) from None

    def size(self, raw: Raw) -> int:
        """How many bytes of a message an encoded value takes, on the safe side."""
        return len(raw)

    def chunk_limit(self, room: int) -> int:
        """How many bytes a stream's chunk may have so that, encoded, it never takes more than `room` (§8.3)."""
        return max(1, room - _BINARY_HEADER)

    def decode_chunk(self, raw: Raw, *, objects: bool) -> Any:
        """A stream's chunk: bytes, or any value in object mode; None where there is none (§8.3).

        Raises ValueError for what is neither, InvalidPacketDataError for what is broken.
        """
        return chunk_of(self.decode_value(raw), objects=objects)

    def value_decoder(self, kind: type[Struct]) -> ValueDecoder:
        """A decoder of values into `kind`, to be made once and kept. A field of type Raw gets JSON text."""
        fields = msgspec.structs.fields(kind)
        # Raw inside lists or Structs: only a decoder of JSON finds the places.
        as_json = any(field.type is not Raw and holds(field.type, types.RawType) for field in fields)
        wanted = {name: as_json or encoded for name, encoded in encoded_fields(kind).items()}
        binary = [field.encode_name for field in fields if holds_bytes(field.type)]
        json_decoder = msgspec.json.Decoder(kind)

        def decode(raw: Raw) -> Any:
            try:
                members = self._split(raw, wanted) if raw else {}
                for name in members:
                    if wanted[name]:
                        members[name] = self._text(members[name])
                    elif name in binary:
                        members[name] = with_bytes(members[name])
                return json_decoder.decode(msgspec.json.encode(members)) if as_json else typed(members, kind)
            except msgspec.ValidationError:
                raise
            except UNDECODABLE:
                self.decode_value(raw)  # raises when it cannot be read at all
                raise msgspec.ValidationError("Expected `object`") from None

        return decode


def decoder_in_one_go(
    decode_fitting: Callable[[Raw], Any], otherwise: ValueDecoder, null: Raw, empty: Raw
) -> ValueDecoder:
    """A decoder that takes the short way for values that fit, and asks `otherwise` about any other."""

    def decode(raw: Raw) -> Any:
        raw = raw if raw and raw != null else empty
        try:
            return decode_fitting(raw)
        except UNDECODABLE:
            return otherwise(raw)

    return decode
