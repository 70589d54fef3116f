"""A node at work: the transit's decisions meet the transport, in one task group (moleculer protocol §4).

Order of the start: connect, make sure that the node id is free, subscribe, discover, then services are announced.
"""

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import suppress
from contextvars import copy_context
from typing import Any

import anyio
from anyio.abc import TaskGroup

from broker import defaults
from broker.conversation.effects import Effect, Publish, trouble
from broker.conversation.peer_exchange import GREETING
from broker.conversation.transit import Transit
from broker.errors import BrokerDisconnectedError, BrokerOptionsError, GracefulStopTimeoutError, MoleculerError
from broker.node.effects import Effects, Host
from broker.node.identity import CPUMeter
from broker.node.joining import Joining
from broker.node.outage import Outage
from broker.node.pinging import Pinging
from broker.node.subscriptions import Subscriptions
from broker.node.work import HandlerTasks, Tracker, belong_to, set_owners
from broker.node.workers import Workers
from broker.options import BrokerOptions
from broker.protocol.codecs.json import Codec
from broker.streams.flow import FLOW_CONTROL
from broker.transports.base import Observer, Transport

logger = logging.getLogger("broker")


class Node:
    """Connects a transit to a transport and runs everything that goes on in the background."""

    def __init__(
        self,
        options: BrokerOptions,
        transport: Transport | None,
        codec: Codec,
        transit: Transit,
        notify: Callable[[str, dict[str, Any]], None],
    ) -> None:
        """`notify` takes internal events (§7.4)."""
        self.options = options
        self.transport = transport
        self.codec = codec
        self.transit = transit
        self.notify = notify
        self.pinging = Pinging(transit, self.perform, notify)
        self.effects = Effects(
            options.node_id, transport, codec, transit, self, notify, self._give_way, self.pinging.arrived
        )
        self.failure: MoleculerError | None = None
        """Why the node had to stop by itself; None while all is well."""
        self.workers = Workers(self.start_handler, defaults.EVENTS_IN_WORK)
        """They run the handlers of events."""
        self.handlers = HandlerTasks(transit.in_work)
        self.context = copy_context()
        """What work begins in that no code of this process asks for."""
        self.tracker = Tracker()
        """Calls made here, which a stop waits for as it does for requests and events in work."""
        self.stopped = anyio.Event()
        self.background: TaskGroup
        self.outage = Outage(transport, self._give_up_waiting)
        self.joining: Joining | None = None
        """How it came into the cluster; None without a transport."""
        self._subscriptions: Subscriptions | None = None
        if transport is not None:
            subscriptions = Subscriptions(transport, codec, transit, self.effects, self.workers)
            self._subscriptions = subscriptions
            self.joining = Joining(options, transport, codec, transit, self.perform, subscriptions.receiver)
        self._main: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._running = anyio.Event()
        self._finish = anyio.Event()
        self._changed = anyio.Event()
        self._joined = False
        self._cpu = CPUMeter()

    # Starting and stopping

    async def open(self, host: Host) -> None:
        """Open the task groups that everything else runs in. `host` runs what peers ask for."""
        self.effects.host = host
        self.context = copy_context()
        self.context.run(set_owners, frozenset({self}))
        # The one task outside a group: it holds the group, so that start and stop may come from different tasks.
        self._main = asyncio.get_running_loop().create_task(self._hold_group(), name="moleculer node")
        await self._running.wait()

    @property
    def is_open(self) -> bool:
        return self._main is not None and not self._main.done()

    async def join(self) -> None:
        """Connect and find the other nodes. Retries until the server answers, one log line each time.

        Raises BrokerOptionsError when another process runs under this node's id.
        """
        if self.transport is None or self.joining is None or self._subscriptions is None:
            self.transit.ready = True
            return
        await self._connect(self.transport)
        while True:
            try:
                await self.joining.check_id_is_free()
                break
            except BrokerDisconnectedError:  # lost already: a server that has just started may start again
                await self.outage.over(patient=True)
        await self._subscriptions.begin()
        self._joined = True
        if not self.options.visitor:
            await self.joining.find_others()
        self.transit.ready = True
        self.notify("$transporter.connected", {"wasReconnect": False})
        loops = self._beat, self._look_for_silence, self._announce_changes
        for loop in (self.joining.answer_peers, self.pinging.measure, *loops):
            self.background.start_soon(_safely, loop())

    async def leave(self) -> None:
        """Stop being offered work, and finish what runs (§4.2). A peer that has read the announcement sends no request
        any more, so all have some time for that."""
        if self.joining is not None:
            await self.joining.leave()
        if self._may_speak() and not self.transit.presence.hidden:
            await self._balance([])
            await self.perform(self.transit.presence.leave())
            async with anyio.create_task_group() as waits:
                waits.start_soon(anyio.sleep, defaults.STOP_DELAY_S)
                waits.start_soon(self.pinging.reach_all, defaults.STOP_READ_S)
        self.transit.stopping = True
        if self.tracker.count or self.handlers.count:
            logger.info("Waiting for work in flight: handlers %d, calls %d", self.handlers.count, self.tracker.count)
        deadline = anyio.current_time() + self.options.shutdown_timeout
        with anyio.CancelScope(deadline=deadline) as scope:
            await self.tracker.wait_idle()
        in_time = await self.handlers.finish(deadline - anyio.current_time())
        if scope.cancelled_caught or not in_time:
            logger.error("%s", GracefulStopTimeoutError())

    async def close(self) -> None:
        """Say good-bye and go. Nothing of this node runs when it returns."""
        if self._may_speak():
            await self.perform(self.transit.presence.disconnect())
        if self.transport is not None:
            await self.transport.close()
        self.outage.stop()
        self.effects.break_streams(BrokerDisconnectedError("The broker has stopped."))
        self.effects.reject_pending(BrokerDisconnectedError("The broker has stopped."))
        self._finish.set()
        if self._main is not None:
            await self._main
        self.stopped.set()

    async def _hold_group(self) -> None:
        async with anyio.create_task_group() as self.background:
            self._running.set()
            await self._finish.wait()
            self.background.cancel_scope.cancel()

    async def _connect(self, transport: Transport) -> None:
        observer = Observer(
            no_responders=self._no_responders,
            replied=self._replied,
            denied=self._denied,
            disconnected=self._disconnected,
            reconnected=self._reconnected,
            servers_changed=self._servers_changed,
            failed=self._failed,
        )
        wait = defaults.NATS_CONNECT_RETRY_S
        while True:
            try:
                await transport.connect(observer, self.options.node_id, self.transit.topics.inboxes)
                break
            except BrokerDisconnectedError as error:
                self.notify(*trouble("transporter", "clientError", error))
                logger.warning("Cannot connect to %s; trying again in %.0f s", error, wait)
                await anyio.sleep(wait * random.uniform(0.8, 1.2))
                wait = min(wait * 2, defaults.NATS_CONNECT_RETRY_MAX_S)
        self._connected()

    def _may_speak(self) -> bool:
        """Whether the cluster knows this node, by an id that is its own: any word from us under an id that belongs to
        another process would end or hide that one (§3.5)."""
        connected = self.transport is not None and self.transport.connected
        return connected and self._joined and self.failure is None

    def run_to_the_end(self, stop: Coroutine[Any, Any, None]) -> None:
        """Run the stop of this node outside its own groups, which end with it, and outside the task that asked."""
        context = copy_context()
        context.run(set_owners, frozenset({self}))
        self._ending = asyncio.get_running_loop().create_task(stop, name="moleculer node stops", context=context)

    def start_handler(self, work: Coroutine[Any, Any, None]) -> bool:
        """Run the work for one request or one event. What it raises is logged: it would end all other work, and the
        node with it. When the node stops it may be cancelled.

        False when the node has stopped.
        """
        context = copy_context()
        context.run(belong_to, self)
        return self.handlers.start(work, context)

    def start_in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run what a stop does not wait for."""
        self.background.start_soon(_safely, work)

    def after(self, delay_s: float, function: Callable[[], None]) -> Callable[[], None]:
        """Run a function later. What it gives back cancels that."""
        return asyncio.get_running_loop().call_later(delay_s, function).cancel

    # For calls and services

    async def perform(self, effects: Iterable[Effect]) -> None:
        await self.effects.perform(effects)

    async def send(self, effect: Publish) -> None:
        """Send a packet, in a short outage at its end. Raises BrokerDisconnectedError in a long one."""
        try:
            await self.effects.publish(effect)
        except BrokerDisconnectedError:
            await self.outage.over(patient=False)
            await self.effects.publish(effect)

    async def deliver(self, answer: Publish) -> None:
        """Send an answer in or after an outage: when this node is connected, and its caller is, which may take it some
        moments longer. Raises BrokerDisconnectedError when the node stops before."""
        until = math.inf
        while True:
            await self.outage.over(patient=True)
            until = min(until, anyio.current_time() + defaults.NODE_RECONNECT_S)
            with suppress(BrokerDisconnectedError):  # lost again
                if await self.effects.publish(answer, ask=True) or anyio.current_time() > until:
                    return
            await anyio.sleep(defaults.ANSWER_RETRY_S)

    def announce_soon(self) -> None:
        """The services changed: the others learn it, once, when nothing more changes for a second (§3.3)."""
        self.transit.presence.service_changed()
        self._changed.set()

    # The connection

    async def _no_responders(self, reply_id: str) -> None:
        requests, now = self.transit.requests, anyio.current_time()
        if reply_id.startswith(GREETING):
            self.transit.peers.met(reply_id.removeprefix(GREETING))
        elif (reader := self.effects.writers.reader_of(reply_id)) is not None:
            await self.perform(requests.reader_unreachable(reader, now))
        else:
            await self.perform(requests.no_responders(reply_id, now))

    async def _replied(self, reply_id: str, answer: bytes) -> None:
        self.effects.writers.marked(reply_id, answer)

    async def _denied(self, subject: str) -> None:
        self.effects.writers.denied(subject)
        await self.perform(self.transit.requests.denied(subject))

    def _connected(self) -> None:
        self.outage.end()
        self.transit.identity.client[FLOW_CONTROL] = self.transport is not None and self.transport.has_inbox

    async def _disconnected(self) -> None:
        """Packets of streams may be lost now, and answers, which is seen to when the connection is back (§4.5)."""
        logger.warning("The connection to NATS is lost; reconnecting")
        self.outage.begin(anyio.current_time())
        self.effects.break_streams(BrokerDisconnectedError())
        self.notify("$transporter.disconnected", {"graceFul": False})

    async def _reconnected(self) -> None:
        """Peers do not notice an outage themselves: they are informed, and asked, at once (§4.5)."""
        logger.info("The connection to NATS is back")
        self._connected()
        self.outage.unsettle()
        if not self._joined:  # the start goes on, and says nothing before it knows that its id is free
            return
        now = anyio.current_time()
        self.transit.resume(now)
        self.transit.requests.doubt(self.outage.began, now)
        await _safely(self.perform(self.transit.presence.discover()))
        if self.transit.ready and not self.transit.stopping:
            await _safely(self._announce())
            await _safely(self.perform(self.transit.presence.heartbeat(self._cpu.percent())))
        self.notify("$transporter.connected", {"wasReconnect": True})

    def _give_up_waiting(self) -> None:
        """The outage is long: answers are lost more likely than not."""
        self.effects.reject_pending(BrokerDisconnectedError())

    async def _servers_changed(self) -> None:
        self.outage.unsettle()
        self.transit.requests.liveness.moved(anyio.current_time())

    async def _announce(self) -> None:
        """Say what is offered, after subscribing to it (§1.3)."""
        await self._balance(self.transit.registry.local.services)
        await self.perform(self.transit.presence.announce())

    async def _balance(self, services: list[dict[str, Any]]) -> None:
        if self.options.disable_balancer and self._subscriptions is not None:
            await self._subscriptions.balance(services)

    async def _failed(self, reason: str) -> None:
        self.notify(*trouble("transporter", "clientError", BrokerDisconnectedError(f"NATS: {reason}")))
        logger.warning("NATS: %s", reason)

    def _give_way(self) -> None:
        """A newer process has this node's id. Stop without a word: a DISCONNECT would take that one off, too."""
        self.failure = BrokerOptionsError(
            f"Another node with the id '{self.options.node_id}' has joined, so this one stops. Node ids are unique in "
            "a cluster: give one of them another id."
        )
        logger.critical("%s", self.failure)
        if self.transport is not None:
            self.background.start_soon(_safely, self.transport.close())
        self.stopped.set()

    # Loops

    async def _beat(self) -> None:
        """Send heartbeats, at an offset drawn once: up to half a second sooner or later than the interval, but never
        more than a tenth of it later, nor more than half of it sooner."""
        offset = random.uniform(-defaults.HEARTBEAT_OFFSET_S, defaults.HEARTBEAT_OFFSET_S)
        interval = self.options.heartbeat_interval
        while interval > 0:
            await anyio.sleep(max(interval + min(offset, interval / 10), interval / 2))
            if self._may_speak():
                await _safely(self.perform(self.transit.presence.heartbeat(self._cpu.percent())))

    async def _look_for_silence(self) -> None:
        while True:
            planned = anyio.current_time() + defaults.TICK_S
            await anyio.sleep(defaults.TICK_S)
            now = anyio.current_time()
            if now - planned >= defaults.LOOP_STANDS_STILL_S:  # no heartbeat went out, and none was read
                self.transit.resume(now)
                logger.warning(
                    "The event loop stood still for %.1f s: some code of this process works or waits without 'await'. "
                    "No call was answered and no heartbeat sent; run such code with anyio.to_thread.run_sync",
                    now - planned,
                )
            # Connected again, but before `_reconnected`, a node would blame its peers for the outage.
            if self.transport is not None and self.transport.connected and not self.outage.is_on:
                writers = self.effects.writers
                await _safely(self.perform(self.transit.tick(now, writers.waited_for(now))))
                await _safely(writers.tick(now))

    async def _announce_changes(self) -> None:
        while True:
            await self._changed.wait()
            while self._changed.is_set():
                self._changed = anyio.Event()
                with anyio.move_on_after(defaults.ANNOUNCE_DELAY_S):
                    await self._changed.wait()
            if not self.transit.stopping and self.transport is not None and self.transport.connected:
                await _safely(self._announce())


async def _safely(work: Awaitable[None]) -> None:
    """One piece of the node's work: whatever it meets, the next one is done."""
    try:
        await work
    except Exception:
        logger.exception("Some work of the node failed; it goes on")
