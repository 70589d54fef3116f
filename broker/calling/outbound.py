"""Calls made by this node: choose an endpoint, run it here or send it, wait for the answer (moleculer protocol §5)."""

import asyncio
import math
from dataclasses import is_dataclass
from functools import partial
from typing import Any, Protocol

import anyio
from msgspec import UNSET, Raw, Struct

from broker.calling.outgoing import async_iterator, is_stream
from broker.calling.sending import OutgoingStream, Sending
from broker.calling.service_host import Catalog
from broker.calling.upload import Upload
from broker.context import ABSENT, Caller, CallOptions, Context
from broker.conversation.effects import Publish
from broker.conversation.transit import Transit
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
from broker.options import BrokerOptions
from broker.protocol.codecs.json import Codec
from broker.protocol.packets import Request, Response
from broker.registry.endpoints import Endpoint
from broker.registry.registry import Registry
from broker.streams.local import LocalStream
from broker.streams.reader import Readable, StreamReader


class Broker(Caller, Protocol):
    """What is needed of the broker."""

    async def registry_changed(self) -> None: ...


class Calls:
    """Makes calls for the broker and for contexts."""

    def __init__(
        self,
        broker: Broker,
        options: BrokerOptions,
        node: Node,
        transit: Transit,
        registry: Registry,
        codec: Codec,
        catalog: Catalog,
        chains: Chains,
    ) -> None:
        self._broker = broker
        self._options = options
        self._node = node
        self._transit = transit
        self._registry = registry
        self._codec = codec
        self._catalog = catalog
        self._chains = chains
        self._sending = Sending(node, transit, codec)

    async def call(self, action: str, params: Any, options: CallOptions) -> Any:
        """Make a call, inside what `broker.middlewares.chains` puts around it once an endpoint is found."""
        ctx = self._context(action, params, options)
        tracked = not self._transit.stopping  # later calls are made by what is waited for anyway
        if tracked:
            self._node.tracker.begin()
        before = self._node.begin_own_work()  # a handler of this node runs in the task of its caller
        try:
            return await self._attempt(ctx, options)
        finally:
            self._node.end_own_work(before)
            if isinstance(ctx.stream, Upload):
                ctx.stream.drop()
            if options.parent is not None:
                options.parent.meta.update(ctx.meta)
            if tracked:
                self._node.tracker.end()

    async def again(self, ctx: Context) -> Any:
        """Make the call of a context once more: at any node, as the one that was asked for has failed (§12.2)."""
        assert ctx.options is not None
        return await self._attempt(ctx.again(), ctx.options)

    async def _attempt(self, ctx: Context, options: CallOptions) -> Any:
        node_id = None if ctx.attempt else options.node_id
        try:
            endpoint = options.endpoint or self._registry.find_action(ctx.action or "", node_id, ctx=ctx)
            ctx.deadline = self._deadline(endpoint.name, endpoint.timeout_s, options)
        except (ServiceNotFoundError, ServiceNotAvailableError):
            endpoint = await self._find_in_time(node_id, ctx, options)
        if endpoint.local and (options.endpoint or not self._is_balanced(ctx)):
            return await self._run_here(endpoint, ctx)
        ctx.node_id = endpoint.node_id
        if options.plain:
            chain = endpoint.chain
            if chain is None:
                chain = endpoint.chain = self._chains.remote_action(endpoint, partial(self._send, endpoint))
        else:
            chain = endpoint.asked_chain
            if chain is None:
                send = partial(self._send, endpoint)
                chain = endpoint.asked_chain = self._chains.remote_action(endpoint, send, asked=True)
        return await chain(ctx)

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
                if not self._transit.waiting.may_return(action, node_id, now, patient=patient):
                    raise
            with anyio.move_on_after(TICK_S):
                await self._broker.registry_changed()

    async def _run_here(self, endpoint: Endpoint, ctx: Context) -> Any:
        assert endpoint.action is not None
        if _is_record(ctx.params):
            ctx.params = self._as_remote(ctx.params)
        stream = ctx.stream = self._handed_over(ctx.stream)
        if stream is None:
            return self._result_here(await self._catalog.run(endpoint.action, ctx), None)
        result = None
        try:
            result = await self._catalog.run(endpoint.action, ctx)
        finally:
            if not is_stream(result):  # else the handler has only begun
                await stream.aclose()
        return self._result_here(result, stream)

    def _handed_over(self, stream: Any) -> Readable | None:
        """A stream for a handler of this node."""
        if stream is None or isinstance(stream, Readable):
            return stream
        items = stream.hand_over() if isinstance(stream, Upload) else async_iterator(stream)
        return LocalStream(items, self._as_remote)

    def _result_here(self, result: Any, along: Readable | None) -> Any:
        """The result of an action of this node for its caller."""
        if not is_stream(result) or isinstance(result, Readable):
            return self._as_remote(result)
        return LocalStream(aiter(result), self._as_remote, along)

    async def _send(self, endpoint: Endpoint, ctx: Context) -> Any:
        """Ask a node. A request that was not delivered is sent again, also to another node: nothing has happened."""
        if self._is_balanced(ctx):
            return await self._send_balanced(endpoint, ctx)
        while True:
            try:
                return self._result(*await self._ask(endpoint, endpoint.node_id, ctx), ctx)
            except Undelivered as gone:
                rejected = gone.error
            if isinstance(ctx.stream, Upload) and ctx.stream.sent:
                raise rejected
            named = None if ctx.attempt or ctx.options is None else ctx.options.node_id
            try:
                endpoint = await self._find(endpoint.name, named, ctx)
            except MoleculerError:
                raise rejected from None
            ctx.id, ctx.node_id = new_id(), endpoint.node_id
            if endpoint.local:
                return await self._run_here(endpoint, ctx)

    def _is_balanced(self, ctx: Context) -> bool:
        """Whether NATS chooses the node (§5.7). A stream must reach one node as a whole, so it goes to a chosen one."""
        if not self._options.disable_balancer or self._node.transport is None:
            return False
        named = ctx.options is not None and ctx.options.node_id is not None and not ctx.attempt
        return not (named or ctx.stream is not None or (ctx.action or "").startswith("$"))

    async def _send_balanced(self, endpoint: Endpoint, ctx: Context) -> Any:
        """Ask whichever node NATS chooses. While a JS node changes its services there is none for a moment."""
        for _ in range(BALANCED_RETRIES):
            try:
                return self._result(*await self._ask(endpoint, None, ctx), ctx)
            except Undelivered:
                await anyio.sleep(BALANCED_RETRY_S)
                ctx.id = new_id()
        raise ServiceNotAvailableError({"action": endpoint.name})

    async def _ask(self, endpoint: Endpoint, target: str | None, ctx: Context) -> Answer:
        """Send a request and wait for its answer."""
        await self._require_connection()
        waiter: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        upload = await self._upload(ctx)
        packet = self._packet(endpoint.node_id, ctx)
        stream = self._stream_along(packet, endpoint.node_id, upload, ctx)
        try:
            for effect in self._transit.waiting.request(packet, target, waiter, anyio.current_time()):
                assert isinstance(effect, Publish)
                try:
                    await self._node.publish(effect)
                except BrokerDisconnectedError as lost:
                    raise Undelivered(lost) from lost
            if stream is not None and upload is not None:
                await self._start(stream, upload, waiter)
            answer = await waiter
            if stream is not None and upload is not None:
                stream.answered(answer, upload)
            return answer
        except asyncio.CancelledError:
            if stream is not None and upload is not None:  # the request may be out, also when it was being sent
                stream.give_up(upload)
            raise
        except Exception:
            if stream is not None:
                stream.drop()
            raise
        finally:
            self._transit.waiting.take(packet.id)
            _retrieve(waiter)

    async def _start(self, stream: OutgoingStream, upload: Upload, waiter: "asyncio.Future[Answer]") -> None:
        """Send a stream when the server has taken its request and not said that nobody listens: only what has not
        begun can go to another node. A handler that has answered already may still read."""
        assert self._node.transport is not None
        try:
            await self._node.transport.flush()
        except BrokerDisconnectedError as lost:
            stream.lose(upload, lost)
            raise
        if not waiter.done() or (waiter.exception() is None and stream.outlives(waiter.result())):
            stream.go_on(upload, partial(_fail, waiter))

    async def _upload(self, ctx: Context) -> Upload | None:
        """The stream of a call, begun: by an attempt before this one, maybe."""
        if ctx.stream is None or isinstance(ctx.stream, Upload):
            return ctx.stream
        upload = ctx.stream = Upload(self._node, ctx.stream)
        await upload.open()
        return upload

    def _stream_along(
        self, packet: Request, node_id: str, upload: Upload | None, ctx: Context
    ) -> OutgoingStream | None:
        if upload is None:
            return None
        has_params = ctx.params is not ABSENT and ctx.params not in (None, {})
        return self._sending.along_with(packet, node_id, upload.source, has_params=has_params)

    async def _require_connection(self) -> None:
        transport = self._node.transport
        if transport is None or not transport.connected:
            await self._node.outage.over(patient=self._options.wait_for_connection)

    def _packet(self, node_id: str, ctx: Context) -> Request:
        version = self._transit.announcing.version_for(node_id)
        left_ms = 0.0 if ctx.deadline is None else max(ctx.deadline - anyio.current_time(), 0.001) * 1000
        return ctx.to_request(version, self._codec.encode_value(ctx.params), left_ms)

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

    def _context(self, action: str, params: Any, options: CallOptions) -> Context:
        parent: Context | None = options.parent
        limit = self._options.max_call_level
        if parent and limit and parent.level >= limit:
            raise MaxCallLevelError({"nodeID": self._options.node_id, "level": parent.level})
        ctx = Context(
            self._broker,
            parent=parent,
            action=action,
            params={} if params is ABSENT else params,
            meta=options.meta,
            headers=options.headers,
            node_id=self._options.node_id,
            request_id=options.request_id,
            caller=options.caller,
        )
        ctx.options, ctx.stream = options, options.stream
        return ctx

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


def _retrieve(waiter: "asyncio.Future[Answer]") -> None:
    """Take the exception of a waiter nobody waits for any more, so that asyncio does not report it."""
    if waiter.done() and not waiter.cancelled():
        waiter.exception()
