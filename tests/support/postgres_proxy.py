"""A TCP proxy before a real PostgreSQL: it can look like a transaction pooler, and swallow an answer."""

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

import anyio
from anyio.abc import ByteStream, SocketAttribute, SocketStream

__all__ = ["PostgresProxy"]

SSL_REQUEST = 80877103
CANCEL_REQUEST = 80877102
GONE = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)
PID_MASK = 0x5A5A5A
"""A pooler invents the process id that it gives its client."""
POOLER_PARAMETERS = frozenset({"user", "database", "client_encoding", "application_name", "TimeZone"})


class PostgresProxy:
    """`pooler`: give invented process ids and refuse the start-up parameters that PgBouncer refuses.

    `cut_answer`: when a client sends these bytes, its statement reaches the server, and the connection dies before
    the answer. It is done once, and `cut` counts it.
    """

    def __init__(self, url: str, *, pooler: bool = False) -> None:
        self._target = urlsplit(url)
        self._pooler = pooler
        self._port = 0
        self.cut_answer: bytes | None = None
        self.cut = 0

    @property
    def url(self) -> str:
        user = self._target.netloc.rpartition("@")[0]
        return urlunsplit(self._target._replace(netloc=f"{user}@127.0.0.1:{self._port}"))

    @asynccontextmanager
    async def running(self) -> AsyncIterator["PostgresProxy"]:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        self._port = listener.extra(SocketAttribute.local_port)
        async with listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, self._serve)
            yield self
            group.cancel_scope.cancel()

    async def _serve(self, client: SocketStream) -> None:
        async with client:
            try:
                await self._join(client)
            except GONE:
                return

    async def _join(self, client: SocketStream) -> None:
        start = await _read_start(client)
        while _code(start) == SSL_REQUEST:
            await client.send(b"N")
            start = await _read_start(client)
        refused = self._refused(start)
        if refused is not None:
            await client.send(refused)
            return
        if _code(start) == CANCEL_REQUEST and self._pooler:
            start = start[:8] + struct.pack("!I", struct.unpack("!I", start[8:12])[0] ^ PID_MASK) + start[12:]
        server = await anyio.connect_tcp(self._target.hostname or "", self._target.port or 5432)
        async with server:
            await server.send(start)
            async with anyio.create_task_group() as group:
                link = _Link(group.cancel_scope)
                group.start_soon(self._to_client, server, client, link)
                await self._to_server(client, server, link)

    async def _to_server(self, client: ByteStream, server: ByteStream, link: "_Link") -> None:
        try:
            async for data in client:
                if self.cut_answer is not None and self.cut_answer in data:
                    self.cut_answer = None
                    link.swallowing = True
                await server.send(data)
        except GONE:
            return
        finally:
            link.scope.cancel()

    async def _to_client(self, server: ByteStream, client: ByteStream, link: "_Link") -> None:
        buffer, starting = b"", self._pooler
        try:
            async for data in server:
                if link.swallowing:
                    # The answer proves that the server has done it; the client never sees it.
                    self.cut += 1
                    return
                if not starting:
                    await client.send(data)
                    continue
                out, buffer, starting = _with_invented_pid(buffer + data)
                await client.send(out)
        except GONE:
            return
        finally:
            link.scope.cancel()

    def _refused(self, start: bytes) -> bytes | None:
        if not self._pooler or _code(start) != 196608:
            return None
        names = start[8:].rstrip(b"\0").split(b"\0")[::2]
        for name in names:
            if name.decode() not in POOLER_PARAMETERS:
                fields = b"SFATAL\0VFATAL\0C08P01\0M" + b"unsupported startup parameter: " + name + b"\0\0"
                return b"E" + struct.pack("!I", len(fields) + 4) + fields
        return None


class _Link:
    """One connection through the proxy, ended by cancelling its scope."""

    def __init__(self, scope: anyio.CancelScope) -> None:
        self.scope = scope
        self.swallowing = False


async def _read_start(client: ByteStream) -> bytes:
    data = b""
    while len(data) < 4 or len(data) < struct.unpack("!I", data[:4])[0]:
        data += await client.receive()
    return data


def _code(start: bytes) -> int:
    code: int = struct.unpack("!I", start[4:8])[0]
    return code


def _with_invented_pid(buffer: bytes) -> tuple[bytes, bytes, bool]:
    """Whole messages up to ReadyForQuery with BackendKeyData changed, what is left, and whether to go on so."""
    out = b""
    while len(buffer) >= 5:
        length = struct.unpack("!I", buffer[1:5])[0] + 1
        if len(buffer) < length:
            break
        message, buffer = buffer[:length], buffer[length:]
        if message[:1] == b"K":
            pid = struct.unpack("!I", message[5:9])[0] ^ PID_MASK
            message = message[:5] + struct.pack("!I", pid) + message[9:]
        out += message
        if message[:1] == b"Z":
            return out + buffer, b"", False
    return out, buffer, True
