"""Encryption of packets with AES (moleculer protocol §13.2). Needs the package cryptography.

It hides packets from who may read the bus and from nodes that do not know the key. As in Moleculer JS the
initialisation vector is the same for all packets and nothing is signed: equal packets look equal, and changed ones are
not always found.
"""

import hashlib
import re
from typing import Any

from broker.errors import BrokerOptionsError

_ALGORITHM = re.compile(r"aes-(128|192|256)-(cbc|ecb)", re.IGNORECASE)
_BLOCK_BYTES = 16


class Encryption:
    """AES as `Encryption(password, algorithm, iv)` of Moleculer JS.

    With `iv` (16 bytes) the password is the key, 32 bytes for `aes-256-cbc`. Without, `cbc` derives key and vector from
    a password of any length as Moleculer 0.14 does, and `ecb` takes it as the key as 0.15 does; `derive_key` says
    otherwise. Raises BrokerOptionsError for what does not fit, or without the package cryptography.
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
        size, mode = int(match[1]) // 8, match[2].lower()
        key, vector = _octets(password), None if iv is None else _octets(iv)
        if not key:
            raise BrokerOptionsError("Encryption needs a password.")
        derived = vector is None and mode == "cbc" if derive_key is None else derive_key
        if derived:
            key, vector = _derive(key, size, _BLOCK_BYTES)
        if len(key) != size:
            raise BrokerOptionsError(f"The key of '{algorithm}' must have {size} bytes, not {len(key)}.")
        if mode == "cbc" and (vector is None or len(vector) != _BLOCK_BYTES):
            raise BrokerOptionsError(f"The iv of '{algorithm}' must have {_BLOCK_BYTES} bytes.")
        self._cipher = _cipher(key, vector if mode == "cbc" else None)

    def encode(self, data: bytes) -> bytes:
        """The packet, padded to whole blocks and encrypted."""
        missing = _BLOCK_BYTES - len(data) % _BLOCK_BYTES
        encryptor = self._cipher.encryptor()
        encrypted: bytes = encryptor.update(data + bytes([missing]) * missing) + encryptor.finalize()
        return encrypted

    def decode(self, data: bytes) -> bytes:
        """The packet. Raises ValueError for what was not encrypted with this key."""
        if not data or len(data) % _BLOCK_BYTES:
            raise ValueError("it cannot be decrypted: its size is no multiple of a block")
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


def _derive(password: bytes, key_size: int, iv_size: int) -> tuple[bytes, bytes]:
    """OpenSSL's EVP_BytesToKey with MD5, without salt, one iteration: what `crypto.createCipher` of Node.js did."""
    derived = block = b""
    while len(derived) < key_size + iv_size:
        block = hashlib.md5(block + password, usedforsecurity=False).digest()
        derived += block
    return derived[:key_size], derived[key_size : key_size + iv_size]


def _cipher(key: bytes, iv: bytes | None) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    except ImportError:
        raise BrokerOptionsError(
            "Encryption needs the package cryptography: pip install 'environments-store[encryption]'."
        ) from None
    return Cipher(algorithms.AES(key), modes.ECB() if iv is None else modes.CBC(iv))
