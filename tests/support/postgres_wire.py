"""PostgreSQL's protocol as far as a proxy has to speak it: messages, and a login with a password."""

import base64
import hashlib
import hmac
import os
import struct
from collections.abc import Callable

import anyio
from anyio.abc import ByteStream

__all__ = ["CANCEL_REQUEST", "GONE", "SSL_REQUEST", "Wire", "login", "message", "parameters"]

SSL_REQUEST = 80877103
CANCEL_REQUEST = 80877102
GONE = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)

_PROTOCOL = 196608
_SASL, _SASL_CONTINUE = 10, 11


class Wire:
    """A stream cut into messages. A read that is cancelled loses nothing."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self._buffer = b""

    async def start(self) -> tuple[int, bytes]:
        """The code and the rest of a first message, which has no type."""
        data = await self._take(lambda: struct.unpack("!I", self._buffer[:4])[0], 4)
        return struct.unpack("!I", data[4:8])[0], data[8:]

    async def read(self) -> bytes:
        """The next message, whole."""
        return await self._take(lambda: struct.unpack("!I", self._buffer[1:5])[0] + 1, 5)

    async def _take(self, length: Callable[[], int], head: int) -> bytes:
        while len(self._buffer) < head or len(self._buffer) < length():
            self._buffer += await self.stream.receive()
        size = length()
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def parameters(body: bytes) -> dict[str, str]:
    """What a client asks for in its first message."""
    words = body[:-2].split(b"\0")
    return {name.decode(): value.decode() for name, value in zip(words[::2], words[1::2], strict=True)}


async def login(wire: Wire, user: str, password: str, database: str) -> tuple[bytes, dict[str, str]]:
    """Log in by SCRAM-SHA-256. Returns the key that cancels statements, and the parameters that the server tells."""
    body = f"user\0{user}\0database\0{database}\0\0".encode()
    await wire.stream.send(struct.pack("!II", len(body) + 8, _PROTOCOL) + body)
    scram = _Scram(password)
    key, known = b"", {}
    while True:
        data = await wire.read()
        kind, body = data[:1], data[5:]
        if kind == b"E":
            raise ConnectionError(f"The server refused the pooler: {body!r}")
        if kind == b"R" and (code := struct.unpack("!I", body[:4])[0]) in (_SASL, _SASL_CONTINUE):
            await wire.stream.send(message(b"p", scram.first() if code == _SASL else scram.final(body[4:])))
        elif kind == b"S":
            name, value = body[:-1].split(b"\0")
            known[name.decode()] = value.decode()
        elif kind == b"K":
            key = body
        elif kind == b"Z":
            return key, known


class _Scram:
    """The client's side of RFC 5802, without channel binding."""

    def __init__(self, password: str) -> None:
        self._password = password.encode()
        self._bare = b"n=,r=" + base64.b64encode(os.urandom(18))

    def first(self) -> bytes:
        text = b"n,," + self._bare
        return b"SCRAM-SHA-256\0" + struct.pack("!I", len(text)) + text

    def final(self, challenge: bytes) -> bytes:
        words = dict(word.split(b"=", 1) for word in challenge.split(b","))
        salted = hashlib.pbkdf2_hmac("sha256", self._password, base64.b64decode(words[b"s"]), int(words[b"i"]))
        key = hmac.digest(salted, b"Client Key", "sha256")
        text = b"c=biws,r=" + words[b"r"]
        signed = b",".join((self._bare, challenge, text))
        signature = hmac.digest(hashlib.sha256(key).digest(), signed, "sha256")
        proof = bytes(one ^ other for one, other in zip(key, signature, strict=True))
        return text + b",p=" + base64.b64encode(proof)
