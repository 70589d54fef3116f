"""A TCP proxy before a real PostgreSQL that can swallow an answer."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

import anyio
from anyio.abc import ByteStream, SocketAttribute, SocketStream

__all__ = ["PostgresProxy"]

GONE = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)


class PostgresProxy:
    """`cut_answer`: when a client sends these bytes, its statement reaches the server, and the connection dies before
    the answer. It is done once, and `cut` counts it.
    """

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
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
        server = await anyio.connect_tcp(self._target.hostname or "", self._target.port or 5432)
        async with server, anyio.create_task_group() as group:
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
        try:
            async for data in server:
                if link.swallowing:
                    # The answer proves that the server has done it; the client never sees it.
                    self.cut += 1
                    return
                await client.send(data)
        except GONE:
            return
        finally:
            link.scope.cancel()


class _Link:
    """One connection through the proxy, ended by cancelling its scope."""

    def __init__(self, scope: anyio.CancelScope) -> None:
        self.scope = scope
        self.swallowing = False
