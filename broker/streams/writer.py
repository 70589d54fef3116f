"""The writing end of a stream: chunks that fit, in order, no further ahead than the reader allows, and one end
(protocol §8)."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Protocol

import anyio
from msgspec import Raw

from broker.defaults import (
    ENVELOPE_MARGIN_BYTES,
    STREAM_CHUNK_BYTES,
    STREAM_ERROR_AFTER_OPENING_S,
    STREAM_SETTLED_S,
)
from broker.errors import (
    BrokerDisconnectedError,
    MoleculerError,
    PayloadTooLargeError,
    RequestRejectedError,
)
from broker.protocol.codecs.json import Codec
from broker.protocol.packets import NULL, Packet, Request, Response
from broker.streams.flow import Fate, Flow, Route
from broker.streams.source import Source

logger = logging.getLogger("broker")

MakePacket = Callable[[int, bool, Raw, BaseException | None], Packet]
"""Makes a packet of the stream: its sequence, whether more follow, the chunk, and what broke the stream."""


class Tasks(Protocol):
    """Starts tasks of a node."""

    def start_handler(self, work: Coroutine[Any, Any, None]) -> bool: ...

    def start_in_background(self, work: Coroutine[Any, Any, None]) -> None: ...


class Outlet(Protocol):
    """What a writer needs of its node."""

    @property
    def node_id(self) -> str: ...

    @property
    def codec(self) -> Codec: ...

    @property
    def tasks(self) -> Tasks: ...

    @property
    def max_payload(self) -> int | None: ...

    def publish(self, subject: str, packet: Packet, reply_id: str | None, /) -> Awaitable[None]:
        """Send a packet, or raise MoleculerError."""

    def owe(self, flow: Flow, ends: list[Packet]) -> None:
        """The stream broke off, and its reader may lack chunks, or cannot be told now."""

    def close(self, flow: Flow) -> None:
        """The stream is over."""


class CutOff(Exception):
    """The connection is gone, so nothing more can be said. A source may raise BrokerDisconnectedError of its own."""


class StreamWriter(Flow):
    """Sends one source to one node, in the task that reads it, until it ends, its reader goes, or this node stops."""

    def __init__(self, outlet: Outlet, source: Source, route: Route, packet: MakePacket) -> None:
        super().__init__(route)
        self._outlet = outlet
        self._source = source
        self._packet = packet
        self._cut_off = RequestRejectedError({"action": route.action, "nodeID": outlet.node_id})
        """What the reader is told when this node ends the stream before its source does."""
        self._on_lost: Callable[[Exception], None] | None = None
        self._sequence = self._envelope = 0
        self._errors_from = 0.0
        self._begun = False
        self.done = asyncio.Event()
        """Set when all has been sent that will be."""

    async def open(self) -> None:
        """Open the stream of an answer; that of a call is opened by its request. Errors of the transport pass."""
        try:
            await self._outlet.publish(self.route.subject, self._packet(0, True, NULL, None), None)
        except BaseException:
            self._outlet.close(self)
            raise

    def go_on(self, lost: Callable[[Exception], None] | None = None) -> None:
        """Send the chunks. `lost` gets the reason when some do not arrive."""
        self._begun, self._on_lost = True, lost
        self._source.send(self.write, self.cut_short)
        if self.fate is not Fate.OPEN:
            self._source.break_off()

    def outlives(self, answer: tuple[Response, object]) -> bool:
        """Whether it goes on when its call is answered: a handler that answers with a stream reads on, and one of a JS
        node may. One of a node like this has read what it wanted; after an error there is no reader."""
        response, stream = answer
        return stream is not None or (bool(response.success) and not self.route.acknowledges)

    def answered(self, answer: tuple[Response, object]) -> None:
        """The call is answered: send no more, unless the stream goes on. A JS node forgets the stream of a request that
        it answers with an error."""
        if self.outlives(answer):
            return
        if self.route.acknowledges:
            self._give_up(None)
        else:
            self.forget()
            self.drop()

    def cancel(self) -> None:
        """The call was cancelled or timed out, and the handler that reads shall know."""
        self._give_up(self._cut_off)

    def cut(self, error: Exception) -> None:
        """The connection was lost behind the request: its handler, which may have begun, learns when it is back that
        nothing follows."""
        self.lose(error)
        self.go_on()

    def drop(self) -> None:
        """Send no more for a call that reached no node, or whose node is gone."""
        if self._begun:
            self.stop(self._cut_off)
        else:
            self._outlet.close(self)

    def _give_up(self, error: MoleculerError | None) -> None:
        """The end goes out also of a stream that had not begun: its handler waits for it."""
        if not self._begun:
            self.go_on()
        self.stop(error)

    def stopped(self) -> None:
        if self._begun:
            self._source.break_off()
        if self.fate is Fate.LOST and self._on_lost is not None and self.error is not None:
            self._on_lost(self.error)

    async def write(self) -> None:
        """Send everything, then the end; an exception of the source goes to the reader, not to our caller."""
        self._errors_from = asyncio.get_running_loop().time() + STREAM_ERROR_AFTER_OPENING_S
        try:
            error = await self._written()
            if self.fate in (Fate.OPEN, Fate.STOPPED):
                await self._end(error)
        except CutOff as cut:
            self.lose(BrokerDisconnectedError(str(cut)))
        finally:
            self.done.set()
            await self._source.close()
            # A reader on a node like this notices itself that it lacks chunks.
            if self.fate is not Fate.LOST and (self.route.acknowledges or self.fate is not Fate.OPEN):
                self._outlet.close(self)
            else:
                self._outlet.tasks.start_in_background(self._settle())

    async def cut_short(self) -> None:
        """This node stops: tell the reader."""
        with anyio.CancelScope(shield=True):
            try:
                await self._end(self._cut_off)
            except CutOff as cut:
                logger.warning("A stream was cut off: %s", cut)

    async def _written(self) -> Exception | None:
        """Send the chunks. What broke the stream; of one that was broken off, too, the end lets the reader's node
        forget it."""
        try:
            async with self._source.breakable():
                await self._write()
        except CutOff:
            raise
        except Exception as failure:
            return failure if self.fate is Fate.OPEN else self.error
        return self.error

    async def _write(self) -> None:
        room = self._room()
        async for item in self._source.items():
            for chunk in self._chunks(item, room):
                if not await self.room(len(chunk) + self._envelope):
                    return
                reply_id = f"{self.route.mark}:{self._sequence + 1}" if self.mark(len(chunk)) else None
                await self._next(True, chunk, reply_id=reply_id)
                await self.route.pace.sent()

    def _chunks(self, item: Any, room: int | None) -> "list[Raw]":
        codec = self._outlet.codec
        if item is None:
            raise TypeError("A stream cannot hold None: in JavaScript that is the end of a stream.")
        if not self._source.of_bytes:
            raw = codec.encode_value(item)
            if room is not None and len(raw) > room and codec.size(raw) > room:
                raise PayloadTooLargeError(
                    f"A value of a stream has {len(raw)} bytes, and the NATS server leaves room for {room} "
                    "(max_payload). Send smaller values, or bytes, which are cut to fit.",
                    {"size": len(raw), "limit": room},
                )
            return [raw]
        if not isinstance(item, bytes | bytearray | memoryview):
            raise TypeError(f"The stream began with bytes and goes on with {type(item).__name__}.")
        limit = STREAM_CHUNK_BYTES if room is None else min(STREAM_CHUNK_BYTES, codec.chunk_limit(room))
        data = bytes(item)
        return [codec.encode_value(data[start : start + limit]) for start in range(0, len(data) or 1, limit)]

    def _room(self) -> int | None:
        """What a chunk may take of a packet: every packet of a stream repeats its envelope."""
        self._envelope = len(self._outlet.codec.encode(self._packet(2**31, True, NULL, None)))
        limit = self._outlet.max_payload
        return None if limit is None else max(1, limit - self._envelope - ENVELOPE_MARGIN_BYTES)

    async def _end(self, error: Exception | None) -> None:
        """The end of the stream, or what broke it. A JS node that takes in the opening and an error at once has no
        reader yet to tell: the error is lost there, and with it the end, so that its reader would wait for ever."""
        if error is not None and not self.route.acknowledges:
            await asyncio.sleep(self._errors_from - asyncio.get_running_loop().time())
        try:
            await self._next(False, NULL, error)
        except MoleculerError as unsendable:  # the error's data are too large, or have no form on the wire
            logger.warning("The error that broke a stream could not be sent: %s: %s", unsendable, error)
            await self._next(False, NULL, unsendable)

    async def _next(
        self, more: bool, chunk: Raw, error: BaseException | None = None, *, reply_id: str | None = None
    ) -> None:
        """Send the next packet. One that was refused has used up no sequence; one that was broken off may be out."""
        self._sequence += 1
        try:
            packet = self._packet(self._sequence, more, chunk, error)
            await self._outlet.publish(self.route.subject, packet, reply_id)
        except BrokerDisconnectedError as lost:
            raise CutOff(str(lost)) from lost
        except MoleculerError:
            self._sequence -= 1
            raise

    async def _settle(self) -> None:
        """Wait until the reader's node has received all, and let the reader know later when it has not."""
        try:
            if self.fate is not Fate.LOST:
                with suppress(TimeoutError):
                    async with self._source.breakable(), asyncio.timeout(STREAM_SETTLED_S):
                        await self.route.pace.settled()
            if self.fate is Fate.LOST:
                self._break_off_late()
        finally:
            self._outlet.close(self)

    def _break_off_late(self) -> None:
        """A JS node that lacks a chunk puts aside what comes behind it, but it takes an end of sequence 1 at any time,
        or as the answer to the call when it lacks the opening, too."""
        logger.warning("A stream of '%s' to '%s' broke off: %s", self.route.action, self.route.node_id, self.error)
        late = [self._sequence + 1] if self.route.acknowledges else [0, 1]
        ends = [self._packet(sequence, False, NULL, self.error) for sequence in late]
        if isinstance(ends[0], Request) and len(ends) > 1:
            del ends[0]  # it would be a call
        self._outlet.owe(self, ends)
