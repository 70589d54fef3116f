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
    RequestRejectedError,
    RequestTimeoutError,
)
from broker.protocol.packets import NULL, Request, Response
from broker.streams.flow import Fate, Flow
from broker.streams.outgoing import BYTES, Envelope, OutgoingStreams, chunks_of, open_answer, open_request
from broker.streams.reader import async_iterator, close_quietly

logger = logging.getLogger("broker")


class StreamWriter:
    """Sends one source to one node, until it ends, its reader goes, or this node stops.

    The source is read in one task from its first item to its end: what it opens on the way, such as a scope or a task
    group, can be closed in no other. The first item decides whether it is a stream of bytes or of values. A call goes
    to a node only when that item is there, or is late, and to another node when the first turns out to be gone.
    """

    _flow: Flow
    _envelope: Envelope

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
        self._early = False
        """Whether it opens before its first item is there."""
        self._begun = asyncio.Event()
        self._decided = asyncio.Event()
        """Set when it is known what becomes of the items."""
        self._handed_over = False
        self._section: asyncio.Timeout | None = None
        self._on_lost: Callable[[Exception], None] | None = None
        self._sequence = 0
        self._errors_from = 0.0

    # Before the first chunk

    async def begin(self) -> None:
        """Wait for the first item, but not for long, as it may be an answer to what is sent along: a stream that opens
        without it is one of values, which bytes may be, too (§8.3). Raises what the source raises meanwhile."""
        if not self._streams.tasks.start_handler(self._run()):
            raise BrokerDisconnectedError("The broker has stopped.")
        with anyio.move_on_after(STREAM_OPENING_S):
            await self._begun.wait()
        self._early = not self._begun.is_set()
        if self._failure is not None and not self._early:
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
        self._flow = self._streams.open("REQ", request, node_id)
        if request.timeout and not self._flow.acknowledges:
            request.timeout += STREAM_TIMEOUT_MARGIN_S * 1000
        self._envelope = open_request(request, objects=self._early or not self._of_bytes)

    async def answer(self, request: Request, reply: str, ctx: Context, deadline: float | None) -> Self:
        """Answer a request with the stream. Raises what its source raises before, RequestTimeoutError when the deadline
        passes, and errors of the transport."""
        try:
            async with asyncio.timeout_at(deadline) as in_time:
                await self.begin()
            objects = self._early or not self._of_bytes
            self._envelope = open_answer(request, self._streams.node_id, ctx, objects=objects)
            self._flow = self._streams.open("RES", request, request.sender, reply)
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
        node may. One of a Python node has finished reading; after an error there is no reader."""
        response, stream = answer
        return stream is not None or (bool(response.success) and not self._flow.acknowledges)

    def answered(self, answer: tuple[Response, object]) -> None:
        """The call is answered: send no more, unless the stream goes on. A JS node forgets the stream of a request that
        it answers with an error, and takes what comes then for a new one, which it keeps (§8.4)."""
        if not self.outlives(answer):
            self.finish(Fate.STOPPED if self._flow.acknowledges else Fate.FORGOTTEN)

    def cancel(self) -> None:
        """The call was cancelled or timed out, and the handler that reads shall know."""
        self.finish(Fate.STOPPED, self._cut_off())

    def finish(self, fate: Fate, error: Exception | None = None) -> None:
        """Send no more, but the end, also of a stream that had not begun: a handler may wait for it."""
        self._flow.stop(fate, error)
        if not self.sent:
            self.go_on()

    def drop(self) -> None:
        """Send no more for a call that reached no node, or whose node is gone."""
        if self.sent:
            self._flow.stop(Fate.STOPPED, self._cut_off())
        else:
            self._streams.close(self._flow)

    def _cut_off(self) -> RequestRejectedError:
        """The error for the reader when this node ends the stream before its source does."""
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
                self._of_bytes = isinstance(item, BYTES)
                break
            self._failure = None
        except Exception as error:
            self._failure = error
        finally:
            self._begun.set()

    async def _all_items(self) -> AsyncIterator[Any]:
        await self._begun.wait()
        while self._first:
            yield self._first.pop()
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
        """Send all items, then the end, with what broke the source. The end also lets the reader's node forget a stream
        that was broken off."""
        flow = self._flow
        self._errors_from = asyncio.get_running_loop().time() + STREAM_ERROR_AFTER_OPENING_S
        try:
            failure = None
            try:
                async with self._breakable():
                    await self._send_items()
            except Exception as error:
                failure = error
            if flow.fate in (Fate.OPEN, Fate.STOPPED):
                await self._end(failure if flow.fate is Fate.OPEN else flow.error)
        finally:
            self.done.set()
            await close_quietly(self._items)
            # A reader on a Python node notices itself that it lacks chunks.
            if flow.fate is Fate.LOST or (flow.fate is Fate.OPEN and not flow.acknowledges):
                self._streams.tasks.start_in_background(self._settle())
            else:
                self._streams.close(flow)

    async def _send_items(self) -> None:
        """Send the chunks, each in a packet that repeats the envelope and fits into `max_payload`."""
        streams, flow = self._streams, self._flow
        envelope = len(streams.codec.encode(self._envelope.packet(2**31, True)))
        limit = None if streams.wire is None else streams.wire.max_payload
        room = None if limit is None else max(1, limit - envelope - ENVELOPE_MARGIN_BYTES)
        pause_at = monotonic() + SLICE_S  # what is there and has room goes out without a wait
        async for item in self._all_items():
            for chunk in chunks_of(item, streams.codec, room, of_bytes=self._of_bytes):
                if not await flow.room(len(chunk) + envelope):
                    return
                await self._next(True, chunk, reply_id=flow.mark(len(chunk), self._sequence + 1))
                await flow.pace.sent()
                if monotonic() >= pause_at:
                    await asyncio.sleep(0)
                    pause_at = monotonic() + SLICE_S

    async def _end(self, error: Exception | None) -> None:
        """The end of the stream, or what broke it. A JS node that receives the opening and an error at once has no
        reader yet: the error would be lost there, and the end with it."""
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
                async with self._breakable():
                    with anyio.move_on_after(STREAM_SETTLED_S):
                        await flow.pace.settled()
            if flow.fate is Fate.LOST:
                logger.warning("A stream of '%s' to '%s' broke off: %s", flow.action, flow.pace.node_id, flow.error)
            with anyio.move_on_after(FORGET_OFFLINE_S):
                while flow.fate is Fate.LOST:
                    await self._end_late()
                    await flow.pace.settled()
        finally:
            self._streams.close(flow)

    async def _end_late(self) -> None:
        """Send the end to a reader that lacks chunks, when its node is there; not to another process of that id.

        Its node puts aside what comes behind a lost chunk, but takes an end of sequence 1 at any time, and one of
        sequence 0 as the answer to the call when it lacks the opening, too. In a request that would be a call.
        """
        flow, wait_s = self._flow, STREAM_PING_AGAIN_S
        while flow.fate is not Fate.FORGOTTEN:
            node = self._streams.registry.nodes.get(flow.pace.node_id)
            if node is not None and flow.instance_id not in (None, node.instance_id):
                flow.fate = Fate.FORGOTTEN
            elif node is None or node.available:
                flow.fate = Fate.STOPPED  # until this is lost, too
                try:
                    for sequence in [1] if isinstance(self._envelope.rest, Request) else [0, 1]:
                        packet = self._envelope.packet(sequence, False, NULL, flow.error)
                        await self._streams.publish(flow.subject, packet, None)
                    return
                except MoleculerError as error:
                    logger.debug("Could not send %s: %s", flow.subject, error)
            await asyncio.sleep(wait_s)
            wait_s *= 1.2
