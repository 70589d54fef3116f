"""How a node comes into a cluster: it makes sure that its id is free, and finds the others (protocol §4.1)."""

import logging
from collections.abc import Awaitable, Callable, Iterable

import anyio

from broker import defaults
from broker.conversation.effects import Effect
from broker.conversation.transit import Transit
from broker.errors import BrokerDisconnectedError, BrokerOptionsError, MoleculerError
from broker.node.effects import epoch_ms
from broker.options import BrokerOptions
from broker.protocol.codecs.json import Codec
from broker.protocol.packets import PROTOCOLS, Command
from broker.transports.base import OnMessage, Subscription, Transport

logger = logging.getLogger("broker")


class Joining:
    """`perform` does what the transit decides; `receiver` makes the function that takes the packets of a command."""

    def __init__(
        self,
        options: BrokerOptions,
        transport: Transport,
        codec: Codec,
        transit: Transit,
        perform: Callable[[Iterable[Effect]], Awaitable[None]],
        receiver: Callable[[Command], OnMessage],
    ) -> None:
        self._options = options
        self._versions = [options.protocol] if options.protocol else PROTOCOLS
        self._transport = transport
        self._codec = codec
        self._transit = transit
        self._peers = transit.peers
        self._perform = perform
        self._receiver = receiver
        self._answering: Subscription | None = None

    async def check_id_is_free(self) -> None:
        """Two nodes of one id end each other (§3.5), and the older one is a running service: so ask before speaking.

        The question goes out under another name, as nodes ignore what seems to come from themselves. A subscription
        without an answer is what a crashed host leaves behind at the server for a while: then the id is free.
        """
        asker, node_id = self._peers.asker, self._options.node_id
        answered = anyio.Event()

        async def on_pong(_data: bytes, _reply: str) -> None:
            answered.set()

        pongs = await self._transport.subscribe(self._transit.topics.to_node("PONG", asker), on_pong)
        ping = self._transit.packets.ping
        questions = [ping(version, node_id, asker, epoch_ms(), sender=asker) for version in self._versions]
        try:
            heard = [
                await self._transport.has_subscribers(one.subject, self._codec.encode(one.packet)) for one in questions
            ]
            if any(heard):
                with anyio.move_on_after(defaults.ID_PROBE_S):
                    await answered.wait()
        finally:
            await pongs.cancel()
        if answered.is_set():
            raise BrokerOptionsError(
                f"Another node with the id '{node_id}' is running. Node ids are unique in a cluster: choose another "
                "one, or stop that node first."
            )

    async def find_others(self) -> None:
        """Find the nodes that are there: by one like this that knows them, else by asking all of them."""
        begun, both = anyio.current_time(), not self._options.protocol
        if both:
            interval = self._options.heartbeat_interval or defaults.HEARTBEAT_INTERVAL_S
            self._peers.search(begun, interval + defaults.HEARTBEAT_OFFSET_S + defaults.TICK_S)
        if await self._ask_peers():
            self._peers.named.clear()  # a node that has not answered by now is found by its heartbeat
            return
        if both:  # nodes of both versions start meanwhile, and say which is theirs
            await self._pause(begun + defaults.DISCOVERY_LISTEN_S - anyio.current_time())
        await self._perform(self._transit.presence.discover())
        await self._pause(defaults.DISCOVERY_SECOND_VERSION_S)
        await self._perform(self._transit.presence.discover_others())
        await self._pause(defaults.DISCOVERY_WAIT_S - defaults.DISCOVERY_SECOND_VERSION_S)

    async def visit(self, node_id: str | None) -> None:
        """Find the nodes that are there, or one of them, without making this one known."""
        answered = await self._ask_peers(node_id)
        if node_id is not None:
            node = self._transit.registry.nodes.get(node_id)
            if node_id not in self._peers.named and (node is None or not node.available):
                await self._look_for(node_id)
        elif not answered:
            await self._perform(self._transit.presence.discover_everywhere())
            await self._pause(defaults.DISCOVERY_WAIT_S)

    async def answer_peers(self) -> None:
        """Answer others whom this node knows, once it knows all of them: never when it speaks one version alone."""
        if self._options.protocol or self._options.visitor:
            return
        await self._until(lambda: self._peers.complete, look_s=defaults.TICK_S)
        subject = self._transit.topics.broadcast("PEERS")
        while self._answering is None:
            try:
                self._answering = await self._transport.subscribe(subject, self._receiver("PEERS"), queue="PEERS")
            except BrokerDisconnectedError:
                await anyio.sleep(defaults.TICK_S)

    async def leave(self) -> None:
        """Answer such questions no more."""
        if self._answering is not None:
            await self._answering.cancel()

    async def _ask_peers(self, only: str | None = None) -> bool:
        """Whether a node like this answers whom it knows. Those that it names, or `only` that one, are asked who they
        are, and have answered then, but for those that cannot."""
        question = self._peers.ask(only)
        data = self._codec.encode(question.packet)
        try:
            subject = self._transit.topics.to_node("PEERS", self._peers.asker)
            answers = await self._transport.subscribe(subject, self._receiver("PEERS"))
            try:
                for _ in range(defaults.PEERS_TRIES):
                    if self._peers.answered or not await self._transport.has_subscribers(question.subject, data):
                        break
                    await self._until(lambda: self._peers.answered, defaults.PEERS_WAIT_S)
                if self._peers.answered:  # the greetings belong to the answer, and are lost with its subscription
                    await self._until(lambda: not self._peers.named, defaults.DISCOVERY_WAIT_S)
            finally:
                await answers.cancel()
        except MoleculerError as error:
            logger.debug("Other nodes could not be asked whom they know: %s", error)
        self._peers.asking = False
        return self._peers.answered

    async def _look_for(self, node_id: str) -> None:
        """Ask a node that no other one knows who it is, in each version, until it answers or proves not to be there."""
        for ver in self._versions:
            self._peers.named = {node_id: ver}
            await self._perform(self._peers.greet())
            await self._until(lambda: not self._peers.named, defaults.DISCOVERY_SECOND_VERSION_S)
            if not self._peers.named:
                return

    async def _pause(self, seconds: float) -> None:
        await anyio.sleep(0 if self._transport.delivers_at_once else max(0, seconds))

    async def _until(
        self, holds: Callable[[], bool], timeout_s: float | None = None, look_s: float = defaults.PEERS_LOOK_S
    ) -> None:
        with anyio.move_on_after(timeout_s):
            while not holds():  # noqa: ASYNC110 - the conversation is pure, and wakes nothing
                await anyio.sleep(look_s)
