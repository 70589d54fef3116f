"""A TCP proxy before a real server, whose connections a test can cut."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import ByteStream, SocketAttribute, SocketStream

from tests.support.ports import LOOPBACK

__all__ = ["TcpProxy"]

GONE = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)


class TcpProxy:
    """`links` counts the connections that were made through it."""

    def __init__(self, target: int) -> None:
        self.links = 0
        self._target = target
        self._port = 0
        self._scopes: set[anyio.CancelScope] = set()

    @property
    def url(self) -> str:
        """For a NATS server."""
        return f"nats://{LOOPBACK}:{self._port}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator["TcpProxy"]:
        listener = await anyio.create_tcp_listener(local_host=LOOPBACK)
        self._port = listener.extra(SocketAttribute.local_port)
        async with listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, self._serve)
            yield self
            group.cancel_scope.cancel()

    def cut(self) -> None:
        """End every connection; new ones are taken."""
        for scope in self._scopes:
            scope.cancel()

    async def _serve(self, client: SocketStream) -> None:
        self.links += 1
        async with (
            client,
            await anyio.connect_tcp(LOOPBACK, self._target) as server,
            anyio.create_task_group() as link,
        ):
            self._scopes.add(link.cancel_scope)
            link.start_soon(_pump, client, server, link.cancel_scope)
            await _pump(server, client, link.cancel_scope)
        self._scopes.discard(link.cancel_scope)


async def _pump(source: ByteStream, sink: ByteStream, link: anyio.CancelScope) -> None:
    try:
        async for data in source:
            await sink.send(data)
    except GONE:
        pass
    link.cancel()
