"""What the transit wants done: it decides, the node acts."""

from logging import WARNING
from typing import Any

from msgspec import Struct

from broker.errors import MoleculerError
from broker.protocol.packets import Event, Id, Packet, Pong, Request, Response
from broker.registry.endpoints import EventEndpoint
from broker.services.schema import ActionDefinition
from broker.streams.incoming import StreamBuffer


class Pending(Struct, eq=False):
    """A request that waits for its answer, since a monotonic time. `waiter` belongs to the caller.

    `node_id` is None when NATS chose the node.
    """

    id: Id
    node_id: str | None
    action: str
    waiter: Any
    since: float
    timed: bool = False
    """Whether the call has a timeout."""
    doubt: tuple[float, str] | None = None
    """Since when its answer may be lost, and by what."""


class Publish(Struct, gc=False):
    """Send a packet. With `reply_id`, the server is to say when the subject has no subscription."""

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
    task: Any = None
    """In which it runs."""


class RunEvent(Struct, gc=False):
    """Run event handlers of this node."""

    event: Event
    listeners: list[EventEndpoint]


class Settle(Struct):
    """A request was answered."""

    pending: Pending
    response: Response
    stream: StreamBuffer | None = None


class Reject(Struct):
    """A request will not be answered. `undelivered`: no node has received it, so another may be asked."""

    pending: Pending
    error: MoleculerError
    undelivered: bool = False


class AnswerMark(Struct):
    """Answer the writer of a stream at the reply subject of a chunk: CONTINUE, or STOP when it is not read."""

    reply: str
    answer: bytes


class ReaderGone(Struct):
    """A node is gone: the streams that this node sends to it, and opened until a monotonic time, end."""

    node_id: str
    until: float


class Notify(Struct):
    """An internal event (§7.4)."""

    event: str
    payload: dict[str, Any]


class PongArrived(Struct):
    """A ping was answered."""

    pong: Pong


class Log(Struct):
    """A line for people. `error` is for services that watch (§7.4)."""

    text: str
    level: int = WARNING
    error: MoleculerError | None = None


class Conflict(Struct):
    """Another process runs under this node's id (§3.5)."""


Effect = (
    Publish | RunAction | RunEvent | Settle | Reject | AnswerMark | ReaderGone | Notify | PongArrived | Log | Conflict
)


def trouble(module: str, kind: str, error: Exception) -> tuple[str, dict[str, Any]]:
    """The internal event about a failure, in the words of Moleculer JS (§7.4)."""
    return f"${module}.error", {"error": error, "module": module, "type": kind}
