"""Streams that this node sends along with a request or as an answer (moleculer protocol §8.1, §8.2)."""

from typing import Any

import anyio
import msgspec
from msgspec import UNSET, Raw

from broker.codec import Codec
from broker.context import Context
from broker.errors import MoleculerClientError, error_to_wire
from broker.flow import FLOW_CONTROL, Flow
from broker.node import Node
from broker.outgoing import Outgoing, Source
from broker.packets import NULL, Request, Response
from broker.streams import OBJECT_MODE, STREAM_ERROR
from broker.transit import Transit


class RequestStream:
    """The stream of one request: started when the request is out, cancelled when its answer makes it pointless."""

    def __init__(self, node: Node, outgoing: Outgoing, source: Source, prefix: str, flow: Flow) -> None:
        self._node = node
        self._outgoing = outgoing
        self._source = source
        self._prefix = prefix
        self._flow = flow
        self._scope = anyio.CancelScope()

    def start(self) -> None:
        """Send the chunks in the background."""
        self._node.performing.flows[self._prefix] = self._flow
        self._node.start_handler(self._write())

    def cancel(self) -> None:
        """Send no more."""
        self._scope.cancel()

    async def _write(self) -> None:
        try:
            with self._scope:
                await self._outgoing.write(self._source)
        finally:
            self._node.performing.flows.pop(self._prefix, None)


class Sending:
    """Prepares and sends streams."""

    def __init__(self, node: Node, transit: Transit, codec: Codec) -> None:
        self._node = node
        self._transit = transit
        self._codec = codec

    def along_with(self, request: Request, node_id: str, source: Source, *, has_params: bool) -> RequestStream:
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
        if in_meta:
            request.params, request.meta = NULL, {**(request.meta or {}), **flags}
        else:
            request.headers = {**(request.headers or {}), **flags}

        def packet(sequence: int, more: bool, chunk: Raw, error: BaseException | None) -> Request:
            broken = {} if error is None else {STREAM_ERROR: error_to_wire(error, self._node.options.node_id)}
            return msgspec.structs.replace(
                request,
                params=chunk,
                meta={**flags, **broken} if in_meta else {},
                headers=UNSET if in_meta else {**_object(request.headers), **broken},
                stream=more,
                sequence=sequence,
            )

        subject = self._transit.topics.to_node("REQ", node_id)
        prefix = f"q{request.id}"
        flow = Flow(acknowledges=self._acknowledges(node_id))
        return RequestStream(self._node, self._outgoing(subject, prefix, flow, packet), source, prefix, flow)

    async def answer(self, request: Request, ctx: Context, source: Source) -> None:
        """Answer a request with a stream; returns when it was sent, or nobody reads it any more."""
        in_meta = request.ver == "4"
        flags = {OBJECT_MODE: True} if source.objects else {}
        meta = {**ctx.meta, **flags} if in_meta else ctx.meta
        headers: Any = UNSET if in_meta else {**ctx.response_headers, **flags}

        def packet(sequence: int, more: bool, chunk: Raw, error: BaseException | None) -> Response:
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

        prefix = f"r{request.id}"
        flow = Flow(acknowledges=self._acknowledges(request.sender))
        outgoing = self._outgoing(self._transit.topics.to_node("RES", request.sender), prefix, flow, packet)
        self._node.performing.flows[prefix] = flow
        try:
            await outgoing.open()
            await outgoing.write(source)
        finally:
            self._node.performing.flows.pop(prefix, None)

    def _outgoing(self, subject: str, prefix: str, flow: Flow, packet: Any) -> Outgoing:
        limit = self._node.transport.max_payload if self._node.transport else None
        return Outgoing(self._codec, self._node.publish, subject, prefix, flow, limit, packet)

    def _acknowledges(self, node_id: str) -> bool:
        node = self._transit.registry.nodes.get(node_id)
        return node is not None and bool(node.client.get(FLOW_CONTROL))


def _object(headers: Any) -> dict[str, Any]:
    return headers if isinstance(headers, dict) else {}
