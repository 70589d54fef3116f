"""What a node subscribes to, and what becomes of the messages (moleculer protocol §1.2, §1.3, §2.2)."""

import asyncio
import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from broker.conversation.effects import Effect, trouble
from broker.conversation.transit import Transit
from broker.errors import BrokerDisconnectedError, InvalidPacketDataError, MoleculerError
from broker.node.effects import Effects
from broker.node.workers import Workers
from broker.protocol.codecs.json import Codec
from broker.protocol.packets import Command, Request, Response
from broker.protocol.topics import Topics
from broker.transports.base import Later, Receiver, Subscription, Transport

logger = logging.getLogger("broker")


class Balanced(NamedTuple):
    command: Command
    subject: str
    queue: str


def balanced_subscriptions(topics: Topics, services: Iterable[dict[str, Any]]) -> Iterator[Balanced]:
    """With `disable_balancer`, what a node subscribes to for the services of its INFO: for each, all actions, then all
    events."""
    for service in services:
        for action in service["actions"]:
            yield Balanced("REQ", topics.balanced_request(action), action)
        for event in service["events"].values():
            # NATS matches all from the first `**` on by `>`. That may be more than is meant; the receiver looks again.
            before, stars, _ = event["name"].partition("**")
            yield Balanced("EVENT", topics.balanced_event(event["group"], before + ">" * bool(stars)), event["group"])


class Subscriptions:
    """Of one node. Handlers of events run in `workers`; when these are full, the next event waits."""

    def __init__(
        self, transport: Transport, codec: Codec, transit: Transit, effects: Effects, workers: Workers
    ) -> None:
        self._transport = transport
        self._codec = codec
        self._transit = transit
        self._effects = effects
        self._workers = workers
        self._balanced: dict[Balanced, Subscription] = {}

    async def begin(self) -> None:
        """Make the base subscriptions (§1.2)."""
        for command, subject in self._transit.topics.base_subscriptions(self._transit.identity.node_id):
            await self._transport.subscribe(subject, self.receiver(command))

    async def balance(self, services: list[dict[str, Any]]) -> None:
        """Subscribe to what NATS shall share out, and to nothing else. What stays is not touched, so that no call falls
        into a gap."""
        wanted = dict.fromkeys(balanced_subscriptions(self._transit.topics, services))
        for item in wanted:
            if item not in self._balanced:
                receive = self.receiver(item.command)
                try:
                    self._balanced[item] = await self._transport.subscribe(item.subject, receive, item.queue)
                except BrokerDisconnectedError:
                    raise
                except MoleculerError as error:  # one bad name must not keep the others from being announced
                    logger.warning("NATS cannot share out '%s': %s", item.subject, error)
        for item in [item for item in self._balanced if item not in wanted]:
            await self._balanced.pop(item).cancel()
        await self._transport.flush()

    def receiver(self, command: Command) -> Receiver:
        clock, codec, transit = asyncio.get_running_loop().time, self._codec, self._transit
        runner = self._effects
        workers = self._workers if command == "EVENT" else None

        def take(data: bytes, reply: str) -> Later | None:
            try:
                packet = codec.decode(command, data)
                if type(packet) is Request:
                    job = transit.accepted(packet, clock(), reply)
                    if job is not None:
                        runner.host.run_action(job)
                        return None
                elif type(packet) is Response:
                    pending = transit.requests.answered(packet)
                    if pending is not None:
                        if not pending.waiter.done():
                            pending.waiter.set_result((packet, None))
                        return None
                effects = transit.receive(command, packet, clock(), reply)
                if not runner.perform_now(effects):
                    return partial(self._perform, command, effects)
            except InvalidPacketDataError as error:
                return partial(self._drop, command, data, error)
            except Exception as error:  # a packet must never end the node, whatever is in it (§2.2)
                self._not_processed(command, error)
            return workers.room if workers is not None and workers.full else None

        return Receiver(take)

    async def _perform(self, command: Command, effects: Sequence[Effect]) -> None:
        try:
            await self._effects.perform(effects)
        except Exception as error:
            self._not_processed(command, error)

    def _not_processed(self, command: Command, error: Exception) -> None:
        self._effects.notify(*trouble("transit", "failedProcessingPacket", error))
        logger.error("A packet of %s could not be processed; dropped", command, exc_info=error)

    async def _drop(self, command: Command, data: bytes, error: InvalidPacketDataError) -> None:
        """One line for bytes that are not a packet, and an error for their sender if it asked, or for the call that
        they answer."""
        logger.warning("Dropped %d bytes that are no %s packet: %s", len(data), command, error.data["reason"])
        self._effects.notify(*trouble("transit", "failedProcessingPacket", error))
        address = self._codec.decode_address(data) if command in ("REQ", "RES") else None
        if address is not None:
            refuse = self._transit.refuse_request if command == "REQ" else self._transit.refuse_answer
            await self._effects.perform(refuse(address, error))
