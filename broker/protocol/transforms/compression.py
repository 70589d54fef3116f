"""Compression of packets (moleculer protocol §13.1): one byte tells whether, and the rest is the packet."""

import re
import zlib
from typing import Literal

from broker.defaults import COMPRESSION_THRESHOLD_BYTES, DECOMPRESSED_BYTES
from broker.errors import BrokerOptionsError

Method = Literal["deflate", "deflateRaw", "gzip"]

_WINDOW_BITS = {"deflate": 15, "deflateRaw": -15, "gzip": 31}  # RFC 1950, 1951 and 1952 in zlib's words
_PLAIN, _COMPRESSED = b"\x00", b"\x01"
_UNITS = {"": 1, "b": 1, "kb": 2**10, "mb": 2**20, "gb": 2**30, "tb": 2**40, "pb": 2**50}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgtp]?b?)\s*", re.IGNORECASE)
_FRAME_BYTES = 64  # more than the flag, headers and checksums take together


class Compression:
    """Compresses packets of at least `threshold` bytes (a number, "1kb", "2mb"…); None: all of them.

    Raises BrokerOptionsError for a method or a threshold that is not known.
    """

    def __init__(self, method: Method = "deflate", threshold: int | str | None = COMPRESSION_THRESHOLD_BYTES) -> None:
        if method not in _WINDOW_BITS:
            known = ", ".join(_WINDOW_BITS)
            raise BrokerOptionsError(f"The compression '{method}' is not known. Known are: {known}.")
        self._window_bits = _WINDOW_BITS[method]
        self._threshold = 0 if threshold is None else _bytes(threshold)

    def encode(self, data: bytes) -> bytes:
        """The packet behind a byte 0, or compressed behind a byte 1."""
        if len(data) < self._threshold:
            return _PLAIN + data
        compressor = zlib.compressobj(wbits=self._window_bits)
        return b"".join((_COMPRESSED, compressor.compress(data), compressor.flush()))

    def decode(self, data: bytes) -> bytes:
        """The packet. Raises ValueError for what is not compressed in this way, or grows beyond any packet."""
        if not data:
            raise ValueError("it is empty, without the byte that tells of compression")
        if data[:1] == _PLAIN:
            return data[1:]
        decompressor = zlib.decompressobj(wbits=self._window_bits)
        try:
            plain = decompressor.decompress(memoryview(data)[1:], DECOMPRESSED_BYTES)
        except zlib.error as error:
            raise ValueError(f"it cannot be decompressed: {error}") from None
        if decompressor.unconsumed_tail:
            raise ValueError(f"it has more than {DECOMPRESSED_BYTES} bytes when decompressed")
        if not decompressor.eof:
            raise ValueError("it cannot be decompressed: it ends too soon")
        return plain

    def room(self, limit: int) -> int:
        """What fits uncompressed: bytes that cannot be compressed grow by a few per mille."""
        return max(1, limit - limit // 1024 - _FRAME_BYTES)


def _bytes(threshold: int | str) -> int:
    if isinstance(threshold, int) and not isinstance(threshold, bool) and threshold >= 0:
        return threshold
    match = _SIZE.fullmatch(threshold) if isinstance(threshold, str) else None
    if match is None or match[2].lower() not in _UNITS:
        raise BrokerOptionsError(f"A compression threshold is a number of bytes or such as '1kb', not {threshold!r}.")
    return int(float(match[1]) * _UNITS[match[2].lower()])
