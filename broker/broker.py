"""ServiceBroker: a node of a Moleculer cluster, as its users hold it."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, Unpack

import anyio
from msgspec import structs

from broker.calling.events import EventSender, event_options
from broker.calling.inbound import InboundWork
from broker.calling.internal_events import InternalEvents, LastEvents
from broker.calling.mcall import call_all
from broker.calling.outbound import OutboundCalls
from broker.calling.service_host import ServiceHost
from broker.context import ABSENT, PLAIN, CallArguments, Calls, Context, EventArguments, Next, call_options
from broker.conversation.peer_exchange import PeerExchange
from broker.conversation.transit import Limits, Transit
from broker.defaults import (
    PING_TIMEOUT_S,
)
from broker.errors import (
    BROKER_STATE,
    BrokerDisconnectedError,
    BrokerOptionsError,
    MoleculerServerError,
    ServiceSchemaError,
)
from broker.internals.health import STARTED
from broker.internals.service import NodeService
from broker.middlewares.base import check_middlewares, compose, hooks, run_hooks
from broker.middlewares.cacher import make_cacher
from broker.middlewares.chains import Chains
from broker.node.identity import make_identity
from broker.node.node import Node
from broker.node.work import Life, State
from broker.options import ignored_settings, make_options
from broker.protocol.codecs import make_codec
from broker.protocol.topics import Topics, check_token
from broker.registry.endpoints import Endpoint
from broker.registry.registry import Registry
from broker.services.service import Service
from broker.transports import make_transport


class ServiceBroker:
    """A Moleculer node. Use it as `async with ServiceBroker(…) as broker`, or call `start` and `stop`.

    Options are those of `broker.options.BrokerOptions`; each may also come from the environment as
    `BROKER_<NAME>`. `services` are started with the broker. Raises BrokerOptionsError for an option that does not fit.
    """

    def __init__(
        self,
        node_id: str | None = None,
        *,
        namespace: str | None = None,
        transporter: Any = None,
        services: Sequence[Service] = (),
        logger: logging.Logger | None = None,
        **options: Any,
    ) -> None:
        given = {"node_id": node_id, "namespace": namespace, "transporter": transporter, **options}
        self.options = make_options(given, os.environ)
        check_token("node id", self.options.node_id)
        check_middlewares(self.options.middlewares)
        if isinstance(services, Service):
            raise BrokerOptionsError("services must be a list of services, not a service.")
        self.node_id = self.options.node_id
        self.logger = logger or logging.getLogger("broker")
        for line in ignored_settings(os.environ):
            self.logger.warning("%s", line)
        self.registry = Registry(
            self.node_id,
            strategy=self.options.strategy,
            strategy_options=self.options.strategy_options,
            prefer_local=self.options.prefer_local,
        )
        self.registry.started = STARTED
        self._codec = make_codec(self.options.serializer, self.options.transforms)
        transit = Transit(
            make_identity(self.node_id, self.options.metadata, self._codec, self.options.protocol),
            Topics(self.options.namespace),
            self.registry,
            Limits(self.options.heartbeat_timeout),
            self._codec,
            self.options.protocol,
            visitor=self.options.visitor,
        )
        transport = make_transport(self.options.transporter, self.options.transporter_options)
        self._events = InternalEvents(transit, self._broadcast_internal_here)
        self._node = node = Node(self.options, transport, self._codec, transit, self._events.fire)
        self.cacher = make_cacher(self.options.cacher)
        """The memory cacher, to `clean` it when what it holds is old; None when there is none."""
        self._chains = Chains(
            self.options, self.registry, self._codec, self.cacher, node.after, self._broadcast_internal
        )
        self._run_hooks = partial(run_hooks, self.options.middlewares)
        self._host = ServiceHost(node, self._chains, self._run_hooks)
        self._serving = InboundWork(self, node, self._host)
        self._calls = OutboundCalls(self, node, self._host, self._chains)
        self._sender = EventSender(self, node, self._serving.start_listener)
        self._around_calls = hooks(self.options.middlewares, "call")
        self._around_emit = hooks(self.options.middlewares, "emit")
        self._around_broadcast = hooks(self.options.middlewares, "broadcast")
        self._around_broadcast_local = hooks(self.options.middlewares, "broadcast_local")
        self._listen_inside(self._events)
        self._life = Life()
        self._loop: asyncio.AbstractEventLoop | None = None
        for service in [NodeService(), *services] if self.options.internal_services else services:
            self._adopt(service)
        for hook in hooks(self.options.middlewares, "created"):
            hook(self)

    # Life

    async def start(self) -> None:
        """Connect, find the other nodes, start the services, and announce them.

        Retries without a limit until the server answers; cancel it, or call `stop`, to give up. Raises what a service's
        `started` raises, BrokerOptionsError when the node id is taken, and MoleculerServerError `BROKER_STATE` when the
        broker was stopped meanwhile; the node is stopped again then.
        """
        if self._loop is not None:
            raise MoleculerServerError(f"The broker is {self._life.state}; a broker starts once.", type=BROKER_STATE)
        self._loop = _running_loop()
        try:
            await self._life.start(self._start)
            if self._life.state is not State.STARTED:
                raise MoleculerServerError("The broker was stopped while it started.", type=BROKER_STATE)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.stop()
            raise

    async def _start(self) -> None:
        await self._node.open(self._serving)
        await self._run_hooks("starting", self)
        await self._node.join()
        await self._host.start_all(self.wait_for_services)
        if self._life.state is not State.STARTING:
            return
        self._life.state = State.STARTED
        self._events.fire("$broker.started", {})
        await self._run_hooks("started", self)

    async def stop(self) -> None:
        """Leave gracefully: announce it, finish running requests, stop the services, disconnect. Idempotent.

        Returns when the node has stopped. Called from work of this node itself (a handler, what `start_soon` runs), it
        returns at once, and the node stops when that work is done. A start that is under way is cancelled.
        """
        if self._life.state in (State.NEW, State.STOPPED):
            return
        self._require_own_loop()
        before = self._life.ask_to_stop()
        if before is not State.STOPPING:
            self._node.run_to_the_end(self._life.stop(self._stop, self.options.shutdown_timeout))
        # It may be the start that asks, in a service's `started`: then this wait must end with the start.
        with anyio.CancelScope(shield=before is not State.STARTING):
            await self._life.ended(self._node)

    async def _stop(self) -> None:
        timeout_s = self.options.shutdown_timeout
        last_events = LastEvents(self, self.registry, self._around_broadcast_local, timeout_s=timeout_s)
        await self._run_hooks("stopping", self)
        await self._node.leave()
        await self._host.stop_all()
        self._chains.breaker.stop()
        if self._node.transport is not None:
            await last_events.send("$transporter.disconnected", {"graceFul": True})
        await self._node.close()
        await last_events.send("$broker.stopped", {})
        await self._run_hooks("stopped", self)
        self._events.end()

    async def wait_stopped(self) -> None:
        """Return when the node has stopped. Raises when it had to stop by itself: its id was taken over."""
        await self._node.stopped.wait()
        if self._node.failure is not None:
            raise self._node.failure

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    # Services

    async def add_service(self, service: Service) -> None:
        """Offer one more service. On a started broker, its `started` runs before it is announced; when that fails, the
        service is not kept. Raises MoleculerServerError `BROKER_STATE` on a broker that stops or has stopped."""
        if self._life.state in (State.STOPPING, State.STOPPED):
            raise MoleculerServerError(
                f"The broker is {self._life.state}; it takes no more services.", type=BROKER_STATE
            )
        self._require_own_loop()
        name = self._adopt(service)
        if self._life.state is State.STARTED:
            try:
                await self._host.start_some([name], self.wait_for_services)
            except BaseException:
                if self._host.service(name) is service:
                    with anyio.CancelScope(shield=True):
                        await self._host.stop(name)
                raise

    async def remove_service(self, service: Service | str) -> None:
        """Withdraw a service, by itself or by its full name: what it does is finished first. Raises
        ServiceNotFoundError.

        From a handler of that service it returns at once, and the service stops when the handler is done.
        """
        self._require_own_loop()
        await self._host.stop(service if isinstance(service, str) else service.full_name)

    async def wait_for_services(self, *names: str, timeout: float | None = None) -> None:
        """Return when all services, by full name, are offered by some node.

        Raises MoleculerServerError `WAITFOR_SERVICES` when `timeout` seconds pass before, and BrokerDisconnectedError
        when the broker stops.
        """
        self._require_own_loop()
        if not all(isinstance(name, str) for name in names):  # no service could ever have such a name
            raise TypeError("Services are waited for by their names: wait_for_services('users', 'posts', timeout=10).")
        with anyio.move_on_after(timeout):
            while any(not self.registry.has_service(name) for name in names):
                await self._events.services_changed()
            return
        missing = [name for name in names if not self.registry.has_service(name)]
        if not missing:  # the last one came in the last moment
            return
        raise MoleculerServerError(
            f"Waited {timeout} s, and no node offers: {', '.join(missing)}.",
            500,
            "WAITFOR_SERVICES",
            {"services": list(names), "missing": missing},
        )

    # Talking

    async def call(self, action: str, params: Any = ABSENT, **options: Unpack[CallArguments]) -> Any:
        """Call an action of any node and return its result as plain values.

        `params` absent reaches the callee as `{}`, None as null. `meta` travels along, and what the callee sets in it
        is set in the very dict that was passed. `timeout` in seconds, 0 for none. `retries` counts further attempts
        after retryable errors; None leaves it to the retry policies, 0 allows none. `fallback`, a value or a function
        of (context of the call, error), stands in for an error, except that of an action that no node offers.
        `node_id` asks exactly that node. `stream` is any iterable, async or not, of bytes or of values, sent while the
        callee runs, and to a JS node also when that has answered first. An action that answers with a stream gives a
        StreamReader: `async for chunk in …`.

        Raises the callee's error; ServiceNotFoundError, ServiceNotAvailableError, RequestTimeoutError,
        RequestRejectedError (its node went away), BrokerDisconnectedError, PayloadTooLargeError, QueueIsFullError.
        """
        if self._loop is None or asyncio.get_running_loop() is not self._loop or self._life.state is State.STOPPED:
            self._require_running()
        if self._around_calls:
            return await compose(self._around_calls, self._calls.call)(action, params, call_options(options))
        return await self._calls.call(action, params, call_options(options) if options else PLAIN)

    async def mcall(
        self,
        calls: Calls,
        *,
        settled: bool = False,
        **options: Unpack[CallArguments],
    ) -> Any:
        """Several calls at once: a list of `{"action", "params", "options"}`, or a dict of such; the same shape back.

        The first error is raised and ends the others. With `settled`, each result is `{"status": "fulfilled",
        "value"}` or `{"status": "rejected", "reason"}` instead, and nothing is raised but MoleculerServerError
        `INVALID_PARAMETERS` for a call that names no action.
        """
        return await call_all(self.call, calls, settled=settled, options=options)

    async def emit(self, event: str, data: Any = None, **options: Unpack[EventArguments]) -> None:
        """Send an event to one node of each group that listens."""
        self._require_running()
        await compose(self._around_emit, self._sender.emit)(event, data, event_options(options))

    async def broadcast(self, event: str, data: Any = None, **options: Unpack[EventArguments]) -> None:
        """Send an event to every node that listens, this one too."""
        self._require_running()
        await compose(self._around_broadcast, self._sender.broadcast)(event, data, event_options(options))

    async def broadcast_local(self, event: str, data: Any = None, **options: Unpack[EventArguments]) -> None:
        """Send an event to the listeners of this node only."""
        self._require_running()
        send = compose(self._around_broadcast_local, self._sender.broadcast_local)
        await send(event, data, event_options(options))

    async def ping(self, node_id: str, timeout: float = PING_TIMEOUT_S) -> dict[str, Any] | None:
        """Ping a node: `{nodeID, elapsedTime, timeDiff}` in milliseconds; None after `timeout` s."""
        self._require_running()
        return await self._node.pinging.ping(node_id, timeout)

    async def discover(self, node_id: str | None = None) -> None:
        """For a visitor: find the nodes of the cluster, or only that one; they are in `registry` then.

        Where a node like this answers which nodes there are, no JS node logs it. Else all nodes are asked in both
        versions, and each JS node logs one error.
        """
        self._require_running()
        if self._node.joining is not None:
            await self._node.joining.visit(node_id)

    @property
    def peers(self) -> PeerExchange:
        """Which nodes are known by their names alone."""
        return self._node.transit.peers

    async def registry_changed(self) -> None:
        """Return when services came or went, somewhere in the cluster. Raises BrokerDisconnectedError when the broker
        stops."""
        await self._events.services_changed()

    # For contexts and services

    def call_again(self, ctx: Context) -> Awaitable[Any]:
        """Make the call of a context once more."""
        return self._calls.again(ctx)

    def run_rest(self, chain: Next, ctx: Context) -> None:
        """Run the rest of a chain, which no caller waits for, in a task of its own."""
        self._serving.start_handler(chain, ctx)

    def reply_limit(self, ctx: Context) -> int | None:
        """See `Context.reply_limit`."""
        return self._serving.reply_limit(ctx)

    def reply_size(self, ctx: Context, text: bytes) -> int:
        """See `Context.reply_size`."""
        return self._serving.reply_size(ctx, text)

    async def call_own(
        self, service: Service, name: str, params: Any = ABSENT, **options: Unpack[CallArguments]
    ) -> Any:
        """See `Service.actions`."""
        self._require_running()
        action = self._host.own_action(service, name)
        endpoint = Endpoint(self.node_id, action.name, action.service, {}, action)
        call = compose(self._around_calls, self._calls.call)
        return await call(action.name, params, structs.replace(call_options(options), endpoint=endpoint))

    def start_in_background(self, service: Service, function: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
        """See `Service.start_soon`."""
        self._host.start_in_background(service, function, *arguments)

    # Inside

    def _adopt(self, service: Service) -> str:
        holder = getattr(service, "broker", None)
        if (
            isinstance(holder, ServiceBroker)
            and holder is not self
            and holder._host.service(service.full_name) is service
        ):
            raise ServiceSchemaError(
                f"The service '{service.full_name}' belongs to the node '{holder.node_id}' already: make an object of "
                "its class for each node, or remove it there first."
            )
        definition = self._host.add(service)
        service.broker = self
        service.logger = self.logger.getChild(definition.full_name)
        return definition.full_name

    def _listen_inside(self, events: InternalEvents) -> None:
        """Parts of this broker act on internal events."""
        events.on("$node.disconnected", self._node.pinging.on_disconnected)
        if self.cacher is not None:  # what others said while we were away may concern what it holds
            cacher = self.cacher
            events.on("$transporter.connected", lambda payload: cacher.clean())

    def _broadcast_internal(self, event: str, payload: dict[str, Any]) -> None:
        """Broadcast an internal event that other nodes may listen to as well (§7.4)."""
        self._start_sending(compose(self._around_broadcast, self._sender.broadcast), event, payload)

    def _broadcast_internal_here(self, event: str, payload: dict[str, Any]) -> None:
        """Broadcast an internal event to the services of this node: most have no listener, and come with each INFO."""
        if self._around_broadcast_local or self.registry.find_listeners_here(event):
            self._start_sending(compose(self._around_broadcast_local, self._sender.broadcast_local), event, payload)

    def _start_sending(self, send: Callable[..., Any], event: str, payload: dict[str, Any]) -> None:
        """Send an internal event from where nothing can be awaited."""
        if not self._node.transit.stopping:
            self._node.start_handler(send(event, payload, {}))

    def _require_running(self) -> None:
        if self._life.state in (State.NEW, State.STOPPED):
            raise BrokerDisconnectedError("The broker is not running: start it first.")
        self._require_own_loop()

    def _require_own_loop(self) -> None:
        """An answer would not wake up its caller in another event loop."""
        if self._loop is not None and asyncio.get_running_loop() is not self._loop:
            raise MoleculerServerError(
                "The broker runs in the event loop that started it, and this is another one. From a thread, use "
                "asyncio.run_coroutine_threadsafe(broker.call(…), loop); in a script, one asyncio.run for all.",
                type=BROKER_STATE,
            )


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise MoleculerServerError(
            "The broker runs on asyncio, as its client of NATS does, and not on trio: start it by asyncio.run, or by "
            "anyio.run without another backend.",
            type=BROKER_STATE,
        ) from None
