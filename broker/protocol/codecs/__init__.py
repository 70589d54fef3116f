"""The serializers by their names in Moleculer."""

from collections.abc import Callable, Sequence

from broker.errors import BrokerOptionsError
from broker.protocol.codecs.json import Codec, JSONCodec
from broker.protocol.codecs.json_ext import JSONExtCodec
from broker.protocol.codecs.msgpack import MsgPackCodec
from broker.protocol.codecs.transforming import TransformingCodec
from broker.protocol.transforms.base import Transform

__all__ = ["make_codec"]


def make_codec(serializer: str, transforms: Sequence[Transform] = ()) -> Codec:
    """The codec of the options `serializer`, in any case, and `transforms`.

    Raises BrokerOptionsError for a name that is not known, or whose package is missing.
    """
    make = {name.lower(): make for name, make in _CODECS.items()}.get(serializer.lower())
    if make is None:
        raise BrokerOptionsError(f"The serializer '{serializer}' is not known. Known are: {', '.join(_CODECS)}.")
    return TransformingCodec(make(), transforms) if transforms else make()


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
