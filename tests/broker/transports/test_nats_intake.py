"""What a server sends, cut anywhere, is dealt with message by message and in order."""

from collections.abc import Sequence

import anyio
import pytest
from nats.aio.msg import Msg

from broker.transports.base import Later, Observer
from broker.transports.nats_client import Connection
from tests.support.nats_server import NatsServer
from tests.support.waiting import eventually

LARGE = b"x" * 5000


class Received:
    """What the subscriptions `taken` and `queued` got."""

    def __init__(self, *, slow: bool = False) -> None:
        self.taken: list[tuple[bytes, str]] = []
        self.queued: list[tuple[bytes, str]] = []
        self.all_read = anyio.Event()
        self._slow = slow

    def take(self, data: bytes, reply: str) -> Later | None:
        async def later() -> None:
            await self.all_read.wait()
            self.taken.append((data, reply))

        if self._slow and data != LARGE:
            return later
        self.taken.append((data, reply))
        return None

    async def on_message(self, message: Msg) -> None:
        self.queued.append((message.data, message.reply))


async def read(server: NatsServer, received: Received, pieces: Sequence[bytes]) -> None:
    connection = Connection(server.url, Observer())
    await connection.open("node", {}, 5)
    try:
        assert (await connection.subscribe_taker("taken", "", received.take))._id == 1
        assert (await connection.subscribe("queued", cb=received.on_message))._id == 2
        await connection.flush()
        for piece in pieces:
            await connection.intake.parse(piece)
        received.all_read.set()
        await eventually(lambda: len(received.taken) == 5 and len(received.queued) == 2)
    finally:
        await connection.abandon()


MESSAGES = [
    *(b"MSG taken 1 3\r\none\r\n", b"MSG queued 2 in.1 2\r\nq1\r\n", b"MSG taken 1 in.2 0\r\n\r\n"),
    *(b"PING\r\n", b"HMSG taken 1 12 17\r\nNATS/1.0\r\n\r\nthree\r\n"),
    *(b"MSG taken 1 5000\r\n" + LARGE + b"\r\n", b"+OK\r\n", b"MSG queued 2 2\r\nq2\r\n"),
    *(b"MSG taken 1 8\r\nMSG 1 2\r\r\n", b"PONG\r\n"),
]
TAKEN = [(b"one", ""), (b"", "in.2"), (b"three", ""), (LARGE, ""), (b"MSG 1 2\r", "")]
QUEUED = [(b"q1", "in.1"), (b"q2", "")]


@pytest.mark.anyio
@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("size", [0, 1, 7, 18, 64, 4096, 10_000])
async def test_messages_arrive_whole_and_in_order_however_they_are_cut(
    nats_server: NatsServer, size: int, slow: bool
) -> None:
    received, sent = Received(slow=slow), b"".join(MESSAGES)
    await read(nats_server, received, [sent[at : at + size] for at in range(0, len(sent), size)] if size else MESSAGES)
    assert (received.taken, received.queued) == (TAKEN, QUEUED)
