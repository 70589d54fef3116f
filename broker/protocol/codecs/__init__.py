"""The serializers by their names in Moleculer, and the transit middlewares around them (protocol §13)."""

from collections.abc import Callable, Sequence

from msgspec import Raw

from broker.errors import BrokerOptionsError
from broker.protocol.codecs.base import Codec
from broker.protocol.codecs.json import JSONCodec
from broker.protocol.codecs.json_ext import JSONExtCodec
from broker.protocol.codecs.msgpack import MsgPackCodec, NotepackCodec
from broker.protocol.encoding import invalid
from broker.protocol.packets import Address, Command, Packet
from broker.protocol.transforms import Transform

__all__ = ["make_codec"]


def make_codec(serializer: str, transforms: Sequence[Transform] = ()) -> Codec:
    """The codec of the options `serializer`, in any case, and `transforms`. The first transform is closest to the wire,
    as in Moleculer JS: with [Encryption, Compression] a packet is compressed first, then encrypted.

    Raises BrokerOptionsError for a name that is not known, or whose package is missing.
    """
    find = {name.lower(): find for name, find in _CODECS.items()}.get(serializer.lower())
    if find is None:
        raise BrokerOptionsError(f"The serializer '{serializer}' is not known. Known are: {', '.join(_CODECS)}.")
    kind = find()
    transforming = type(f"Transforming{kind.__name__}", (_Transforming, kind), {"_transforms": tuple(transforms)})
    make: Callable[[], Codec] = transforming if transforms else kind
    return make()


class _Transforming(Codec):
    """What differs in a codec whose packets go through transit middlewares."""

    _transforms: tuple[Transform, ...]

    def decode(self, command: Command, data: bytes) -> Packet:
        try:
            plain = self._from_wire(data)
        except ValueError as error:
            raise invalid(command, data, error) from None
        return super().decode(command, plain)

    def decode_address(self, data: bytes) -> Address | None:
        try:
            return super().decode_address(self._from_wire(data))
        except ValueError:
            return None

    def encode(self, packet: Packet) -> bytes:
        return self._to_wire(super().encode(packet))

    encode_with = Codec.encode_with

    def size(self, raw: Raw) -> int:
        """As if the value were sent alone; together with its envelope it takes hardly more."""
        return len(self._to_wire(bytes(raw)))

    def chunk_limit(self, room: int) -> int:
        for transform in self._transforms:
            room = transform.room(room)
        return super().chunk_limit(room)

    def _to_wire(self, data: bytes) -> bytes:
        for transform in reversed(self._transforms):
            data = transform.encode(data)
        return data

    def _from_wire(self, data: bytes) -> bytes:
        for transform in self._transforms:
            data = transform.decode(data)
        return data


def _cbor() -> type[Codec]:
    try:
        from broker.protocol.codecs.cbor import CBORCodec
    except ImportError:
        raise BrokerOptionsError(
            "The serializer CBOR needs the package cbor2: pip install 'environments-store[cbor]'."
        ) from None
    return CBORCodec


_CODECS: dict[str, Callable[[], type[Codec]]] = {
    "JSON": lambda: JSONCodec,
    "JSONExt": lambda: JSONExtCodec,
    "MsgPack": lambda: MsgPackCodec,
    "Notepack": lambda: NotepackCodec,
    "CBOR": _cbor,
}
