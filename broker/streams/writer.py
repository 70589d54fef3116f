"""The writing end of a stream: chunks that fit, in order, no further ahead than the reader allows, and one end
(protocol §8)."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any, Self

import anyio
from msgspec import Raw

from broker.context import Context
from broker.defaults import (
    ENVELOPE_MARGIN_BYTES,
    FORGET_OFFLINE_S,
    SLICE_S,
    STREAM_CHUNK_BYTES,
    STREAM_ERROR_AFTER_OPENING_S,
    STREAM_OPENING_S,
    STREAM_PING_AGAIN_S,
    STREAM_SETTLED_S,
    STREAM_TIMEOUT_MARGIN_S,
)
from broker.errors import (
    BrokerDisconnectedError,
    MoleculerClientError,
    MoleculerError,
    PayloadTooLargeError,
    RequestRejectedError,
    RequestTimeoutError,
)
from broker.protocol.packets import NULL, Request, Response
from broker.streams.flow import FLOW_CONTROL, Fate, Flow
from broker.streams.outgoing import OutgoingStreams
from broker.streams.packets import Envelope, has_inbox, open_answer, open_request
from broker.streams.source import async_iterator, close_quietly

logger = logging.getLogger("broker")


class StreamWriter:
    """Sends one source to one node, until it ends, its reader goes, or this node stops.

    The source is read in one task from its first item to its end: what it opens on the way, such as a scope or a task
    group, can be closed in no other. The first item tells whether it is one of bytes or of values. The node that the
    stream of a call goes to is known only when that item is there, or is late, and may be another one when the first
    turns out to be gone.
    """

    def __init__(self, streams: OutgoingStreams, items: Any) -> None:
        self.sent = False
        """Whether items may have gone out: they cannot be sent again."""
        self.done = asyncio.Event()
        """Set when all has been sent that will be."""
        self._streams = streams
        self._items = async_iterator(items)
        self._first: list[Any] = []
        self._failure: Exception | None = None
        self._of_bytes = True
        """Whether its items are bytes, which may be cut to fit."""
        self._late = False
        """Whether it opens before its first item is there."""
        self._handed_over = False
        self._begun = asyncio.Event()
        self._decided = asyncio.Event()
        self._section: asyncio.Timeout | None = None
        self._flow: Flow
        self._envelope: Envelope
        self._on_lost: Callable[[Exception], None] | None = None
        self._sequence = self._envelope_bytes = 0
        self._errors_from = 0.0

    # Before the first chunk

    async def begin(self) -> None:
        """Wait for the first item, but not for long, as it may be an answer to what is sent along: a stream that opens
        without it is one of values, which bytes may be, too (§8.3). Raises what the source raises meanwhile."""
        if not self._streams.tasks.start_handler(self._run()):
            raise BrokerDisconnectedError("The broker has stopped.")
        with anyio.move_on_after(STREAM_OPENING_S):
            await self._begun.wait()
        if not self._begun.is_set():
            self._late = True
        elif self._failure is not None:
            raise self._failure

    def along_with(self, request: Request, node_id: str, *, has_params: bool) -> None:
        """Make `request`, which goes to a node, the opening packet.

        Raises MoleculerClientError when params cannot travel too: towards a node of protocol 4 the stream takes their
        place (§8.1).
        """
        if request.ver == "4" and has_params:
            raise MoleculerClientError(
                f"'{node_id}' speaks protocol 4 (Moleculer 0.14), in which a stream replaces the params. Send them in "
                "meta instead.",
                400,
                "STREAM_REPLACES_PARAMS",
            )
        node = self._streams.registry.nodes.get(node_id)
        marks = node is not None and bool(node.client.get(FLOW_CONTROL))
        if request.timeout and not marks:
            request.timeout += STREAM_TIMEOUT_MARGIN_S * 1000
        self._envelope = open_request(request, objects=self._late or not self._of_bytes)
        self._flow = self._streams.open("REQ", request, node_id, marks=marks)

    async def answer(self, request: Request, reply: str, ctx: Context, deadline: float | None) -> Self:
        """Answer a request with the stream. Raises what its source raises before, RequestTimeoutError when the deadline
        passes, and errors of the transport."""
        try:
            async with asyncio.timeout_at(deadline) as in_time:
                await self.begin()
            objects = self._late or not self._of_bytes
            self._envelope = open_answer(
                request, self._streams.node_id, ctx.meta, ctx.response_headers, objects=objects
            )
            self._flow = self._streams.open("RES", request, request.sender, marks=has_inbox(request, reply))
            try:
                await self._streams.publish(self._flow.subject, self._envelope.packet(0, True), None)
            except BaseException:
                self.drop()
                raise
        except BaseException as error:
            self.close()
            if isinstance(error, TimeoutError) and in_time.expired():
                raise RequestTimeoutError({"action": request.action, "nodeID": request.sender}) from None
            raise
        self.go_on()
        return self

    def go_on(self, on_lost: Callable[[Exception], None] | None = None) -> None:
        """Send the chunks. `on_lost` gets the reason when some do not arrive."""
        self.sent, self._on_lost, self._flow.on_stop = True, on_lost, self._stopped
        self._decided.set()
        if self._flow.fate is not Fate.OPEN:
            self._break_off()

    def hand_over(self) -> AsyncIterator[Any]:
        """The items, for a handler of this node, which closes the source."""
        self._handed_over = True
        self._decided.set()
        return self._all_items()

    def close(self) -> None:
        """Close the source, unless it is on its way."""
        if not self._decided.is_set():
            self._break_off()

    # What becomes of the call that it goes along with

    def outlives(self, answer: tuple[Response, object]) -> bool:
        """Whether it goes on when its call is answered: a handler that answers with a stream reads on, and one of a JS
        node may. One of a Python node has read what it wanted; after an error there is no reader."""
        response, stream = answer
        return stream is not None or (bool(response.success) and not self._flow.acknowledges)

    def answered(self, answer: tuple[Response, object]) -> None:
        """The call is answered: send no more, unless the stream goes on. A JS node forgets the stream of a request that
        it answers with an error, and takes what comes then for a new one, which it keeps (§8.4)."""
        if self.outlives(answer):
            return
        if self._flow.acknowledges:
            self._give_up(None)
        else:
            self._flow.stop(Fate.FORGOTTEN)
            self.drop()

    def cancel(self) -> None:
        """The call was cancelled or timed out, and the handler that reads shall know."""
        self._give_up(self._cut_off())

    def cut(self, error: Exception) -> None:
        """The connection was lost behind the request: its handler, which may have begun, learns when it is back that
        nothing follows."""
        self._flow.stop(Fate.LOST, error)
        self.go_on()

    def drop(self) -> None:
        """Send no more for a call that reached no node, or whose node is gone."""
        if self.sent:
            self._flow.stop(Fate.STOPPED, self._cut_off())
        else:
            self._streams.close(self._flow)

    def _give_up(self, error: MoleculerError | None) -> None:
        """The end goes out also of a stream that had not begun: its handler waits for it."""
        if not self.sent:
            self.go_on()
        self._flow.stop(Fate.STOPPED, error)

    def _cut_off(self) -> RequestRejectedError:
        """What the reader is told when this node ends the stream before its source does."""
        return RequestRejectedError({"action": self._flow.action, "nodeID": self._streams.node_id})

    # The task that reads and writes

    async def _run(self) -> None:
        try:
            async with self._breakable():
                await self._read_first()
                await self._decided.wait()
            if self.sent:
                await self._write()
        except asyncio.CancelledError:  # this node stops
            if self.sent:
                with anyio.CancelScope(shield=True):
                    await self._end(self._cut_off())
            raise
        finally:
            if not self._handed_over:
                await close_quietly(self._items)

    async def _read_first(self) -> None:
        self._failure = BrokerDisconnectedError("The broker has stopped.")  # unless this comes to its end
        try:
            async for item in self._items:
                self._first.append(item)
                self._of_bytes = isinstance(item, bytes | bytearray | memoryview)
                break
            self._failure = None
        except Exception as error:
            self._failure = error
        finally:
            self._begun.set()

    async def _all_items(self) -> AsyncIterator[Any]:
        await self._begun.wait()
        for item in self._first:
            yield item
        self._first.clear()
        if self._failure is not None:
            raise self._failure
        async for item in self._items:
            yield item

    @asynccontextmanager
    async def _breakable(self) -> AsyncIterator[None]:
        """What is done in here is broken off by `_break_off`, wherever it waits: the next item may never come."""
        try:
            async with asyncio.timeout(None) as section:
                self._section = section
                yield
        except TimeoutError:
            if not section.expired():
                raise
        finally:
            self._section = None

    def _break_off(self) -> None:
        if self._section is not None:
            self._section.reschedule(asyncio.get_running_loop().time())
            self._section = None

    def _stopped(self) -> None:
        self._break_off()
        if self._flow.fate is Fate.LOST and self._on_lost is not None and self._flow.error is not None:
            self._on_lost(self._flow.error)

    async def _write(self) -> None:
        """Send everything, then the end; an exception of the source goes to the reader, not to our caller."""
        flow = self._flow
        self._errors_from = asyncio.get_running_loop().time() + STREAM_ERROR_AFTER_OPENING_S
        try:
            error = await self._written()
            if flow.fate in (Fate.OPEN, Fate.STOPPED):
                await self._end(error)
        finally:
            self.done.set()
            await close_quietly(self._items)
            # A reader on a Python node notices itself that it lacks chunks.
            if flow.fate is Fate.LOST or (flow.fate is Fate.OPEN and not flow.acknowledges):
                self._streams.tasks.start_in_background(self._settle())
            else:
                self._streams.close(flow)

    async def _written(self) -> Exception | None:
        """Send the chunks. What broke the stream; of one that was broken off, too, the end lets the reader's node
        forget it."""
        try:
            async with self._breakable():
                await self._send_items()
        except Exception as failure:
            if self._flow.fate is Fate.OPEN:
                return failure
        return self._flow.error

    async def _send_items(self) -> None:
        flow, room = self._flow, self._room()
        pause_at = monotonic() + SLICE_S  # what is there and has room goes out without a wait
        async for item in self._all_items():
            for chunk in self._chunks(item, room):
                if not await flow.room(len(chunk) + self._envelope_bytes):
                    return
                reply_id = f"{flow.key}:{self._sequence + 1}" if flow.mark(len(chunk)) else None
                await self._next(True, chunk, reply_id=reply_id)
                await flow.pace.sent()
                if monotonic() >= pause_at:
                    await asyncio.sleep(0)
                    pause_at = monotonic() + SLICE_S

    def _room(self) -> int | None:
        """What a chunk may take of a packet: every packet of a stream repeats its envelope."""
        self._envelope_bytes = len(self._streams.codec.encode(self._envelope.packet(2**31, True)))
        limit = None if self._streams.wire is None else self._streams.wire.max_payload
        return None if limit is None else max(1, limit - self._envelope_bytes - ENVELOPE_MARGIN_BYTES)

    def _chunks(self, item: Any, room: int | None) -> list[Raw]:
        codec = self._streams.codec
        if item is None:
            raise TypeError("A stream cannot hold None: in JavaScript that is the end of a stream.")
        if not self._of_bytes:
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

    async def _end(self, error: Exception | None) -> None:
        """The end of the stream, or what broke it. A JS node that takes in the opening and an error at once has no
        reader yet to tell: the error is lost there, and with it the end, so that its reader would wait for ever."""
        if error is not None and not self._flow.acknowledges:
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
            packet = self._envelope.packet(self._sequence, more, chunk, error)
            await self._streams.publish(self._flow.subject, packet, reply_id)
        except BrokerDisconnectedError as lost:  # not raised: it is not the source's
            self._flow.stop(Fate.LOST, lost)
        except MoleculerError:
            self._sequence -= 1
            raise

    # After the last chunk

    async def _settle(self) -> None:
        """Wait until the reader's node has received all; when it has not, let the reader know."""
        flow = self._flow
        try:
            if flow.fate is not Fate.LOST:
                with anyio.move_on_after(STREAM_SETTLED_S):
                    await self._received()
            if flow.fate is Fate.LOST:
                logger.warning("A stream of '%s' to '%s' broke off: %s", flow.action, flow.pace.node_id, flow.error)
            with anyio.move_on_after(FORGET_OFFLINE_S):
                while flow.fate is Fate.LOST:
                    await self._end_late()
                    await self._received()
        finally:
            self._streams.close(flow)

    async def _received(self) -> None:
        async with self._breakable():
            await self._flow.pace.settled()

    async def _end_late(self) -> None:
        """Send the end to a reader that lacks chunks, when its node is there; not to another process of that id.

        A JS node that lacks a chunk puts aside what comes behind it, but it takes an end of sequence 1 at any time, or
        as the answer to the call when it lacks the opening, too.
        """
        flow = self._flow
        late = [self._sequence + 1] if flow.acknowledges else [0, 1]
        if isinstance(self._envelope.rest, Request):
            late = late[-1:]  # the other one would be a call
        while flow.fate is not Fate.FORGOTTEN:
            node = self._streams.registry.nodes.get(flow.pace.node_id)
            if node is not None and flow.instance_id not in (None, node.instance_id):
                flow.fate = Fate.FORGOTTEN
            elif node is None or node.available:
                flow.fate = Fate.STOPPED  # until it is lost, too
                try:
                    for sequence in late:
                        await self._streams.publish(
                            flow.subject, self._envelope.packet(sequence, False, NULL, flow.error), None
                        )
                    return
                except MoleculerError as error:
                    logger.debug("Could not send %s: %s", flow.subject, error)
            await asyncio.sleep(STREAM_PING_AGAIN_S)
