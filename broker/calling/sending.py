"""Streams that this node sends along with a request or as an answer (moleculer protocol §8.1, §8.2)."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from typing import Any

import anyio
import msgspec
from msgspec import UNSET, Raw

from broker.calling.outgoing import MakePacket, Outgoing, Source
from broker.calling.upload import Upload
from broker.context import Context
from broker.conversation.transit import Transit
from broker.defaults import STREAM_OPENING_S, STREAM_TIMEOUT_MARGIN_S
from broker.errors import (
    MoleculerClientError,
    MoleculerError,
    PayloadTooLargeError,
    RequestRejectedError,
    RequestTimeoutError,
    error_to_wire,
)
from broker.node.effects import Answer
from broker.node.node import Node
from broker.protocol.codecs.json import Codec
from broker.protocol.packets import NULL, PROTOCOLS, Command, Request, Response
from broker.streams.flow import FLOW_CONTROL, Flow
from broker.streams.ordering import OBJECT_MODE, STREAM_ERROR, has_inbox


class OutgoingStream:
    """One stream of this node, under way until its source ends, nobody reads it any more, or the node stops."""

    def __init__(self, node: Node, outgoing: Outgoing, source: Source, prefix: str, flow: Flow) -> None:
        self._node = node
        self._outgoing = outgoing
        self._source = source
        self._prefix = prefix
        self._flow = flow
        self._cut_off = RequestRejectedError({"action": flow.action, "nodeID": node.options.node_id})
        """What the reader is told when this node ends the stream before its source does."""
        self._begun = False
        self.is_open = False

    def go_on(self, upload: Upload, lost: Callable[[Exception], None] | None = None) -> None:
        """Send the chunks of what a call takes along. `lost` gets the reason when some do not arrive."""
        self._begun, self._flow.on_lost = True, lost
        self._flow.on_stop = upload.abandon
        upload.send(self.write)
        if self._flow.stopped:
            upload.abandon()

    async def begin(self, deadline: float | None) -> None:
        """Open the stream of an answer with its first item, or without it when that does not come soon.

        Until it is open, what the source raises passes, RequestTimeoutError when the deadline does, and errors of the
        transport. The deadline is asyncio's: scopes of anyio nest, and one that a handler opens before its first item
        stays open.
        """
        try:
            async with self._flow.writing(), asyncio.timeout_at(deadline) as in_time:
                enough = self._node.after(STREAM_OPENING_S, partial(self._announce, in_time))
                try:
                    await self._source.open()
                finally:
                    enough()
            await self._open()
        except BaseException as error:
            if self.is_open and isinstance(error, anyio.get_cancelled_exc_class()):
                await self._cut_short()
            await self._source.close()
            self._drop()
            if isinstance(error, TimeoutError) and in_time.expired():
                raise RequestTimeoutError({"action": self._flow.action, "nodeID": self._flow.node_id}) from None
            raise

    def _announce(self, in_time: asyncio.Timeout) -> None:
        self._source.announce()
        in_time.reschedule(None)
        self._node.start_handler(self._open_quietly())

    async def _open_quietly(self) -> None:
        with suppress(MoleculerError):  # it is tried again with the first item, and told
            await self._open()

    async def _open(self) -> None:
        if self.is_open:
            return
        self.is_open = True
        try:
            await self._outgoing.open()
        except BaseException:
            self.is_open = False
            raise

    def outlives(self, answer: Answer) -> bool:
        """Whether what came with a call goes on when that is answered: a handler that answers with a stream reads on,
        and one of a JS node may. One of a node like this has read what it wanted; after an error nobody reads."""
        response, reader = answer
        return reader is not None or (bool(response.success) and not self._flow.acknowledges)

    def answered(self, answer: Answer, upload: Upload) -> None:
        """What came with a call is answered: send no more of it, unless it goes on."""
        if self.outlives(answer):
            return
        if self._flow.acknowledges:
            self._end(upload, None)
        else:
            self._forget()

    def give_up(self, upload: Upload) -> None:
        """Send no more of what came with a call that was cancelled or timed out, and let the handler that reads it
        know."""
        self._end(upload, self._cut_off)

    def lose(self, upload: Upload, error: Exception) -> None:
        """The connection was lost behind the request: its handler, which may have begun, learns when it is back that
        nothing follows."""
        self._flow.lose(error)
        self.go_on(upload)

    def drop(self) -> None:
        """Send no more of what came with a call that reached nobody, or whose node is gone."""
        if self._begun:
            self._flow.stop(self._cut_off)
        else:
            self._drop()

    def _end(self, upload: Upload, error: MoleculerError | None) -> None:
        """The end goes out also of a stream that had not begun: its handler waits for it."""
        if not self._begun:
            self.go_on(upload)
        self._flow.stop(error)

    def _forget(self) -> None:
        self._flow.forget()
        if not self._begun:
            self._drop()

    async def write(self) -> None:
        """Send the chunks; returns when there are no more, or nobody reads them."""
        try:
            await self._outgoing.write(self._source)
        except anyio.get_cancelled_exc_class():
            await self._cut_short()
            raise
        finally:
            if self._outgoing.is_settled:
                self._drop()
            else:
                self._node.start_in_background(self._settle())

    async def _settle(self) -> None:
        try:
            await self._outgoing.settle()
        finally:
            self._drop()

    async def _cut_short(self) -> None:
        with anyio.CancelScope(shield=True):
            await self._outgoing.break_off(self._cut_off)

    def _drop(self) -> None:
        self._node.performing.writers.close(self._prefix)


class Sending:
    """Prepares and sends streams."""

    def __init__(self, node: Node, transit: Transit, codec: Codec) -> None:
        self._node = node
        self._transit = transit
        self._codec = codec

    def along_with(self, request: Request, node_id: str, source: Source, *, has_params: bool) -> OutgoingStream:
        """Make `request` the opening packet of a stream from `source`.

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
        in_meta = request.ver == "4"
        flags = {OBJECT_MODE: True} if source.objects else {}
        request.stream, request.sequence = True, 0
        node = self._transit.registry.nodes.get(node_id)
        marks = node is not None and bool(node.client.get(FLOW_CONTROL))
        if request.timeout and not marks:
            request.timeout += STREAM_TIMEOUT_MARGIN_S * 1000
        if in_meta:
            request.params, request.meta = NULL, {**(request.meta or {}), **flags}
        else:
            request.headers = {**(request.headers or {}), **flags}

        def packet(sequence: int, more: bool, chunk: Raw, error: BaseException | None) -> Request:
            broken = {} if error is None else {STREAM_ERROR: error_to_wire(error, self._node.options.node_id)}
            users = flags if _is_too_much(error) else _object(request.headers)
            return msgspec.structs.replace(
                request,
                params=chunk,
                meta={**flags, **broken} if in_meta else {},
                headers=UNSET if in_meta else {**users, **broken},
                stream=more,
                sequence=sequence,
            )

        return self._stream("REQ", request, node_id, source, packet, marks=marks)

    def answer(self, request: Request, reply: str, ctx: Context, items: Any) -> OutgoingStream:
        """The stream that answers a request, which its `begin` opens and its `write` sends."""
        source = Source(items)

        @cache  # meta and headers are those of the moment in which the stream opens
        def places() -> tuple[dict[str, Any], Any]:
            flags = {OBJECT_MODE: True} if source.objects else {}
            if request.ver == "4":
                return {**ctx.meta, **flags}, UNSET
            return ctx.meta, {**ctx.response_headers, **flags}

        def packet(sequence: int, more: bool, chunk: Raw, error: BaseException | None) -> Response:
            meta, headers = ({}, UNSET) if _is_too_much(error) else places()
            return Response(
                ver=request.ver,
                sender=self._node.options.node_id,
                id=request.id,
                meta=meta,
                headers=headers,
                success=error is None,
                data=chunk,
                error=UNSET if error is None else error_to_wire(error, self._node.options.node_id),
                stream=more,
                sequence=sequence,
            )

        return self._stream("RES", request, request.sender, source, packet, marks=has_inbox(request, reply))

    def _stream(
        self, command: Command, request: Request, node_id: str, source: Source, packet: MakePacket, *, marks: bool
    ) -> OutgoingStream:
        transport, writers = self._node.transport, self._node.performing.writers
        assert transport is not None
        subject = self._transit.topics.to_node(command, node_id)
        prefix = f"{command}-{request.id}"
        ver = request.ver if request.ver in PROTOCOLS else PROTOCOLS[0]
        marked = marks and transport.has_inbox
        flow = writers.open(prefix, request.action, node_id, ver, anyio.current_time(), acknowledges=marked)
        owe = partial(writers.owe, flow)
        outgoing = Outgoing(self._codec, self._node.publish, owe, subject, prefix, flow, transport.max_payload, packet)
        return OutgoingStream(self._node, outgoing, source, prefix, flow)


def _is_too_much(error: BaseException | None) -> bool:
    """Whether the end of a stream must do without what a user put into its envelope, or it could not be sent."""
    return isinstance(error, PayloadTooLargeError)


def _object(headers: Any) -> dict[str, Any]:
    return headers if isinstance(headers, dict) else {}
