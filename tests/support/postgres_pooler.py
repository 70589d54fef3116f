"""A transaction pooler before a real PostgreSQL: many clients share a few connections, one transaction at a time.

It behaves as PgBouncer does in its transaction mode: the process id that a client gets is invented, start-up
parameters it does not know are refused, the few it knows are set whenever a client gets a connection, and a client
that leaves in the middle of a transaction costs its connection.
"""

import itertools
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import unquote, urlsplit, urlunsplit

import anyio
from anyio.abc import SocketAttribute, SocketStream

from tests.support.postgres_wire import CANCEL_REQUEST, GONE, SSL_REQUEST, Wire, login, message, parameters

__all__ = ["PostgresPooler"]

TRACKED = ("application_name", "TimeZone")
ACCEPTED = frozenset({"user", "database", "client_encoding", *TRACKED})
OPENED_BY = frozenset(b"PBDECHF")
"""Messages of the extended protocol, which a Sync ends. Q and S are answered with ReadyForQuery by themselves."""


class PostgresPooler:
    """`url` is that of the pooler, for as long as it is `running`. It asks its clients for no password."""

    def __init__(self, url: str, *, connections: int = 2) -> None:
        self._target = urlsplit(url)
        self._free = anyio.Semaphore(connections)
        self._idle: list[_Server] = []
        self._served: dict[int, _Server | None] = {}
        self._numbers = itertools.count(1_000_001)
        self._port = 0

    @property
    def url(self) -> str:
        user = self._target.netloc.rpartition("@")[0]
        return urlunsplit(self._target._replace(netloc=f"{user}@127.0.0.1:{self._port}"))

    @asynccontextmanager
    async def running(self) -> AsyncIterator["PostgresPooler"]:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        self._port = listener.extra(SocketAttribute.local_port)
        try:
            async with listener, anyio.create_task_group() as group:
                group.start_soon(listener.serve, self._serve)
                yield self
                group.cancel_scope.cancel()
        finally:
            for server in self._idle:
                await anyio.aclose_forcefully(server.wire.stream)

    async def _serve(self, stream: SocketStream) -> None:
        async with stream:
            try:
                client = Wire(stream)
                start = await client.start()
                while start[0] == SSL_REQUEST:
                    await stream.send(b"N")
                    start = await client.start()
                if start[0] == CANCEL_REQUEST:
                    await self._cancel(start[1])
                else:
                    await self._welcome(client, parameters(start[1]))
            except GONE:
                return

    async def _welcome(self, client: Wire, asked: dict[str, str]) -> None:
        for name in asked.keys() - ACCEPTED:
            text = f"SFATAL\0VFATAL\0C08P01\0Munsupported startup parameter: {name}\0\0"
            await client.stream.send(message(b"E", text.encode()))
            return
        number = next(self._numbers)
        settings = {name: asked[name] for name in TRACKED if name in asked}
        async with self._lease(settings) as server:
            known = server.parameters
        told = b"".join(message(b"S", f"{name}\0{value}\0".encode()) for name, value in known.items())
        key = message(b"K", struct.pack("!II", number, number))
        await client.stream.send(message(b"R", struct.pack("!I", 0)) + told + key + message(b"Z", b"I"))
        self._served[number] = None
        try:
            while (first := await client.read())[:1] != b"X":
                async with self._lease(settings) as server:
                    self._served[number] = server
                    await _Exchange(client, server.wire).run(first)
                    self._served[number] = None
        finally:
            del self._served[number]

    @asynccontextmanager
    async def _lease(self, settings: dict[str, str]) -> AsyncIterator["_Server"]:
        async with self._free:
            server = self._idle.pop() if self._idle else await _Server.connect(self._target.geturl())
            try:
                await server.adopt(settings)
                yield server
            except BaseException:
                # Whatever is open in it ends with it.
                with anyio.CancelScope(shield=True):
                    await anyio.aclose_forcefully(server.wire.stream)
                raise
            self._idle.append(server)

    async def _cancel(self, body: bytes) -> None:
        server = self._served.get(struct.unpack("!I", body[:4])[0])
        if server is not None:
            async with await anyio.connect_tcp(self._target.hostname or "", self._target.port or 5432) as stream:
                await stream.send(struct.pack("!II", 16, CANCEL_REQUEST) + server.key)


class _Server:
    """One connection to PostgreSQL, logged in."""

    def __init__(self, wire: Wire, key: bytes, known: dict[str, str]) -> None:
        self.wire = wire
        self.key = key
        self.parameters = known
        self._adopted: dict[str, str] = {}

    @classmethod
    async def connect(cls, url: str) -> "_Server":
        target = urlsplit(url)
        wire = Wire(await anyio.connect_tcp(target.hostname or "", target.port or 5432))
        try:
            key, known = await login(
                wire, unquote(target.username or ""), unquote(target.password or ""), unquote(target.path[1:])
            )
        except BaseException:
            with anyio.CancelScope(shield=True):
                await anyio.aclose_forcefully(wire.stream)
            raise
        return cls(wire, key, known)

    async def adopt(self, settings: dict[str, str]) -> None:
        """Give the connection the client's own settings, where the last client had others."""
        changed = {name: value for name, value in settings.items() if self._adopted.get(name) != value}
        if not changed:
            return
        text = "; ".join("SET {} = '{}'".format(name, value.replace("'", "''")) for name, value in changed.items())
        await self.wire.stream.send(message(b"Q", text.encode() + b"\0"))
        while (await self.wire.read())[:1] != b"Z":
            pass
        self._adopted |= changed


class _Exchange:
    """One client has one connection until its transaction has ended."""

    def __init__(self, client: Wire, server: Wire) -> None:
        self._client = client
        self._server = server
        self._unanswered = 0
        self._open = False

    async def run(self, first: bytes) -> None:
        """Returns when the server is idle again. Raises when one of the two has left before that."""
        left = False
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._to_client, group.cancel_scope)
                await self._forward(first)
                while (data := await self._client.read())[:1] != b"X":
                    await self._forward(data)
                raise anyio.EndOfStream
        except* GONE:
            left = True
        if left:
            raise anyio.EndOfStream

    async def _forward(self, data: bytes) -> None:
        kind = data[0]
        if kind in b"QS":
            self._unanswered += 1
            self._open = False
        elif kind in OPENED_BY:
            self._open = True
        await self._server.stream.send(data)

    async def _to_client(self, scope: anyio.CancelScope) -> None:
        while True:
            data = await self._server.read()
            await self._client.stream.send(data)
            if data[:1] == b"Z":
                self._unanswered -= 1
                if data[5:6] == b"I" and not self._unanswered and not self._open:
                    scope.cancel()
                    return
