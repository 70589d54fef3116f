"""What the packets of a stream say (protocol §8.1, §8.3)."""

from typing import Any

from broker.protocol.packets import Request, Response

OBJECT_MODE = "$streamObjectMode"
"""The key of meta (protocol 4) or headers (protocol 5) that marks a stream of values instead of bytes."""

STREAM_ERROR = "$streamError"
"""The key under which the last packet of a broken request stream carries its error."""

CONTINUE = b"+"
"""The answer of a reader to a marked chunk that it has read."""

STOP = b"-"
"""The answer of a reader that reads no further."""


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
