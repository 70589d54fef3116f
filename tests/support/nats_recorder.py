"""A proxy for a NATS server that records the operations of a client, subscriptions and messages, in order.

    async with nats_recorder(server.url) as recorder:
        async with ServiceBroker("py", transporter=recorder.url): ...
    assert recorder.operations[0].verb == "SUB"

A NATS client cannot see the subscriptions of others, hence a proxy.
"""

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.abc
from anyio.streams.buffered import BufferedByteReceiveStream

from tests.support.ports import LOOPBACK

__all__ = ["NatsRecorder", "Operation", "nats_recorder"]

_LINE_BYTES = 4096  # the server's own limit for a line
_ENDED = (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError, anyio.ClosedResourceError)


@dataclass(frozen=True)
class Operation:
    """SUB, UNSUB or PUB. An UNSUB has the subject and queue of its subscription."""

    verb: str
    subject: str
    queue: str = ""
    packet: Any = None


class NatsRecorder:
    """Made by `nats_recorder`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.operations: list[Operation] = []
        self._subscriptions: dict[str, Operation] = {}

    def mark(self) -> int:
        return len(self.operations)

    def of(self, *verbs: str, after: int = 0) -> list[Operation]:
        """The operations on subjects of Moleculer."""
        return [one for one in self.operations[after:] if one.verb in verbs and one.subject.startswith("MOL")]

    def note(self, line: str, payload: bytes) -> None:
        verb, *words = line.split()
        match verb.upper(), words:
            case "SUB", [subject, *queue, sid]:
                operation = Operation("SUB", subject, "".join(queue))
                self._subscriptions[sid] = operation
                self.operations.append(operation)
            case "UNSUB", [sid, *_]:
                gone = self._subscriptions.pop(sid, None)
                if gone is not None:
                    self.operations.append(Operation("UNSUB", gone.subject, gone.queue))
            case "PUB" | "HPUB", [subject, *_]:
                self.operations.append(Operation("PUB", subject, packet=_packet(payload)))


@contextlib.asynccontextmanager
async def nats_recorder(url: str) -> AsyncIterator[NatsRecorder]:
    """Runs in front of the server at `url` until the end of the block."""
    target = urlsplit(url)
    listener = await anyio.create_tcp_listener(local_host=LOOPBACK)
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    recorder = NatsRecorder(f"nats://{LOOPBACK}:{port}")

    async def serve(client: anyio.abc.SocketStream) -> None:
        with contextlib.suppress(*_ENDED, OSError):  # the server may be down
            async with (
                client,
                await anyio.connect_tcp(target.hostname or LOOPBACK, target.port or 4222) as server,
                anyio.create_task_group() as both,
            ):
                both.start_soon(_forward, server, client, both.cancel_scope)
                await _record(recorder, client, server)
                both.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield recorder
        tasks.cancel_scope.cancel()
    await listener.aclose()


async def _forward(source: anyio.abc.ByteStream, sink: anyio.abc.ByteStream, both: anyio.CancelScope) -> None:
    with contextlib.suppress(*_ENDED):
        async for data in source:
            await sink.send(data)
    both.cancel()


async def _record(recorder: NatsRecorder, client: anyio.abc.ByteStream, server: anyio.abc.ByteStream) -> None:
    lines = BufferedByteReceiveStream(client)
    with contextlib.suppress(*_ENDED):
        while True:
            line = await lines.receive_until(b"\r\n", _LINE_BYTES)
            payload = b""
            if line[:4].upper() in (b"PUB ", b"HPUB"):
                payload = await lines.receive_exactly(int(line.split()[-1]) + 2)
            if line:
                recorder.note(line.decode(), payload)
            await server.send(line + b"\r\n" + payload)


def _packet(payload: bytes) -> Any:
    try:
        return json.loads(payload)
    except ValueError:
        return None
