"""A bus inside one process, with the behaviour of NATS: subjects, wildcards, queue groups, no-responders.

Messages are delivered within `publish`, in order, to every subscriber before it returns.
"""

from collections.abc import Iterator
from typing import ClassVar
from weakref import WeakValueDictionary

from broker.errors import BrokerDisconnectedError, PayloadTooLargeError
from broker.ids import new_id
from broker.transports.base import Observer, OnMessage


class MemorySubscription:
    """One interest in a subject."""

    def __init__(self, hub: "Hub", owner: "MemoryTransport", subject: str, on_message: OnMessage, queue: str) -> None:
        self.owner = owner
        self.queue = queue
        self.on_message = on_message
        self._hub = hub
        self._tokens = subject.split(".")

    def wants(self, tokens: list[str]) -> bool:
        """Whether a message on the subject of these tokens is for this subscription."""
        for index, wanted in enumerate(self._tokens):
            if wanted == ">":
                return len(tokens) > index
            if index >= len(tokens) or wanted not in ("*", tokens[index]):
                return False
        return len(tokens) == len(self._tokens)

    async def cancel(self) -> None:
        self._hub.remove(self)


class Hub:
    """Where memory transports meet. Hand one to several transports, or name it in `memory://name`."""

    _named: ClassVar["WeakValueDictionary[str, Hub]"] = WeakValueDictionary()

    def __init__(self, max_payload: int | None = None) -> None:
        self.max_payload = max_payload
        self._subscriptions: list[MemorySubscription] = []
        self._turns: dict[str, int] = {}
        self.inboxes: dict[str, Observer] = {}

    @classmethod
    def named(cls, name: str) -> "Hub":
        """The hub of that name in this process; it lives as long as a transport holds it."""
        hub = cls._named.get(name)
        if hub is None:
            hub = cls._named[name] = cls()
        return hub

    def add(self, subscription: MemorySubscription) -> None:
        self._subscriptions.append(subscription)

    def remove(self, subscription: MemorySubscription) -> None:
        self._subscriptions = [other for other in self._subscriptions if other is not subscription]

    def leave(self, transport: "MemoryTransport") -> None:
        self.inboxes.pop(transport.inbox, None)
        self._subscriptions = [other for other in self._subscriptions if other.owner is not transport]

    async def deliver(self, subject: str, data: bytes, reply: str = "") -> bool:
        """Hand a message to every interested subscription, one per queue group. False when there is none."""
        inbox, _, reply_id = subject.rpartition("/")
        if inbox in self.inboxes:
            await self.inboxes[inbox].replied(reply_id, data)
            return True
        receivers = list(self._receivers(subject))
        for receiver in receivers:
            await receiver.on_message(data, reply)
        return bool(receivers)

    def _receivers(self, subject: str) -> Iterator[MemorySubscription]:
        tokens = subject.split(".")
        groups: dict[str, list[MemorySubscription]] = {}
        for subscription in self._subscriptions:
            if subscription.wants(tokens):
                if subscription.queue:
                    groups.setdefault(subscription.queue, []).append(subscription)
                else:
                    yield subscription
        for queue, members in groups.items():
            turn = self._turns.get(queue, 0)
            self._turns[queue] = turn + 1
            yield members[turn % len(members)]


class MemoryTransport:
    """A connection to a hub."""

    delivers_at_once = True

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.inbox = f"_INBOX.{new_id()}"
        self._observer = Observer()
        self._connected = False

    @property
    def connected(self) -> bool:
        return self._connected

    @property
    def max_payload(self) -> int | None:
        return self._hub.max_payload

    has_inbox = True

    async def connect(self, observer: Observer, name: str, inboxes: str = "_INBOX") -> None:
        self._observer = observer
        self._connected = True
        self._hub.inboxes[self.inbox] = observer

    async def subscribe(self, subject: str, on_message: OnMessage, queue: str = "") -> MemorySubscription:
        self._require_connection()
        subscription = MemorySubscription(self._hub, self, subject, on_message, queue)
        self._hub.add(subscription)
        return subscription

    async def publish(self, subject: str, data: bytes, reply_id: str | None = None) -> None:
        reply = f"{self.inbox}/{reply_id}" if reply_id is not None else ""
        if not await self._deliver(subject, data, reply) and reply_id is not None:
            await self._observer.nobody_listens(reply_id)

    async def is_heard(self, subject: str, data: bytes) -> bool:
        return await self._deliver(subject, data, "")

    async def _deliver(self, subject: str, data: bytes, reply: str) -> bool:
        self._require_connection()
        limit = self._hub.max_payload
        if limit is not None and len(data) > limit:
            raise too_large(len(data), limit)
        return await self._hub.deliver(subject, data, reply)

    async def flush(self) -> None:
        """Everything was delivered when `publish` returned."""
        self._require_connection()

    async def close(self) -> None:
        self._connected = False
        self._hub.leave(self)

    def _require_connection(self) -> None:
        if not self._connected:
            raise BrokerDisconnectedError


def too_large(size: int, limit: int) -> PayloadTooLargeError:
    """The error of every transport for a message above its limit."""
    return PayloadTooLargeError(
        f"The message has {size} bytes, and the server takes {limit} at most (max_payload). Send less at a time.",
        {"size": size, "limit": limit},
    )
