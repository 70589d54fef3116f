"""The writing end of a stream: chunks that fit, in order, no further ahead than the reader allows (protocol §8)."""

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from msgspec import Raw

from broker.cancellation import ASKED_ONLY
from broker.conversation.effects import Publish
from broker.defaults import ENVELOPE_MARGIN_BYTES, STREAM_CHUNK_BYTES
from broker.errors import BrokerDisconnectedError, MoleculerError, PayloadTooLargeError
from broker.protocol.codecs.json import Codec
from broker.protocol.packets import NULL, Packet, Request
from broker.streams.flow import Flow

logger = logging.getLogger("broker")

MakePacket = Callable[[int, bool, Raw, BaseException | None], Packet]
"""Makes a packet of the stream: its sequence, whether more follow, the chunk, and what broke the stream."""


class _CutOff(Exception):
    """The connection is gone, so nothing more can be said. A source may raise BrokerDisconnectedError of its own."""


class Source:
    """Any iterable as a stream: its first item tells whether it is one of bytes or of values."""

    def __init__(self, items: Any) -> None:
        self._items = async_iterator(items)
        self._first: list[Any] = []
        self._failure: Exception | None = None
        self._announced = False
        self.of_bytes = True
        """Whether its items are bytes, which may be cut to fit."""

    @property
    def objects(self) -> bool:
        """Whether its reader is told that it is one of values."""
        return self._announced or not self.of_bytes

    async def open(self) -> None:
        """Wait for the first item. Raises what the iterable raises; when it was announced, its reader gets that."""
        try:
            async for item in self._items:
                self._first.append(item)
                self.of_bytes = isinstance(item, bytes | bytearray | memoryview)
                break
        except Exception as error:
            if not self._announced:
                raise
            self._failure = error

    def announce(self) -> None:
        """Its reader will be told of it before its first item is there: as of a stream of values, which bytes may be,
        too (§8.3)."""
        self._announced = True

    async def items(self) -> AsyncIterator[Any]:
        """Every item, the first one too."""
        for item in self._first:
            yield item
        self._first.clear()
        if self._failure is not None:
            raise self._failure
        async for item in self._items:
            yield item

    async def close(self) -> None:
        """Tell the iterable that nobody wants more. What its end raises is logged: nobody waits for it."""
        try:
            await close(self._items)
        except Exception:
            logger.exception("The source of a stream failed when it was closed")


class Outgoing:
    """Sends one stream. `owe` takes what its reader must be told when nodes and connections are back."""

    def __init__(
        self,
        codec: Codec,
        publish: Callable[[Publish], Any],
        owe: Callable[[list[Publish]], None],
        subject: str,
        mark_prefix: str,
        flow: Flow,
        max_payload: int | None,
        packet: MakePacket,
    ) -> None:
        self._codec = codec
        self._publish = publish
        self._owe = owe
        self._subject = subject
        self._mark_prefix = mark_prefix
        self._flow = flow
        self._max_payload = max_payload
        self._packet = packet
        self._sequence = 0
        self._envelope = 0

    async def open(self) -> None:
        """Send the packet that opens the stream. Errors of the transport pass."""
        await self._publish(Publish(self._subject, self._packet(0, True, NULL, None)))

    async def write(self, source: Source) -> None:
        """Send everything, then the end; an exception of the source goes to the reader, not to our caller."""
        try:
            error = await self._written(source)
            if not (self._flow.lost or self._flow.forgotten):
                await self._end(error)
        except _CutOff as cut:
            self._flow.lose(BrokerDisconnectedError(str(cut)))
        finally:
            await source.close()

    @property
    def is_settled(self) -> bool:
        """Whether its reader needs to learn no more. One on a node like this notices itself that it lacks chunks."""
        return not self._flow.lost and (self._flow.acknowledges or self._flow.stopped)

    async def settle(self) -> None:
        """Wait until the reader's node has received all, and let the reader know later when it has not."""
        if not self._flow.lost:
            await self._flow.settled()
        if self._flow.lost:
            self._break_off_late()

    async def break_off(self, error: Exception) -> None:
        """Tell the reader why nothing more will come."""
        try:
            await self._end(error)
        except _CutOff as cut:
            logger.warning("A stream was cut off: %s", cut)

    async def _written(self, source: Source) -> Exception | None:
        """Send the chunks. What broke the stream; of one that was broken off, too, the end lets the reader's node
        forget it."""
        try:
            async with self._flow.writing():
                await self._write(source)
        except _CutOff:
            raise
        except Exception as failure:
            return failure
        return self._flow.error

    async def _end(self, error: Exception | None) -> None:
        """The end of the stream, or what broke it."""
        if error is not None:
            await self._flow.hears_errors()
        try:
            await self._finish(error)
        except MoleculerError as unsendable:  # the error's data are too large, or have no form on the wire
            logger.warning("The error that broke a stream could not be sent: %s: %s", unsendable, error)
            await self._finish(unsendable)

    def _break_off_late(self) -> None:
        """A JS node that lacks a chunk puts aside what comes behind it, but it takes an end of sequence 1 at any time,
        or as the answer to the call when it lacks the opening, too."""
        error = self._flow.error
        logger.warning("A stream of '%s' to '%s' broke off: %s", self._flow.action, self._flow.node_id, error)
        late = [self._sequence + 1] if self._flow.acknowledges else [0, 1]
        packets = [self._packet(sequence, False, NULL, error) for sequence in late]
        if isinstance(packets[0], Request) and len(packets) > 1:
            del packets[0]  # it would be a call
        self._owe([Publish(self._subject, packet) for packet in packets])

    async def _write(self, source: Source) -> None:
        room = self._room()
        async for item in source.items():
            for chunk in self._chunks(item, room, of_bytes=source.of_bytes):
                await self._flow.room(len(chunk) + self._envelope)
                if self._flow.stopped:
                    return
                await self._send(chunk)

    def _chunks(self, item: Any, room: int | None, *, of_bytes: bool) -> "list[Raw]":
        if item is None:
            raise TypeError("A stream cannot hold None: in JavaScript that is the end of a stream.")
        if not of_bytes:
            raw = self._codec.encode_value(item)
            if room is not None and len(raw) > room and self._codec.size(raw) > room:
                raise PayloadTooLargeError(
                    f"A value of a stream has {len(raw)} bytes, and the NATS server leaves room for {room} "
                    "(max_payload). Send smaller values, or bytes, which are cut to fit.",
                    {"size": len(raw), "limit": room},
                )
            return [raw]
        if not isinstance(item, bytes | bytearray | memoryview):
            raise TypeError(f"The stream began with bytes and goes on with {type(item).__name__}.")
        limit = STREAM_CHUNK_BYTES if room is None else min(STREAM_CHUNK_BYTES, self._codec.chunk_limit(room))
        return [self._codec.encode_value(piece) for piece in split(bytes(item), limit)]

    async def _send(self, chunk: Raw) -> None:
        sequence = self._sequence + 1
        reply_id = f"{self._mark_prefix}:{sequence}" if self._flow.mark(len(chunk)) else None
        await self._next(self._packet(sequence, True, chunk, None), reply_id)
        await self._flow.sent()

    async def _finish(self, error: BaseException | None) -> None:
        await self._next(self._packet(self._sequence + 1, False, NULL, error))

    async def _next(self, packet: Packet, reply_id: str | None = None) -> None:
        """Send the next packet. One that was refused has used up no sequence; one that was broken off may be out."""
        self._sequence += 1
        try:
            await self._publish(Publish(self._subject, packet, reply_id))
        except BrokerDisconnectedError as lost:
            raise _CutOff(str(lost)) from lost
        except MoleculerError:
            self._sequence -= 1
            raise

    def _room(self) -> int | None:
        """What a chunk may take of a packet: every packet of a stream repeats its envelope."""
        self._envelope = len(self._codec.encode(self._packet(2**31, True, NULL, None)))
        if self._max_payload is None:
            return None
        return max(1, self._max_payload - self._envelope - ENVELOPE_MARGIN_BYTES)


def split(data: bytes, size: int) -> Iterator[bytes]:
    """Bytes in chunks of at most `size`; the bytes themselves when they fit."""
    if len(data) <= size:
        yield data
        return
    view = memoryview(data)
    for start in range(0, len(data), size):
        yield bytes(view[start : start + size])


def is_stream(value: object) -> bool:
    """Whether a handler's result is to be sent as a stream."""
    return hasattr(value, "__aiter__")


async def async_iterator(items: Any) -> AsyncIterator[Any]:
    """One async iterator for async and plain iterables; bytes themselves are one chunk."""
    if isinstance(items, bytes | bytearray | memoryview):
        yield bytes(items)
    elif hasattr(items, "__aiter__"):
        try:
            with ASKED_ONLY:
                async for item in items:
                    yield item
        finally:
            await close(items)
    else:
        for item in items:
            yield item


async def close(items: Any) -> None:
    """Close what can be closed."""
    aclose = getattr(items, "aclose", None)
    if aclose is not None:
        await aclose()
