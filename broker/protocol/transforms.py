"""Transit middlewares, which change the bytes of every packet: compression, encryption, or an object of the user's own
with the same methods (moleculer protocol §13). Nothing in a packet names them, so all nodes of a cluster need the same.

Encryption hides packets from readers of the bus and from nodes without the key. As in Moleculer JS the initialisation
vector is the same for all packets and nothing is signed: equal packets look equal, and not every change is noticed.
"""

import hashlib
import re
import zlib
from typing import Any, Literal, Protocol

from broker.defaults import COMPRESSION_THRESHOLD_BYTES, DECOMPRESSED_BYTES
from broker.errors import BrokerOptionsError

__all__ = ["Compression", "Encryption", "Transform"]

Method = Literal["deflate", "deflateRaw", "gzip"]

_WINDOW_BITS = {"deflate": 15, "deflateRaw": -15, "gzip": 31}  # RFC 1950, 1951 and 1952 in zlib's words
_PLAIN, _COMPRESSED = b"\x00", b"\x01"
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgtp]?)b?\s*", re.IGNORECASE)
_FRAME_BYTES = 64  # more than the flag, headers and checksums take together
_ALGORITHM = re.compile(r"aes-(128|192|256)-(cbc|ecb)", re.IGNORECASE)
_BLOCK_BYTES = 16


class Transform(Protocol):
    """A transit middleware."""

    def encode(self, data: bytes) -> bytes:
        """The bytes to send for a packet."""

    def decode(self, data: bytes) -> bytes:
        """The bytes of the packet. Raises ValueError for what was not made by `encode`."""

    def room(self, limit: int) -> int:
        """How many bytes `encode` surely makes no more than `limit` of."""


class Compression:
    """Compresses packets of at least `threshold` bytes (a number, "1kb", "2mb"…); None: all of them.

    Raises BrokerOptionsError for an unknown method or threshold.
    """

    def __init__(self, method: Method = "deflate", threshold: int | str | None = COMPRESSION_THRESHOLD_BYTES) -> None:
        if method not in _WINDOW_BITS:
            known = ", ".join(_WINDOW_BITS)
            raise BrokerOptionsError(f"The compression '{method}' is not known. Known are: {known}.")
        size = _SIZE.fullmatch(str(threshold or 0))
        if size is None:
            raise BrokerOptionsError(
                f"A compression threshold is a number of bytes or such as '1kb', not {threshold!r}."
            )
        self._window_bits = _WINDOW_BITS[method]
        self._threshold = int(float(size[1]) * 1024 ** " kmgtp".index(size[2].lower() or " "))

    def encode(self, data: bytes) -> bytes:
        """The packet behind a byte 0, or compressed behind a byte 1."""
        if len(data) < self._threshold:
            return _PLAIN + data
        compressor = zlib.compressobj(wbits=self._window_bits)
        return b"".join((_COMPRESSED, compressor.compress(data), compressor.flush()))

    def decode(self, data: bytes) -> bytes:
        """The packet. Raises ValueError for what is not compressed in this way, or grows beyond any packet."""
        if not data:
            raise ValueError("it is empty, without the byte that says whether it is compressed")
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


class Encryption:
    """AES as `Encryption(password, algorithm, iv)` of Moleculer JS.

    With `iv` (16 bytes) the password is the key, 32 bytes for `aes-256-cbc`. Without, `cbc` derives key and vector from
    a password of any length as Moleculer 0.14 does, and `ecb` takes it as the key as 0.15 does; `derive_key` overrides
    this. Raises BrokerOptionsError for what does not fit, or without the package cryptography.
    """

    def __init__(
        self,
        password: str | bytes,
        algorithm: str = "aes-256-cbc",
        iv: str | bytes | None = None,
        *,
        derive_key: bool | None = None,
    ) -> None:
        match = _ALGORITHM.fullmatch(algorithm)
        if match is None:
            raise BrokerOptionsError(
                f"The encryption '{algorithm}' is not known. Known are aes-128, -192, -256, each with -cbc or -ecb."
            )
        size, is_cbc = int(match[1]) // 8, match[2].lower() == "cbc"
        key, vector = _octets(password), _octets(iv or b"")
        if not key:
            raise BrokerOptionsError("Encryption needs a password.")
        if (iv is None and is_cbc) if derive_key is None else derive_key:
            key, vector = _derived(key, size)
        if len(key) != size:
            raise BrokerOptionsError(f"The key of '{algorithm}' must have {size} bytes, not {len(key)}.")
        if is_cbc and len(vector) != _BLOCK_BYTES:
            raise BrokerOptionsError(f"The iv of '{algorithm}' must have {_BLOCK_BYTES} bytes.")
        self._cipher = _cipher(key, vector if is_cbc else None)

    def encode(self, data: bytes) -> bytes:
        """The packet, padded to whole blocks and encrypted."""
        missing = _BLOCK_BYTES - len(data) % _BLOCK_BYTES
        encryptor = self._cipher.encryptor()
        encrypted: bytes = encryptor.update(data + bytes([missing]) * missing) + encryptor.finalize()
        return encrypted

    def decode(self, data: bytes) -> bytes:
        """The packet. Raises ValueError for what was not encrypted with this key."""
        if not data or len(data) % _BLOCK_BYTES:
            raise ValueError("it cannot be decrypted: its size is not a multiple of a block")
        decryptor = self._cipher.decryptor()
        padded: bytes = decryptor.update(data) + decryptor.finalize()
        missing = padded[-1]
        if not 1 <= missing <= _BLOCK_BYTES or padded[-missing:] != bytes([missing]) * missing:
            raise ValueError("it cannot be decrypted: the key or the iv is another")
        return padded[:-missing]

    def room(self, limit: int) -> int:
        """What fills whole blocks, less the byte of padding there always is."""
        return max(1, limit // _BLOCK_BYTES * _BLOCK_BYTES - 1)


def _octets(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else bytes(text)


def _derived(password: bytes, size: int) -> tuple[bytes, bytes]:
    """Key and vector by OpenSSL's EVP_BytesToKey with MD5, without salt, one iteration: what `crypto.createCipher` of
    Node.js did."""
    derived = block = b""
    while len(derived) < size + _BLOCK_BYTES:
        block = hashlib.md5(block + password, usedforsecurity=False).digest()
        derived += block
    return derived[:size], derived[size : size + _BLOCK_BYTES]


def _cipher(key: bytes, iv: bytes | None) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    except ImportError:
        raise BrokerOptionsError(
            "Encryption needs the package cryptography: pip install 'environments-store[encryption]'."
        ) from None
    return Cipher(algorithms.AES(key), modes.ECB() if iv is None else modes.CBC(iv))
