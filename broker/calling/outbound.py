"""Calls made by this node: choose an endpoint, run it here or send it, wait for the answer (moleculer protocol §5)."""

import asyncio
import math
from collections.abc import Awaitable
from dataclasses import is_dataclass
from functools import partial
from typing import Any

import anyio
from msgspec import UNSET, Raw, Struct

from broker.calling.service_host import ServiceHost
from broker.context import ABSENT, Caller, CallOptions, Context
from broker.defaults import BALANCED_RETRIES, BALANCED_RETRY_S, TICK_S
from broker.errors import (
    BrokerDisconnectedError,
    MaxCallLevelError,
    MoleculerError,
    RequestSkippedError,
    RequestTimeoutError,
    ServiceNotAvailableError,
    ServiceNotFoundError,
    error_from_wire,
)
from broker.ids import new_id
from broker.middlewares.chains import Chains
from broker.node.effects import Answer, Undelivered
from broker.node.node import Node
from broker.node.work import belong_to, set_owners
from broker.protocol.packets import Request, Response
from broker.registry.endpoints import Endpoint
from broker.streams.flow import Fate
from broker.streams.reader import LocalStream, Readable, StreamReader, async_iterator, is_stream
from broker.streams.writer import StreamWriter
from broker.transports.base import Transport


class OutboundCalls:
    """Makes calls for the broker and for contexts."""

    def __init__(self, broker: Caller, node: Node, host: ServiceHost, chains: Chains) -> None:
        self._broker = broker
        self._options = options = node.options
        self._node_id = options.node_id
        self._node = node
        self._transport: Transport = node.transport  # type: ignore[assignment]  # without one, all endpoints are here
        self._transit = transit = node.transit
        self._waiting = transit.requests
        self._version_for = transit.presence.version_for
        self._registry = transit.registry
        self._codec = node.codec
        self._host = host
        self._chains = chains
        self._is_balanced = options.disable_balancer and node.transport is not None
        """Whether NATS chooses nodes."""
        self._has_deadlines = options.request_timeout > 0
        """Whether calls that ask for no timeout have one."""

    async def call(self, action: str, params: Any, options: CallOptions) -> Any:
        """Make a call, inside what `broker.middlewares.chains` puts around it once an endpoint is found."""
        parent: Context | None = options.parent
        limit = self._options.max_call_level
        if parent is not None and limit and parent.level >= limit:
            raise MaxCallLevelError({"nodeID": self._options.node_id, "level": parent.level})
        params = {} if params is ABSENT else params
        ctx = Context.outgoing(self._broker, self._node_id, options, action=action, params=params)
        tracked = not self._transit.stopping  # later calls are made by what is waited for anyway
        if tracked:
            self._node.tracker.count += 1
        runs_users_code = self._chains.has_users_code or options.fallback is not ABSENT
        before = belong_to(self._node) if runs_users_code else None
        try:
            return await self._attempt(ctx, options)
        finally:
            if before is not None:
                set_owners(before)
            if ctx.stream is not None and isinstance(ctx.stream, StreamWriter):
                ctx.stream.close()
            if parent is not None:
                parent.meta.update(ctx.meta)
            if tracked:
                self._node.tracker.end()

    def again(self, ctx: Context) -> Awaitable[Any]:
        """Make the call of a context once more: at any node, as the one that was asked for has failed (§12.2)."""
        assert ctx.options is not None
        return self._attempt(ctx.again(), ctx.options)

    def _attempt(self, ctx: Context, options: CallOptions) -> Awaitable[Any]:
        node_id = None if ctx.attempt else options.node_id
        try:
            endpoint = options.endpoint or self._registry.find_action(ctx.action or "", node_id, ctx)
        except (ServiceNotFoundError, ServiceNotAvailableError):
            return self._attempt_later(node_id, ctx, options)
        if self._has_deadlines or options.timeout or options.parent or endpoint.timeout_s:
            ctx.deadline = self._deadline(endpoint.name, endpoint.timeout_s, options)
        if endpoint.chain is None or endpoint.local:
            return self._start(endpoint, ctx)
        ctx.node_id = endpoint.node_id
        return endpoint.chain(ctx)

    async def _attempt_later(self, node_id: str | None, ctx: Context, options: CallOptions) -> Any:
        """For an action that is offered nowhere now, but may be again soon."""
        return await self._start(await self._find_in_time(node_id, ctx, options), ctx)

    def _start(self, endpoint: Endpoint, ctx: Context) -> Awaitable[Any]:
        if endpoint.local and not (self._is_balanced and self._goes_to_any_node(ctx)):
            return self._run_here(endpoint, ctx)
        if endpoint.chain is None:
            endpoint.chain = self._chains.remote_action(endpoint, partial(self._send, endpoint))
        ctx.node_id = endpoint.node_id
        return endpoint.chain(ctx)

    async def _find_in_time(self, node_id: str | None, ctx: Context, options: CallOptions) -> Endpoint:
        action, began = ctx.action or "", anyio.current_time()
        latest = self._deadline(action, None, options, began)
        with anyio.CancelScope(deadline=math.inf if latest is None else latest):
            endpoint = await self._find(action, node_id, ctx)
            ctx.deadline = self._deadline(action, endpoint.timeout_s, options, began)
            return endpoint
        raise RequestTimeoutError({"action": ctx.action, "nodeID": node_id})

    async def _find(self, action: str, node_id: str | None, ctx: Context) -> Endpoint:
        """An endpoint, waiting while those that offered the action may only be reconnecting."""
        while True:
            try:
                return self._registry.find_action(action, node_id, ctx=ctx)
            except (ServiceNotFoundError, ServiceNotAvailableError):
                now, patient = anyio.current_time(), self._options.wait_for_connection
                if not self._transit.requests.may_return(action, node_id, now, patient=patient):
                    raise
            with anyio.move_on_after(TICK_S):
                await self._broker.registry_changed()

    async def _run_here(self, endpoint: Endpoint, ctx: Context) -> Any:
        """Run an action of this node, in the task of its caller."""
        assert endpoint.action is not None
        if _is_record(ctx.params):
            ctx.params = self._as_remote(ctx.params)
        stream = ctx.stream = self._handed_over(ctx.stream)
        before, result = belong_to(self._node), None
        try:
            result = await self._host.run(endpoint.action, ctx)
        finally:
            set_owners(before)
            if stream is not None and not is_stream(result):  # else the handler has only begun
                await stream.aclose()
        return self._result_here(result, stream)

    def _handed_over(self, stream: Any) -> Readable | None:
        """A stream for a handler of this node."""
        if stream is None or isinstance(stream, Readable):
            return stream
        items = stream.hand_over() if isinstance(stream, StreamWriter) else async_iterator(stream)
        return LocalStream(items, self._as_remote)

    def _result_here(self, result: Any, along: Readable | None) -> Any:
        """The result of an action of this node for its caller."""
        if not is_stream(result) or isinstance(result, Readable):
            return self._as_remote(result)
        return LocalStream(aiter(result), self._as_remote, along)

    async def _send(self, endpoint: Endpoint, ctx: Context) -> Any:
        """Ask a node. A request that was not delivered is sent again, also to another node: nothing has happened."""
        if ctx.stream is not None:
            return await self._send_with_stream(endpoint, ctx)
        balanced = self._is_balanced and self._goes_to_any_node(ctx)
        loop, tries = asyncio.get_running_loop(), 0
        while True:
            if self._node.outage.is_on:
                await self._require_connection()
            now, waiter = loop.time(), loop.create_future()
            node = self._registry.nodes.get(endpoint.node_id)
            version = self._version_for(endpoint.node_id) if node is None or node.local else node.ver
            request = ctx.to_request(version, now)
            if balanced:
                subject = self._transit.topics.balanced_request(endpoint.name)
            else:
                subject = endpoint.subject or self._subject(endpoint)
            self._waiting.expect(request, None if balanced else endpoint.node_id, waiter, now)
            try:
                try:
                    data = self._codec.encode_with(request, request.params)
                    if not self._transport.try_publish(subject, data, ctx.id):
                        await self._transport.publish(subject, data, ctx.id)
                except MoleculerError as error:
                    self._not_sent(request, error)
                    raise
                response, reader = await waiter
            except Undelivered as gone:
                self._give_up(request, waiter)
                rejected = gone.error
            except BaseException:
                self._give_up(request, waiter)
                raise
            else:
                return self._result(response, reader, ctx)
            tries += 1
            if balanced:
                await self._pause(endpoint, ctx, tries)
            elif (endpoint := await self._elsewhere(endpoint, ctx, rejected)).local:
                return await self._run_here(endpoint, ctx)

    async def _pause(self, endpoint: Endpoint, ctx: Context, tries: int) -> None:
        """While a JS node changes its services, NATS may have no node to choose for a moment."""
        if tries == BALANCED_RETRIES:
            raise ServiceNotAvailableError({"action": endpoint.name})
        await anyio.sleep(BALANCED_RETRY_S)
        ctx.id = new_id()

    async def _elsewhere(self, endpoint: Endpoint, ctx: Context, rejected: MoleculerError) -> Endpoint:
        """Another endpoint for a call that was not delivered; raises `rejected` when there is none."""
        await self._require_connection()
        named = None if ctx.attempt or ctx.options is None else ctx.options.node_id
        try:
            other = await self._find(endpoint.name, named, ctx)
        except MoleculerError:
            raise rejected from None
        ctx.id, ctx.node_id = new_id(), other.node_id
        return other

    async def _send_with_stream(self, endpoint: Endpoint, ctx: Context) -> Any:
        """The same for a call that takes a stream along."""
        while True:
            try:
                return await self._ask_with_stream(endpoint, endpoint.node_id, ctx)
            except Undelivered as gone:
                rejected = gone.error
            if isinstance(ctx.stream, StreamWriter) and ctx.stream.sent:
                raise rejected
            endpoint = await self._elsewhere(endpoint, ctx, rejected)
            if endpoint.local:
                return await self._run_here(endpoint, ctx)

    def _goes_to_any_node(self, ctx: Context) -> bool:
        """Whether NATS may choose the node of a call (§5.7). A stream must reach one node as a whole."""
        options = ctx.options
        if options is not None and (options.endpoint is not None or (options.node_id is not None and not ctx.attempt)):
            return False
        return ctx.stream is None and not (ctx.action or "").startswith("$")

    async def _ask_with_stream(self, endpoint: Endpoint, target: str, ctx: Context) -> Any:
        await self._require_connection()
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Answer] = loop.create_future()
        writer = await self._writer(ctx)
        request = ctx.to_request(self._version_for(endpoint.node_id), loop.time())
        request.params = self._codec.encode_value(ctx.params)
        has_params = ctx.params is not ABSENT and ctx.params not in (None, {})
        writer.along_with(request, target, has_params=has_params)
        try:
            self._waiting.expect(request, target, waiter, loop.time())
            try:
                await self._transport.publish(self._subject(endpoint), self._codec.encode(request), ctx.id)
            except MoleculerError as error:
                self._not_sent(request, error)
                raise
            await self._begin_stream(writer, waiter)
            answer = await waiter
            writer.answered(answer)
            return self._result(*answer, ctx)
        except asyncio.CancelledError:  # the request may be out, also when it was being sent
            writer.cancel()
            raise
        except Exception:
            writer.drop()
            raise
        finally:
            self._give_up(request, waiter)

    def _not_sent(self, request: Request, error: MoleculerError) -> None:
        """Raises Undelivered when it is the connection that is lost."""
        self._node.effects.note_failure(request, error)
        if isinstance(error, BrokerDisconnectedError):
            raise Undelivered(error) from error

    def _give_up(self, request: Request, waiter: "asyncio.Future[Answer]") -> None:
        """Wait no longer for an answer. Its error is taken, so that asyncio does not report it."""
        self._waiting.take(request.id)
        if waiter.done() and not waiter.cancelled():
            waiter.exception()

    async def _begin_stream(self, writer: StreamWriter, waiter: "asyncio.Future[Answer]") -> None:
        """Send a stream once the server has taken its request, and not reported no responders: only what has
        not begun can go to another node. A handler that has answered already may still read."""
        try:
            await self._transport.flush()
        except BrokerDisconnectedError as lost:
            writer.finish(Fate.LOST, lost)
            raise
        if not waiter.done() or (waiter.exception() is None and writer.outlives(waiter.result())):
            writer.go_on(partial(_fail, waiter))

    async def _writer(self, ctx: Context) -> StreamWriter:
        """The writer of the stream of a call, begun: by an attempt before this one, maybe."""
        if not isinstance(ctx.stream, StreamWriter):
            ctx.stream = StreamWriter(self._node.effects.writers, ctx.stream)
            await ctx.stream.begin()
        return ctx.stream

    async def _require_connection(self) -> None:
        if not self._transport.connected:
            await self._node.outage.over(patient=self._options.wait_for_connection)

    def _subject(self, endpoint: Endpoint) -> str:
        endpoint.subject = self._transit.topics.to_node("REQ", endpoint.node_id)
        return endpoint.subject

    def _result(self, response: Response, reader: StreamReader | None, ctx: Context) -> Any:
        """The data of an answer, or its error raised. The callee's meta wins over the caller's (§5.4)."""
        ctx.node_id = response.sender
        if response.meta:
            ctx.meta.update(response.meta)
        if reader is not None:
            return reader
        if response.success:
            return self._codec.decode_value(response.data)
        raise error_from_wire(None if response.error is UNSET else response.error, response.sender)

    def _deadline(
        self, action: str, of_action: float | None, options: CallOptions, now: float | None = None
    ) -> float | None:
        """When the answer must be there: the call's timeout, the action's, or the broker's, and never after the
        parent's (§5.5). Raises RequestSkippedError when the parent's time is over."""
        timeout = options.timeout
        if timeout is None:
            timeout = of_action if of_action is not None else self._options.request_timeout
        inherited = options.parent.deadline if options.parent else None
        if inherited is None and timeout <= 0:
            return None
        now = anyio.current_time() if now is None else now
        own = now + timeout if timeout > 0 else None
        if inherited is None:
            return own
        if inherited <= now:
            raise RequestSkippedError({"action": action, "nodeID": self._options.node_id})
        return min(own, inherited) if own is not None else float(inherited)

    def _as_remote(self, result: Any) -> Any:
        """As another node would get it: plain values instead of encoded ones, Structs and dataclasses."""
        if _holds_encoded(result):
            return self._codec.decode_value(self._codec.encode_value(result))
        return result


def _holds_encoded(value: Any) -> bool:
    if type(value) in _PLAIN:
        return False
    if isinstance(value, dict):
        return any(_holds_encoded(item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(_holds_encoded(item) for item in value)
    return isinstance(value, Raw) or _is_record(value)


_PLAIN = frozenset({str, int, float, bool, type(None), bytes})


def _is_record(value: Any) -> bool:
    return isinstance(value, Struct) or (is_dataclass(value) and not isinstance(value, type))


def _fail(waiter: "asyncio.Future[Answer]", error: Exception) -> None:
    if not waiter.done():
        waiter.set_exception(error)
