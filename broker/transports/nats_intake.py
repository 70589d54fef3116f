"""Messages that the task which reads them handles at once, as long as none before them has to wait for something.

nats-py tries several regular expressions on each message and queues it for another task, which costs more than most
messages do.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from time import monotonic

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.protocol.parser import Parser

from broker.defaults import SLICE_S
from broker.transports.base import Later

Take = Callable[[bytes, str], Later | None]
"""Handles a message: its bytes, and where to reply to. Returns what is left to do."""


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

    later: Later


class Intake(Parser):
    """Reads messages one after the other. What else a server sends is read by nats-py."""

    nc: Client

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self.takers: dict[bytes, tuple[Take, Subscription]] = {}
        """By the id of the subscription, as the server writes it."""
        self.overlap: Overlap | None = None
        """Set while another connection receives the same messages."""
        self.overrun: set[int] = set()
        """Subscriptions of which messages were dropped, until there is room again."""
        self._pause_at = 0.0

    def reset(self) -> None:
        super().reset()
        self._wanted = 0
        """How many bytes `buf` must have before it is looked at again."""

    def is_new(self, subject: str, data: bytes) -> bool:
        """Whether a message has not come over the other one of two connections already."""
        return self.overlap is None or self.overlap.is_new(subject, data, self)

    def handler(self, take: Take) -> Callable[[Msg], Awaitable[None]]:
        """What nats-py calls for the messages that it has queued."""

        async def handle(message: Msg) -> None:
            later: Later | None = None
            if isinstance(message, _Left):
                later = message.later
            elif self.is_new(message.subject, message.data):
                later = take(message.data, message.reply)
            if later is not None:
                await later()

        return handle

    async def parse(self, data: bytes = b"") -> None:
        """Handle what was read. Where much arrives, other work comes in between."""
        if self._wanted:
            self.buf += data
            if len(self.buf) < self._wanted:
                return
            data = bytes(self.buf)
            self.reset()
        at, length = 0, len(data)
        while at < length:
            line_end = data.find(b"\r\n", at)
            begin = end = line_end + 2
            words = data[at:line_end].split()
            if line_end >= 0 and words and words[0] in _WITH_DATA and words[-1].isdigit():
                end += int(words[-1]) + 2
            if line_end < 0 or end > length:
                self._wanted = max(end, length + 1) - at
                self.buf += data[at:] if at else data
                return
            taker = self.takers.get(words[2]) if len(words) > 3 and words[0] == b"MSG" else None
            if taker is None or taker[1]._pending_queue._unfinished_tasks:  # type: ignore[attr-defined]  # of asyncio
                await super().parse(data[at:end])
            else:
                take, live = taker
                live._received += 1
                if self.overrun:
                    self.overrun.discard(int(words[2]))
                payload = data[begin : end - 2]
                if self.overlap is None or self.is_new(words[1].decode(), payload):
                    later = take(payload, words[3].decode() if len(words) > 4 else "")
                    if later is not None:
                        left = _Left(self.nc)
                        left.later = later
                        live._pending_queue.put_nowait(left)
                if monotonic() > self._pause_at:
                    await asyncio.sleep(0)
                    self._pause_at = monotonic() + SLICE_S
            at = end


_WITH_DATA = (b"MSG", b"HMSG")
"""What is followed by bytes of which the last word says how many."""
