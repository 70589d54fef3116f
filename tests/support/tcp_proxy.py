"""A TCP proxy before a real server, whose connections a test can end, and a server that ends them all."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import ByteStream, SocketAttribute, SocketStream

from tests.support.ports import LOOPBACK

__all__ = ["TcpProxy", "hanging_up"]

GONE = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)


class TcpProxy:
    def __init__(self, target: int) -> None:
        self._target = target
        self._port = 0
        self._links: set[anyio.CancelScope] = set()
        self._opened = anyio.Event()
        self.open()

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

    def close(self) -> None:
        """End every connection. New ones are taken, and wait."""
        self._opened = anyio.Event()
        for link in self._links:
            link.cancel()

    def open(self) -> None:
        """Pass on what comes."""
        self._opened.set()

    async def _serve(self, client: SocketStream) -> None:
        async with client:
            await self._opened.wait()
            await self._join(client)

    async def _join(self, client: SocketStream) -> None:
        async with await anyio.connect_tcp(LOOPBACK, self._target) as server, anyio.create_task_group() as link:
            self._links.add(link.cancel_scope)
            link.start_soon(_pump, client, server, link.cancel_scope)
            await _pump(server, client, link.cancel_scope)
        self._links.discard(link.cancel_scope)


async def _pump(source: ByteStream, sink: ByteStream, link: anyio.CancelScope) -> None:
    try:
        async for data in source:
            await sink.send(data)
    except GONE:
        pass
    link.cancel()


@asynccontextmanager
async def hanging_up(port: int) -> AsyncIterator[list[str]]:
    """Accept connections on a port and end each at once; yields the list of those that came. By asyncio's own server:
    an `accept` that is cancelled as a connection comes in raises InvalidStateError and loses its socket."""
    came: list[str] = []

    def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(str(writer.get_extra_info("peername")))
        writer.close()

    async with await asyncio.start_server(hang_up, LOOPBACK, port):
        yield came
