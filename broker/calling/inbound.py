"""Requests and events of other nodes, run here (moleculer protocol §5.3, §7.2)."""

import asyncio
import logging
import math

import anyio
from msgspec import Raw

from broker.calling.outgoing import is_stream
from broker.calling.sending import OutgoingStream, Sending
from broker.calling.service_host import Catalog, EventHandler, services_within
from broker.cancellation import raise_unasked
from broker.context import Caller, Context, Next
from broker.conversation.effects import Effect, Publish, RunAction, RunEvent
from broker.conversation.transit import Transit
from broker.defaults import ENVELOPE_MARGIN_BYTES
from broker.errors import BrokerDisconnectedError, MoleculerError, PayloadTooLargeError, RequestRejectedError
from broker.node.node import Node
from broker.protocol.codecs.json import Codec
from broker.protocol.encoding import UNSERIALIZABLE, is_unreadable
from broker.protocol.packets import NULL, Event, Request
from broker.registry.endpoints import Listener

logger = logging.getLogger("broker")


class Serving:
    """Runs what the transit hands over, each request and each event handler in a task of its own."""

    def __init__(self, broker: Caller, node: Node, transit: Transit, codec: Codec, catalog: Catalog) -> None:
        self._broker = broker
        self._node = node
        self._transit = transit
        self._codec = codec
        self._catalog = catalog
        self._sending = Sending(node, transit, codec)

    def start_request(self, effect: RunAction) -> None:
        self._node.start_handler(self._serve(effect))

    def start_event(self, effect: RunEvent) -> None:
        for listener in effect.listeners:
            handler = self._catalog.handler(listener.event) if listener.event is not None else None
            if handler is not None:
                handler.in_work.begin()
                self._node.workers.submit(self._handle, handler, effect.event)

    def start_listener(self, listener: Listener, ctx: Context) -> None:
        """Run one event handler of this node for an event of its own, in a task that has the context variables of who
        sends it. A stop waits for it."""
        handler = self._catalog.handler(listener.event) if listener.event is not None else None
        if handler is not None:
            self._start(handler, ctx)

    def start_handler(self, chain: Next, ctx: Context) -> None:
        """Run the rest of a chain in a task of its own, unless its service has gone by then."""
        handler = self._catalog.rest(chain, ctx)
        if handler is not None:
            self._start(handler, ctx)

    def _start(self, handler: EventHandler, ctx: Context) -> None:
        handler.in_work.begin()
        self._node.start_handler(self._enter(handler, ctx))

    def reply_limit(self, ctx: Context) -> int | None:
        """What is left of `max_payload` for the result of a remote call, after the envelope and its meta."""
        limit = self._node.transport.max_payload if self._node.transport else None
        if limit is None or not ctx.remote:
            return None
        envelope = Request(ver="5", sender=self._node.options.node_id, id=ctx.id, action="", meta=ctx.meta, params=NULL)
        return max(0, limit - len(self._codec.encode(envelope)) - ENVELOPE_MARGIN_BYTES)

    def reply_size(self, ctx: Context, text: bytes) -> int:
        """What JSON text takes of `reply_limit` in the serializer of this node."""
        return self._codec.size(self._codec.encode_value(Raw(text))) if ctx.remote else len(text)

    async def _enter(self, handler: EventHandler, ctx: Context) -> None:
        handler.enter(services_within())
        await self._handle(handler, ctx)

    async def _handle(self, handler: EventHandler, event: Event | Context) -> None:
        """A failure of an event handler is logged here and nowhere else (§7.1)."""
        ctx = event if isinstance(event, Context) else Context.from_event(self._broker, event, self._codec.decode_value)
        ctx.service = handler.entry.service
        try:
            try:
                await handler.chain(ctx)
            except asyncio.CancelledError as error:
                raise_unasked(error)
                raise
        except Exception as error:
            if is_unreadable(error):
                logger.warning(
                    "The data of '%s', sent by '%s', cannot be read: %s", ctx.event, ctx.node_id, error.data["reason"]
                )
            else:
                name = handler.entry.definition.full_name
                logger.exception("The handler of '%s' in service '%s' failed", ctx.event, name)
        finally:
            handler.in_work.end()

    async def _serve(self, effect: RunAction) -> None:
        """Run an action and answer: exactly once, whatever happens. Work is done when its answer is on its way."""
        try:
            await self._send(effect.request, await self._answer(effect), self._deadline(effect))
        except Exception:  # one request must not end the others
            logger.exception("The call of '%s' by '%s' went wrong", effect.request.action, effect.request.sender)
        finally:
            self._node.work_done(effect.request)

    async def _answer(self, effect: RunAction) -> list[Effect]:
        request = effect.request
        ctx = self._context(effect)
        received = ctx.stream = None if effect.stream is None else self._node.performing.reader(effect.stream)
        stream: OutgoingStream | None = None
        try:
            result = await self._catalog.run(effect.action, ctx)
            if is_stream(result):
                stream = self._sending.answer(request, effect.reply, ctx, result)
                await stream.begin(ctx.deadline)
                self._node.answer_begun(request)
                await stream.write()
                return []
            data = self._codec.encode_value(result)
            return self._transit.respond(request, ctx.meta, data, headers=ctx.response_headers)
        except Exception as error:
            self._log_failure(request, error)
            return self._transit.respond_error(request, ctx.meta, error, headers=ctx.response_headers)
        except anyio.get_cancelled_exc_class():
            if stream is not None and stream.is_open:
                raise  # its reader was told
            refusal = RequestRejectedError({"action": request.action, "nodeID": self._transit.identity.node_id})
            with anyio.CancelScope(shield=True):
                await self._send(request, self._transit.respond_error(request, ctx.meta, refusal))
            raise
        finally:
            if received is not None:
                await received.aclose()

    async def _send(self, request: Request, answer: list[Effect], deadline: float | None = None) -> None:
        for effect in answer:
            assert isinstance(effect, Publish)
            try:
                await self._publish(effect, deadline)
            except PayloadTooLargeError as error:
                await self._node.perform(self._transit.respond_error(request, None, _too_large(request, error)))
            except MoleculerError as error:
                if error.type == UNSERIALIZABLE:  # the handler's meta, headers or error data
                    await self._node.perform(self._transit.respond_error(request, None, error))
                logger.warning(
                    "The answer to '%s' could not be sent to '%s': %s", request.action, request.sender, error
                )

    async def _publish(self, answer: Publish, deadline: float | None) -> None:
        """An answer that is ready in an outage, or just after one, has a caller that still waits for it."""
        if self._transit.stopping or not self._node.outage.is_unsettled:
            try:
                await self._node.publish(answer)
                return
            except BrokerDisconnectedError:
                if self._transit.stopping:
                    raise
        with anyio.CancelScope(deadline=math.inf if deadline is None else deadline):
            await self._node.deliver(answer)

    def _log_failure(self, request: Request, error: Exception) -> None:
        if is_unreadable(error):
            logger.warning(
                "The params of '%s', called by '%s', cannot be read: %s",
                request.action,
                request.sender,
                error.data["reason"],
            )
        elif not isinstance(error, MoleculerError):
            logger.error("Action '%s', called by '%s', failed", request.action, request.sender, exc_info=error)

    def _context(self, effect: RunAction) -> Context:
        deadline = self._deadline(effect)
        ctx = Context.from_request(self._broker, effect.request, self._codec.decode_value, deadline)
        return ctx

    def _deadline(self, effect: RunAction) -> float | None:
        """What the caller gives; this node's own default when it does not say (§2.3)."""
        if effect.request.timeout is not None:
            timeout_s = effect.request.timeout / 1000
        else:
            own = effect.action.timeout_s
            timeout_s = self._node.options.request_timeout if own is None else own
        return effect.arrived + timeout_s if timeout_s > 0 else None


def _too_large(request: Request, error: PayloadTooLargeError) -> PayloadTooLargeError:
    return PayloadTooLargeError(
        f"The result of '{request.action}' makes a message of {error.data['size']} bytes, and the NATS server takes "
        f"{error.data['limit']} at most (max_payload). Ask for less at a time.",
        {"action": request.action, **error.data},
    )
