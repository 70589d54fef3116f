"""The serializers by their names in Moleculer, and one whose packets go through transit middlewares (protocol §13)."""

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Raw, Struct

from broker.errors import BrokerOptionsError
from broker.protocol.codecs.json import Codec, JSONCodec, ValueDecoder
from broker.protocol.codecs.json_ext import JSONExtCodec
from broker.protocol.codecs.msgpack import MsgPackCodec
from broker.protocol.encoding import invalid_packet
from broker.protocol.packets import Address, Command, Packet
from broker.protocol.transforms import Transform

__all__ = ["TransformingCodec", "make_codec"]


def make_codec(serializer: str, transforms: Sequence[Transform] = ()) -> Codec:
    """The codec of the options `serializer`, in any case, and `transforms`.

    Raises BrokerOptionsError for a name that is not known, or whose package is missing.
    """
    make = {name.lower(): make for name, make in _CODECS.items()}.get(serializer.lower())
    if make is None:
        raise BrokerOptionsError(f"The serializer '{serializer}' is not known. Known are: {', '.join(_CODECS)}.")
    return TransformingCodec(make(), transforms) if transforms else make()


class TransformingCodec(Codec):
    """The first transform is closest to the wire, as in Moleculer JS: with [Encryption, Compression] a packet is
    compressed first, then encrypted."""

    def __init__(self, codec: Codec, transforms: Sequence[Transform]) -> None:
        self.name = codec.name
        self._codec = codec
        self._transforms = tuple(transforms)

    def decode(self, command: Command, data: bytes) -> Packet:
        try:
            plain = self._from_wire(data)
        except ValueError as error:
            raise invalid_packet(command, data, str(error)) from None
        return self._codec.decode(command, plain)

    def decode_address(self, data: bytes) -> Address | None:
        try:
            return self._codec.decode_address(self._from_wire(data))
        except ValueError:
            return None

    def encode(self, packet: Packet) -> bytes:
        return self._to_wire(self._codec.encode(packet))

    def encode_value(self, value: object) -> Raw:
        return self._codec.encode_value(value)

    def decode_value(self, raw: Raw) -> Any:
        return self._codec.decode_value(raw)

    def size(self, raw: Raw) -> int:
        """As if the value were sent alone; together with its envelope it takes hardly more."""
        return len(self._to_wire(bytes(raw)))

    def chunk_limit(self, room: int) -> int:
        for transform in self._transforms:
            room = transform.room(room)
        return self._codec.chunk_limit(room)

    def decode_chunk(self, raw: Raw, *, objects: bool) -> Any:
        return self._codec.decode_chunk(raw, objects=objects)

    def value_decoder(self, kind: type[Struct]) -> ValueDecoder:
        return self._codec.value_decoder(kind)

    def _to_wire(self, data: bytes) -> bytes:
        for transform in reversed(self._transforms):
            data = transform.encode(data)
        return data

    def _from_wire(self, data: bytes) -> bytes:
        for transform in self._transforms:
            data = transform.decode(data)
        return data


def _cbor() -> Codec:
    try:
        from broker.protocol.codecs.cbor import CBORCodec
    except ImportError:
        raise BrokerOptionsError(
            "The serializer CBOR needs the package cbor2: pip install 'environments-store[cbor]'."
        ) from None
    return CBORCodec()


_CODECS: dict[str, Callable[[], Codec]] = {
    "JSON": JSONCodec,
    "JSONExt": JSONExtCodec,
    "MsgPack": MsgPackCodec,
    "Notepack": lambda: MsgPackCodec("Notepack"),
    "CBOR": _cbor,
}
