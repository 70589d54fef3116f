"""Requests and events of other nodes, run here (moleculer protocol §5.3, §7.2)."""

import asyncio
import logging
import math
import re

import anyio
from msgspec import Raw

from broker.calling.service_host import EventHandler, HostedAction, ServiceHost
from broker.cancellation import invoke_user
from broker.context import Caller, Context, Next
from broker.conversation.effects import Publish, RunAction, RunEvent
from broker.defaults import ENVELOPE_MARGIN_BYTES
from broker.errors import (
    BrokerDisconnectedError,
    MoleculerError,
    PayloadTooLargeError,
    RequestRejectedError,
    ServiceNotFoundError,
)
from broker.node.node import Node
from broker.node.work import belong_to
from broker.protocol.encoding import UNSERIALIZABLE, is_unreadable
from broker.protocol.packets import NULL, Event, Request
from broker.registry.endpoints import EventEndpoint
from broker.streams.writer import StreamWriter
from broker.transports.base import Transport

logger = logging.getLogger("broker")

_PLAIN_ID = re.compile(r"[0-9A-Za-z-]{1,64}\Z")
"""What every serializer writes as it is."""


class InboundWork:
    """Runs what the transit hands over, each request and each event handler in a task of its own."""

    def __init__(self, broker: Caller, node: Node, host: ServiceHost) -> None:
        self._broker = broker
        self._node = node
        self._transport: Transport = node.transport  # type: ignore[assignment]  # without one, no request arrives
        self._transit = node.transit
        self._codec = node.codec
        self._host = host
        self._plain_sizes: dict[int, int] = {}
        """Of envelopes without meta, by the length of the id."""

    def run_action(self, job: RunAction) -> None:
        hosted = self._host.begin(job.action)
        if hosted is None:  # its service was removed after the request was accepted
            self._transit.in_work.discard(job)
            gone = ServiceNotFoundError({"action": job.request.action, "nodeID": self._node.options.node_id})
            answer = self._transit.respond_error(job.request, job.request.meta, gone)
            self._node.start_handler(self._send(job.request, answer))
        elif self._node.handlers.closed:
            self._transit.in_work.discard(job)
        else:
            work, context = self._serve(job, hosted), hosted.entry.context.copy()
            job.task = asyncio.get_running_loop().create_task(work, context=context)

    def run_event(self, effect: RunEvent) -> None:
        for listener in effect.listeners:
            handler = self._host.handler(listener.event) if listener.event is not None else None
            if handler is not None:
                handler.in_work.count += 1
                self._node.workers.submit(self._handle, handler, effect.event)

    def start_listener(self, listener: EventEndpoint, ctx: Context) -> None:
        """Run one event handler of this node for an event of its own, in a task that has the context variables of who
        sends it. A stop waits for it."""
        handler = self._host.handler(listener.event) if listener.event is not None else None
        if handler is not None:
            self._start(handler, ctx)

    def start_handler(self, chain: Next, ctx: Context) -> None:
        """Run the rest of a chain in a task of its own, unless its service has gone by then."""
        handler = self._host.rest(chain, ctx)
        if handler is not None:
            self._start(handler, ctx)

    def _start(self, handler: EventHandler, ctx: Context) -> None:
        handler.in_work.count += 1
        self._node.start_handler(self._enter(handler, ctx))

    def reply_limit(self, ctx: Context) -> int | None:
        """What is left of `max_payload` for the result of a remote call, after the envelope and its meta."""
        limit = self._node.transport.max_payload if self._node.transport else None
        if limit is None or not ctx.remote:
            return None
        return max(0, limit - self._envelope_size(ctx) - ENVELOPE_MARGIN_BYTES)

    def _envelope_size(self, ctx: Context) -> int:
        plain = not ctx.meta and type(ctx.id) is str and _PLAIN_ID.match(ctx.id)  # as most are
        size = self._plain_sizes.get(len(ctx.id)) if plain else None
        if size is None:
            node_id = self._node.options.node_id
            envelope = Request(ver="5", sender=node_id, id=ctx.id, action="", meta=ctx.meta, params=NULL)
            size = len(self._codec.encode(envelope))
            if plain:
                self._plain_sizes[len(ctx.id)] = size
        return size

    def reply_size(self, ctx: Context, text: bytes) -> int:
        """What JSON text takes of `reply_limit` in the serializer of this node."""
        return self._codec.size(self._codec.encode_value(Raw(text))) if ctx.remote else len(text)

    async def _enter(self, handler: EventHandler, ctx: Context) -> None:
        belong_to(handler.entry)
        await self._handle(handler, ctx)

    async def _handle(self, handler: EventHandler, event: Event | Context) -> None:
        """A failure of an event handler is logged here and nowhere else (§7.1)."""
        ctx = event if isinstance(event, Context) else Context.from_event(self._broker, event, self._codec.decode_value)
        ctx.service = handler.entry.service
        try:
            await invoke_user(handler.chain, ctx)
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

    async def _serve(self, job: RunAction, hosted: HostedAction) -> None:
        """Run an action and answer: exactly once, whatever happens. Work is done when its answer is on its way."""
        request, stream = job.request, None
        deadline = None if request.timeout == 0 else self._deadline(job)
        ctx = Context.from_request(self._broker, request, self._codec.decode_value, deadline)
        received = ctx.stream = None if job.stream is None else self._node.effects.reader(job.stream)
        try:
            try:
                result = await hosted.run(ctx)
                if hasattr(result, "__aiter__"):
                    writer = StreamWriter(self._node.effects.writers, result)
                    stream = await writer.answer(request, job.reply, ctx, deadline)
                    job.answering = True
                    await stream.done.wait()
                    return
                response = self._transit.response(request, ctx.meta, ctx.response_headers)
                data = self._codec.encode_with(response, result)
                answer = Publish(self._transit.topics.to_node("RES", request.sender), response, data=data)
            except Exception as error:
                self._log_failure(request, error)
                answer = self._transit.respond_error(request, ctx.meta, error, ctx.response_headers)
            except asyncio.CancelledError:
                if stream is None:  # else its reader knows
                    with anyio.CancelScope(shield=True):
                        await self._send(request, self._rejection(request, ctx))
                raise
            finally:
                if received is not None:
                    await received.aclose()
            ready = None if self._node.outage.is_unsettled else answer.data
            if ready is None or not self._transport.try_publish(answer.subject, ready):
                await self._send(request, answer, deadline)
        except Exception:
            logger.exception("Some work of the node failed; it goes on")
        finally:
            self._transit.in_work.discard(job)

    async def _send(self, request: Request, answer: Publish, deadline: float | None = None) -> None:
        """An answer that is ready in an outage, or just after one, has a caller that still waits for it."""
        try:
            if self._transit.stopping or not self._node.outage.is_unsettled:
                try:
                    await self._node.effects.publish(answer)
                    return
                except BrokerDisconnectedError:
                    if self._transit.stopping:
                        raise
            with anyio.CancelScope(deadline=math.inf if deadline is None else deadline):
                await self._node.deliver(answer)
        except PayloadTooLargeError as error:
            await self._node.perform([self._transit.respond_error(request, None, _too_large(request, error))])
        except MoleculerError as error:
            if error.type == UNSERIALIZABLE:  # the handler's meta, headers or error data
                await self._node.perform([self._transit.respond_error(request, None, error)])
            logger.warning("The answer to '%s' could not be sent to '%s': %s", request.action, request.sender, error)

    def _rejection(self, request: Request, ctx: Context) -> Publish:
        error = RequestRejectedError({"action": request.action, "nodeID": self._transit.identity.node_id})
        return self._transit.respond_error(request, ctx.meta, error)

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

    def _deadline(self, job: RunAction) -> float | None:
        """What the caller gives; this node's own default when it does not say (§2.3)."""
        if job.request.timeout is not None:
            timeout_s = job.request.timeout / 1000
        else:
            own = job.action.timeout_s
            timeout_s = self._node.options.request_timeout if own is None else own
        return job.arrived + timeout_s if timeout_s > 0 else None


def _too_large(request: Request, error: PayloadTooLargeError) -> PayloadTooLargeError:
    return PayloadTooLargeError(
        f"The result of '{request.action}' makes a message of {error.data['size']} bytes, and the NATS server takes "
        f"{error.data['limit']} at most (max_payload). Ask for less at a time.",
        {"action": request.action, **error.data},
    )
