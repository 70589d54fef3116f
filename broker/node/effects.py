"""What the transit decided, done: packets sent, work handed over, waiters settled."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import msgspec

from broker.conversation.effects import (
    AnswerMark,
    Conflict,
    Effect,
    Log,
    Notify,
    PongArrived,
    Publish,
    ReaderGone,
    Reject,
    RunAction,
    RunEvent,
    Settle,
    trouble,
)
from broker.conversation.transit import Transit
from broker.errors import BrokerDisconnectedError, MoleculerError, PayloadTooLargeError, error_to_wire
from broker.protocol.codecs.json import Codec
from broker.protocol.packets import NULL, Disconnect, Discover, Info, Packet, Peers, Pong, Response
from broker.streams.incoming import StreamBuffer
from broker.streams.outgoing import OutgoingStreams, Tasks
from broker.streams.reader import StreamReader
from broker.transports.base import Transport

logger = logging.getLogger("broker")

INVISIBLE = (
    "What this node offers makes an announcement of %d bytes, and the NATS server takes %d at most (max_payload), so "
    "other nodes do not see this node as it is. Raise max_payload at the server, put fewer services on one node, or "
    "publish less of their settings, metadata and parameters. The node goes on, and tries again when they change."
)

Answer = tuple[Response, StreamReader | None]
"""What a request's waiter is settled with."""


class Undelivered(Exception):
    """No node received a request, so another may be asked. Never leaves the broker."""

    def __init__(self, error: MoleculerError) -> None:
        super().__init__(str(error))
        self.error = error


class Host(Protocol):
    """Runs what peers ask for. Both methods return at once."""

    def run_action(self, job: RunAction) -> None: ...

    def run_event(self, effect: RunEvent) -> None: ...


class Effects:
    """Performs effects. `notify` takes internal events, `give_way` stops the node when another one has its id, and
    `on_pong` takes the answers to pings that belong to no stream."""

    host: Host
    """Set before any peer can ask for something."""

    def __init__(
        self,
        node_id: str,
        transport: Transport | None,
        codec: Codec,
        transit: Transit,
        tasks: Tasks,
        notify: Callable[[str, dict[str, Any]], None],
        give_way: Callable[[], None],
        on_pong: Callable[[Pong], None],
    ) -> None:
        self.notify = notify
        self._give_way = give_way
        self._on_pong = on_pong
        self._node_id = node_id
        self._transport = transport
        self._codec = codec
        self._transit = transit
        self._tasks = tasks
        self._invisible_since: int | None = None
        self.writers = OutgoingStreams(
            node_id, transit.topics, transit.registry, codec, transport, self._publish_part, tasks
        )

    async def perform(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Publish):
                await self._publish_quietly(effect)
            else:
                self._do(effect)

    def perform_now(self, effects: Sequence[Effect]) -> bool:
        """Do all of it, unless a part of it may have to wait. Whether it is done."""
        for effect in effects:
            if type(effect) is Publish:
                return False
        for effect in effects:
            if type(effect) is RunEvent:  # by far the most frequent where there are many
                self.host.run_event(effect)
            else:
                self._do(effect)
        return True

    def _do(self, effect: Effect) -> None:
        match effect:
            case RunEvent():
                self.host.run_event(effect)
            case RunAction():
                self.host.run_action(effect)
            case Settle():
                self._settle(effect)
            case Reject():
                reject(effect)
            case Notify():
                self.notify(effect.event, effect.payload)
            case PongArrived():
                if not self.writers.pong(effect.pong):
                    self._on_pong(effect.pong)
            case Log():
                logger.log(effect.level, "%s", effect.text)
                if effect.error is not None:
                    self.notify(*trouble("transit", "failedProcessingPacket", effect.error))
            case AnswerMark():
                self._answer_mark(effect.reply, effect.answer)
            case ReaderGone():
                self.writers.gone(effect.node_id, until=effect.until)
            case Conflict():
                self._give_way()
            case Publish():
                raise AssertionError("It may have to wait.")

    async def publish(self, effect: Publish, *, ask: bool = False) -> bool:
        """Send a packet, and say, where that is asked, whether a node receives it. Raises BrokerDisconnectedError or
        PayloadTooLargeError."""
        if self._transport is None:
            raise BrokerDisconnectedError
        try:
            data = self._codec.encode(effect.packet) if effect.data is None else effect.data
            if ask:
                return await self._transport.has_subscribers(effect.subject, data)
            await self._transport.publish(effect.subject, data, effect.reply_id)
        except MoleculerError as error:
            self.note_failure(effect.packet, error, broadcast=effect.subject.endswith(".DISCOVER"))
            raise
        return True

    async def _publish_part(self, subject: str, packet: Packet, reply_id: str | None) -> None:
        await self.publish(Publish(subject, packet, reply_id))

    def note_failure(self, packet: Packet, error: MoleculerError, *, broadcast: bool = False) -> None:
        """A packet could not be sent. For a good-bye that is not reported."""
        kind = f"failedSend{type(packet).__name__}Packet"
        if isinstance(packet, Discover):
            kind = "failedNodesDiscovery" if broadcast else "failedNodeDiscovery"
        if not isinstance(packet, Disconnect | Peers):
            self.notify(*trouble("transit", kind, error))

    def reject_pending(self, error: MoleculerError) -> None:
        for pending in list(self._transit.requests.pending.values()):
            self._transit.requests.take(pending.id)
            reject(Reject(pending, error))

    def break_streams(self, error: MoleculerError) -> None:
        """End every stream that is under way, and the requests that send one."""
        self._transit.streams.lose(None, error)
        self.writers.gone(None, error)

    async def _publish_quietly(self, effect: Publish) -> None:
        packet = effect.packet
        try:
            if isinstance(packet, Pong):
                packet.arrived = epoch_ms()
            await self.publish(effect)
        except PayloadTooLargeError as error:
            if not isinstance(packet, Info):
                logger.warning("Could not send %s: %s", effect.subject, error)
            elif self._invisible_since != packet.sequence:  # once for each change of the services (§14)
                self._invisible_since = packet.sequence
                logger.error(INVISIBLE, error.data["size"], error.data["limit"])
            if isinstance(packet, Response):
                await self._refuse_to_answer(effect.subject, packet, error)
        except MoleculerError as error:
            if not (self._transit.stopping and isinstance(error, BrokerDisconnectedError)):  # which is to be expected
                logger.warning("Could not send %s: %s", effect.subject, error)

    async def _refuse_to_answer(self, subject: str, answer: Response, error: PayloadTooLargeError) -> None:
        """A refusal repeats the meta of its request, and perhaps the name of an action, which may be too much."""
        wired = error_to_wire(error, self._node_id)
        refusal = msgspec.structs.replace(answer, meta={}, success=False, data=NULL, error=wired)
        with suppress(MoleculerError):  # what is still too large has an id that is
            await self.publish(Publish(subject, refusal))

    def _settle(self, effect: Settle) -> None:
        waiter = effect.pending.waiter
        if not waiter.done():
            waiter.set_result((effect.response, None if effect.stream is None else self.reader(effect.stream)))
        elif effect.stream is not None:
            effect.stream.drop()

    def reader(self, stream: StreamBuffer) -> StreamReader:
        """The reading end of a stream that another node sends."""
        return StreamReader(stream, self._transit.limits.stream_idle_s, self._answer_mark)

    def _answer_mark(self, reply: str, answer: bytes) -> None:
        if self._transport is not None:
            self._tasks.start_handler(self._send_answer(self._transport, reply, answer))

    async def _send_answer(self, transport: Transport, subject: str, answer: bytes) -> None:
        try:
            await transport.publish(subject, answer)
        except MoleculerError as error:
            logger.debug("The writer of a stream was not answered: %s", error)


def reject(effect: Reject) -> None:
    waiter = effect.pending.waiter
    if not waiter.done():
        waiter.set_exception(Undelivered(effect.error) if effect.undelivered else effect.error)


def epoch_ms() -> int:
    """The wall clock, as packets carry it."""
    return time.time_ns() // 1_000_000
