"""What the transit wants done: it decides, the node acts."""

from dataclasses import dataclass
from typing import Any

from msgspec import UNSET, Struct

from broker.errors import MoleculerError
from broker.protocol.packets import Event, Id, Packet, Ping, Pong, Request, Response
from broker.registry.endpoints import EventEndpoint
from broker.services.schema import ActionDefinition
from broker.streams.incoming import AnswerMark, StreamBuffer


class Pending(Struct, eq=False):
    """A request that waits for its answer, since a monotonic time. `waiter` belongs to whoever made the request.

    `node_id` is None when NATS chose the node.
    """

    id: Id
    node_id: str | None
    action: str
    waiter: Any
    since: float
    timed: bool = False
    """Whether the call has a timeout."""


class Publish(Struct, gc=False):
    """Send a packet. With `reply_id`, ask the server to tell when nobody listens on the subject."""

    subject: str
    packet: Packet
    reply_id: str | None = None
    data: bytes | None = None
    """The packet's bytes, where they are made already."""


class RunAction(Struct, eq=False, gc=False):
    """Run an action of this node for a caller; `stream` is what the caller sends along, `reply` the reply subject."""

    request: Request
    action: ActionDefinition
    arrived: float
    stream: StreamBuffer | None = None
    reply: str = ""
    answering: bool = False
    """Whether its answer, a stream, has begun."""


class RunEvent(Struct, gc=False):
    """Run event handlers of this node."""

    event: Event
    listeners: list[EventEndpoint]


class Settle(Struct):
    """A request was answered."""

    pending: Pending
    response: Response
    stream: StreamBuffer | None = None


@dataclass(slots=True)
class NobodyReads:
    """A node is gone: the streams that this node sends to it, and opened until a monotonic time, end."""

    node_id: str
    until: float


@dataclass(slots=True)
class Reject:
    """A request will not be answered. `undelivered`: no node has seen it, so another may be asked."""

    pending: Pending
    error: MoleculerError
    undelivered: bool = False


@dataclass(slots=True)
class Notify:
    """A local event (§7.4)."""

    event: str
    payload: dict[str, Any]


@dataclass(slots=True)
class Responsive:
    """A node that keeps calls waiting has answered nothing for long, or answers again; a person should read it."""

    node_id: str
    answers: bool


@dataclass(slots=True)
class AnswerPing:
    """Send a ping back, with the wall clock's time in it, and whether the requests it asks for are in work."""

    ping: Ping
    subject: str
    requests: Any = UNSET


@dataclass(slots=True)
class PongArrived:
    """A ping was answered."""

    pong: Pong


@dataclass(slots=True)
class Dropped:
    """A packet was not acted on; a person should read why. `error` is for services that watch (§7.4)."""

    reason: str
    error: MoleculerError | None = None


@dataclass(slots=True)
class Conflict:
    """Another process runs under this node's id (§3.5)."""

    instance_id: str | None


Effect = (
    Publish
    | RunAction
    | RunEvent
    | Settle
    | AnswerMark
    | NobodyReads
    | Reject
    | Notify
    | Responsive
    | AnswerPing
    | PongArrived
    | Dropped
    | Conflict
)
