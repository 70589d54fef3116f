"""One Struct a packet, as they travel (moleculer protocol §2.3).

The command is not in the packet: the subject names it. What a peer may leave out has a default; a field that is `UNSET`
is not sent. Values of the user (params and data) stay `Raw`: they are decoded once, into the type that the action asks
for. Fields that no code acts on are not declared and so skipped (§2.1: unknown fields are ignored).
"""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

Protocol = Literal["4", "5"]
"""Protocol 4 is spoken by Moleculer 0.14, protocol 5 by 0.15."""

PROTOCOLS: tuple[Protocol, ...] = ("5", "4")

Command = Literal["EVENT", "REQ", "RES", "DISCOVER", "INFO", "DISCONNECT", "HEARTBEAT", "PING", "PONG", "PEERS"]

Objects = dict[str, Any]

Id = str | int | float
"""Text, but for what a JS caller was given as an id of its own: it goes back as it came."""

NULL: Any = None
"""No value, where a packet must have one: every serializer has a form for None, while a Raw has the form of one."""


_WIRE_NAMES = {
    **{"instance_id": "instanceID", "ip_list": "ipList", "need_ack": "needAck"},
    **{"parent_id": "parentID", "request_id": "requestID", "sequence": "seq"},
}


class Packet(Struct, kw_only=True, rename=_WIRE_NAMES):
    """What every packet has (§2.1). `ver` is any value here: a peer's number 4 is a mismatch, not bad bytes (§0.2)."""

    ver: Any = None
    sender: str


class Discover(Packet, kw_only=True):
    """Asks nodes to answer with INFO."""


class Disconnect(Packet, kw_only=True):
    """The sender leaves."""


class Heartbeat(Packet, kw_only=True):
    """The sender lives. `cpu` in percent, None until measured (§4.4)."""

    cpu: float | None = None


class Ping(Packet, kw_only=True):
    """`time` in epoch milliseconds of the sender; a float with some serializers (§11)."""

    time: Any = None
    id: Any = UNSET
    requests: Any = UNSET
    """Between Python nodes: a list of ids of the sender's requests, of which the answers may be lost."""


class Pong(Packet, kw_only=True):
    """A Ping sent back, with `arrived`, the responder's time in epoch milliseconds."""

    time: Any = None
    id: Any = UNSET
    arrived: Any = None
    requests: Any = UNSET
    """Whether the responder works on each of these requests."""


class Info(Packet, kw_only=True):
    """What a node offers (§3.1). Entries of `services` are read leniently by the registry, so they stay plain."""

    services: list[Any] | None = None
    ip_list: list[Any] | None = None
    hostname: str | None = None
    client: Objects | None = None
    config: Objects | None = None
    instance_id: str | None = None
    metadata: Objects | None = None
    sequence: int | None = None


class Peers(Packet, kw_only=True):
    """Asks a Python node which nodes it knows, or answers: `nodes` holds an object with `id` and `ver` for each. `more`
    parts may follow (§4.1). JS nodes have no such packet."""

    nodes: list[Any] | None = None
    more: Any = False


class Request(Packet, kw_only=True, gc=False):
    """A call (§2.3 REQ). `timeout` in milliseconds, may be fractional; 0 none, None the callee's default.

    moleculer-java leaves `action` out of what follows the opening of a stream. A JS caller may give any value as
    `request_id`, `parent_id` and `caller`.
    """

    id: Id
    action: str = ""
    params: Raw = Raw()
    meta: Objects | None = None
    headers: Objects | UnsetType | None = UNSET
    timeout: float | None = None
    level: float | None = None
    tracing: Any = None
    parent_id: Any = None
    request_id: Any = None
    caller: Any = None
    stream: Any = False
    sequence: int | UnsetType | None = UNSET


class Response(Packet, kw_only=True, gc=False):
    """The answer to a call (§2.3 RES). Empty `data` means the field was missing."""

    id: Id
    meta: Objects | None = None
    headers: Objects | UnsetType | None = UNSET
    success: Any = False
    data: Raw = Raw()
    error: Any = UNSET
    stream: Any = UNSET
    sequence: int | UnsetType | None = UNSET


class Event(Packet, kw_only=True, gc=False):
    """An event (§2.3 EVENT). Missing or empty `groups` means all groups."""

    id: Any = None
    event: str
    data: Raw = Raw()
    groups: list[Any] | UnsetType | None = UNSET
    broadcast: bool | None = False
    meta: Objects | None = None
    headers: Objects | UnsetType | None = UNSET
    level: float | None = None
    tracing: Any = None
    parent_id: Any = None
    request_id: Any = None
    caller: Any = None
    need_ack: Any = None


COMMANDS: dict[Command, type[Packet]] = {
    "EVENT": Event,
    "REQ": Request,
    "RES": Response,
    "DISCOVER": Discover,
    "INFO": Info,
    "DISCONNECT": Disconnect,
    "HEARTBEAT": Heartbeat,
    "PING": Ping,
    "PONG": Pong,
    "PEERS": Peers,
}


class Address(msgspec.Struct):
    """The least that an unusable request must hold so that it can be answered, or an answer to be known as one."""

    sender: str
    id: Id
    ver: Any = None
