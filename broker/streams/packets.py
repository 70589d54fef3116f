"""What the packets of a stream say, and how they are made (protocol §8.1 to §8.3)."""

from typing import Any, NamedTuple

from msgspec import UNSET, Raw
from msgspec.structs import replace

from broker.errors import PayloadTooLargeError, error_to_wire
from broker.protocol.packets import NULL, Request, Response

OBJECT_MODE = "$streamObjectMode"
"""The key of meta (protocol 4) or headers (protocol 5) that marks a stream of values instead of bytes."""

STREAM_ERROR = "$streamError"
"""The key under which the last packet of a broken request stream carries its error."""

CONTINUE = b"+"
"""The answer of a reader to a marked chunk that it has read."""

STOP = b"-"
"""The answer of a reader that reads no further."""


def has_inbox(request: Request, reply: str) -> bool:
    """Whether a request came from a Python node, perhaps one that has not introduced itself yet. JS nodes publish
    without a reply subject, and what others put there does not end with the id of the request."""
    return bool(reply and request.id) and reply.endswith(str(request.id))


def is_part_of_stream(packet: Request | Response) -> bool:
    """Whether a packet is one of several. The end of a stream says `stream: false`, but its sequence is above 0."""
    return packet.stream is True or bool(packet.sequence)


def sequence_of(packet: Request | Response) -> int:
    """The place of a packet in its stream; 0 for the one that opens it, and for a packet without a stream."""
    return packet.sequence or 0


def control(packet: Request | Response, key: str) -> Any:
    """A control value of a stream: peers of protocol 4 put it into meta, those of 5 into headers."""
    for place in (packet.headers, packet.meta):
        if place and key in place:
            return place[key]
    return None


def without_control(place: Any) -> Any:
    """Meta or headers as the user set them."""
    if isinstance(place, dict) and (OBJECT_MODE in place or STREAM_ERROR in place):
        return {key: value for key, value in place.items() if key not in (OBJECT_MODE, STREAM_ERROR)}
    return place


class Envelope(NamedTuple):
    """What the packets of a stream that goes out are made of."""

    rest: Request | Response
    bare: Request | Response
    """The same without the user's meta and headers: for an error that says that something is too large."""

    def packet(
        self, sequence: int, more: bool, chunk: Raw = NULL, error: BaseException | None = None
    ) -> Request | Response:
        """One of them: whether more follow, the chunk, and what broke the stream."""
        base = self.bare if isinstance(error, PayloadTooLargeError) else self.rest
        wire_error = None if error is None else error_to_wire(error, base.sender)
        if isinstance(base, Response):
            failure = {} if error is None else {"success": False, "error": wire_error}
            return replace(base, data=chunk, stream=more, sequence=sequence, **failure)
        packet = replace(base, params=chunk, stream=more, sequence=sequence)
        if error is not None:
            place = "meta" if base.ver == "4" else "headers"
            setattr(packet, place, {**getattr(base, place), STREAM_ERROR: wire_error})
        return packet


def open_request(request: Request, *, objects: bool) -> Envelope:
    """Make a request the opening packet of a stream: in protocol 4 the stream takes the place of its params."""
    flags = {OBJECT_MODE: True} if objects else {}
    request.stream, request.sequence = True, 0
    if request.ver == "4":
        request.params, request.meta = NULL, {**(request.meta or {}), **flags}
        rest = replace(request, meta=flags, headers=UNSET)
        return Envelope(rest, rest)
    request.headers = {**(request.headers or {}), **flags}
    rest = replace(request, meta={})
    return Envelope(rest, replace(rest, headers=flags))


def open_answer(
    request: Request, node_id: str, meta: dict[str, Any], headers: dict[str, Any], *, objects: bool
) -> Envelope:
    """The packets of an answer, with the meta and headers of the moment in which it opens."""
    flags = {OBJECT_MODE: True} if objects else {}
    bare = Response(ver=request.ver, sender=node_id, id=request.id, meta={}, success=True)
    if request.ver == "4":
        return Envelope(replace(bare, meta={**meta, **flags}), bare)
    return Envelope(replace(bare, meta=dict(meta), headers={**headers, **flags}), bare)
