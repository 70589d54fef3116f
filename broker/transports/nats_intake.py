"""Messages that the task which reads them deals with at once, as long as none before them has to wait for something.

nats-py tries several regular expressions on each message and queues it for another task, which costs more than most
messages do.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from time import monotonic

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.protocol.parser import Parser

from broker.defaults import SLICE_S
from broker.transports.base import Later

Take = Callable[[bytes, str], Later | None]
"""Deals with a message: its bytes, and where to reply to. Returns what is left to do."""


class Overlap:
    """Two connections that receive the same messages: each message counts once, from where it comes first."""

    def __init__(self, old: "Intake") -> None:
        self._old = old
        self._ahead: Counter[int] = Counter()
        """How many copies of a message the old connection has received more than the new one."""

    def is_new(self, subject: str, data: bytes, intake: "Intake") -> bool:
        key = hash((subject, data))
        before = self._ahead[key]
        step = 1 if intake is self._old else -1
        self._ahead[key] = before + step
        return before * step >= 0


class _Left(Msg):
    """What is left to do with a message, in the queue of its subscription."""

    def __init__(self, client: Client, later: Later) -> None:
        super().__init__(client)
        self.later = later


class Taker:
    """Deals with the messages of one subscription. Those that arrive while one waits for something are queued by
    nats-py, whose task calls `deal_with`."""

    def __init__(self, intake: "Intake", take: Take) -> None:
        self.take = take
        self.idle = True
        """Whether the next message can be dealt with as it arrives: none is queued or waits for something."""
        self.subscription: Subscription
        self._intake = intake

    def finish(self, later: Later) -> None:
        """Queue what is left to do with a message; those that arrive meanwhile are queued behind it."""
        self.idle = False
        self.subscription._pending_queue.put_nowait(_Left(self._intake.nc, later))

    async def deal_with(self, message: Msg) -> None:
        self.idle = False
        try:
            if isinstance(message, _Left):
                await message.later()
            elif self._intake.is_new(message.subject, message.data):
                later = self.take(message.data, message.reply)
                if later is not None:
                    await later()
        finally:
            self.idle = self.subscription._pending_queue.empty()


class Intake(Parser):
    """Reads messages one after the other. What else a server sends is read by nats-py."""

    nc: Client

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self.takers: dict[bytes, Taker] = {}
        """By the id of the subscription, as the server writes it."""
        self.overlap: Overlap | None = None
        """Set while another connection receives the same messages."""
        self.overrun: set[int] = set()
        """Subscriptions of which messages were dropped, until there is room again."""
        self._pause_at = 0.0

    def reset(self) -> None:
        super().reset()
        self._wanted = 0
        """How many bytes `buf` holds once its message is complete; 0 when nats-py goes on with what it holds."""

    def is_new(self, subject: str, data: bytes) -> bool:
        """Whether a message has not come over the other one of two connections already."""
        return self.overlap is None or self.overlap.is_new(subject, data, self)

    async def parse(self, data: bytes = b"") -> None:
        """Deal with what was read. Where much arrives, other work comes in between."""
        if self._wanted:
            self.buf += data
            if len(self.buf) < self._wanted:
                return
            data = bytes(self.buf)
            self.reset()
        at = 0 if self.buf else await self._messages(data)
        if at < len(data):
            rest = data[at:] if at else data
            if self._wanted:
                self.buf += rest
            else:
                await super().parse(rest)

    async def _messages(self, data: bytes) -> int:
        """Deal with the messages that some bytes begin with. Returns where something else begins, or the message that
        is not complete yet."""
        at, length = 0, len(data)
        while data.startswith(b"MSG ", at):
            line_end = data.find(b"\r\n", at)
            words = data[at:line_end].split()
            if line_end < 0 or len(words) not in (4, 5) or not words[-1].isdigit():
                break
            begin = line_end + 2
            end = begin + int(words[-1])
            if end + 2 > length:
                self._wanted = end + 2 - at
                break
            payload, at = data[begin:end], end + 2
            taker = self.takers.get(words[2])
            if taker is None or not taker.idle:
                await self.nc._process_msg(int(words[2]), words[1], words[3] if len(words) == 5 else b"", payload, b"")
                continue
            if self.overrun:
                self.overrun.discard(int(words[2]))
            taker.subscription._received += 1
            if self.overlap is None or self.is_new(words[1].decode(), payload):
                later = taker.take(payload, words[3].decode() if len(words) == 5 else "")
                if later is not None:
                    taker.finish(later)
            if monotonic() > self._pause_at:
                await asyncio.sleep(0)
                self._pause_at = monotonic() + SLICE_S
        return at
