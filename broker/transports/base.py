"""What a node needs of a message bus: one small Protocol, kept by NATS and by the bus inside one process."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

OnMessage = Callable[[bytes, str], Awaitable[None]]
"""Takes the bytes of one message and the subject to answer on, empty when no answer is expected. Must not raise, and
must not wait long: messages of a subscription stay in order, so the next one waits for it."""

Later = Callable[[], Awaitable[None]]
"""What is left to do with a message, when it may have to wait for something."""


@dataclass(frozen=True)
class Receiver:
    """An OnMessage whose `take` does the same without a coroutine for each message, and returns what is left to do."""

    take: Callable[[bytes, str], Later | None]

    async def __call__(self, data: bytes, reply: str) -> None:
        later = self.take(data, reply)
        if later is not None:
            await later()


async def _ignore(*_: object) -> None:
    return None


@dataclass(slots=True)
class Observer:
    """What a transport calls when something happens to the connection."""

    no_responders: Callable[[str], Awaitable[None]] = _ignore
    """The message published with this `reply_id` had no responders: its subject has no subscription."""
    replied: Callable[[str, bytes], Awaitable[None]] = _ignore
    """An answer to the message published with this `reply_id`."""
    denied: Callable[[str], Awaitable[None]] = _ignore
    """This node has no permission to publish to this subject."""
    disconnected: Callable[[], Awaitable[None]] = _ignore
    """The connection is lost; the transport tries to reconnect until it is closed."""
    reconnected: Callable[[], Awaitable[None]] = _ignore
    """The connection is back, and so are the subscriptions."""
    servers_changed: Callable[[], Awaitable[None]] = _ignore
    """Servers joined or left the cluster of this one, so that other nodes may reconnect at this moment."""
    failed: Callable[[str], Awaitable[None]] = _ignore
    """Something went wrong that no call of this node will report; the text is for the log."""


class Subscription(Protocol):
    """A live subscription."""

    async def cancel(self) -> None:
        """Receive no more messages. It may be cancelled already."""


@runtime_checkable
class Transport(Protocol):
    """A connection to a bus. Raises only errors of `broker.errors`."""

    delivers_at_once: bool
    """Whether a message has reached every node, and been handled, when `publish` returns."""

    @property
    def connected(self) -> bool:
        """Whether messages can be sent now."""

    @property
    def max_payload(self) -> int | None:
        """The most bytes a message may have; None for no limit. Known after `connect`."""

    @property
    def has_inbox(self) -> bool:
        """Whether the observer is called for answers and for messages without responders. Known after `connect`: the
        permissions of a NATS user may forbid it."""

    async def connect(self, observer: Observer, name: str, inboxes: str = "_INBOX") -> None:
        """Try once. `name` is shown in the server's monitoring. The inbox of this node is the subjects below
        `inboxes`.`name`. Raises BrokerDisconnectedError."""

    async def subscribe(self, subject: str, on_message: OnMessage, queue: str = "") -> Subscription:
        """Receive what is published on a subject, `*` and `>` allowed; with `queue`, share it with that group."""

    async def publish(self, subject: str, data: bytes, reply_id: str | None = None) -> None:
        """Send a message. With `reply_id`, the observer is called for answers to it, and when it has no responders.

        Raises BrokerDisconnectedError without a connection, PayloadTooLargeError above `max_payload`.
        """

    def try_publish(self, subject: str, data: bytes, reply_id: str | None = None) -> bool:
        """As `publish`, at once. False when it may have to wait, or cannot be done: then `publish` does, or raises."""

    async def has_subscribers(self, subject: str, data: bytes) -> bool:
        """Send a message and return whether the subject has a subscription. True when that cannot be known."""

    async def flush(self) -> None:
        """Wait until the server has taken everything that was published."""

    async def close(self) -> None:
        """Flush, then leave. It may be closed already."""
