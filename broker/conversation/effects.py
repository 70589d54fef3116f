"""What the transit wants done: it decides, the node acts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msgspec import UNSET, Raw

from broker.errors import MoleculerError
from broker.protocol.packets import Event, Id, Packet, Ping, Pong, Request, Response
from broker.registry.endpoints import Listener
from broker.services.schema import ActionDefinition

if TYPE_CHECKING:
    from broker.streams.reader import StreamReader


@dataclass(slots=True)
class Pending:
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


@dataclass(slots=True)
class Publish:
    """Send a packet. With `reply_id`, ask the server to tell when nobody listens on the subject."""

    subject: str
    packet: Packet
    reply_id: str | None = None


@dataclass(slots=True)
class RunAction:
    """Run an action of this node for a caller; `stream` is what the caller sends along, `reply` the reply subject."""

    request: Request
    action: ActionDefinition
    arrived: float
    stream: "StreamReader | None" = None
    reply: str = ""


@dataclass(slots=True)
class RunEvent:
    """Run event handlers of this node."""

    event: Event
    listeners: list[Listener]


@dataclass(slots=True)
class Settle:
    """A request was answered."""

    pending: Pending
    response: Response
    stream: "StreamReader | None" = None


@dataclass(slots=True)
class FeedStream:
    """A chunk of a stream came. With `reply`, its writer wants to know when it is read."""

    reader: "StreamReader"
    chunk: Raw
    objects: bool
    reply: str


@dataclass(slots=True)
class EndStream:
    """A stream ended; with `error`, broken. `drop`: so is what is not read yet."""

    reader: "StreamReader"
    error: MoleculerError | None = None
    drop: bool = False


@dataclass(slots=True)
class StopWriter:
    """A chunk came that nobody will read; its writer hears it at the subject `reply`."""

    reply: str


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
    | FeedStream
    | EndStream
    | StopWriter
    | NobodyReads
    | Reject
    | Notify
    | Responsive
    | AnswerPing
    | PongArrived
    | Dropped
    | Conflict
)
