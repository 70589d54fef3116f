"""A bus inside one process, with the behaviour of NATS: subjects, wildcards, queue groups, no responders.

Messages are delivered within `publish`, in order, to every subscriber before it returns.
"""

import re
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar
from weakref import WeakValueDictionary

from broker.errors import BrokerDisconnectedError, PayloadTooLargeError
from broker.ids import new_id
from broker.transports.base import Observer, OnMessage


@dataclass(eq=False)
class MemorySubscription:
    """One interest in a subject."""

    owner: "MemoryTransport"
    subjects: re.Pattern[str]
    on_message: OnMessage
    queue: str

    async def cancel(self) -> None:
        self.owner.hub.subscriptions.pop(self, None)


class Hub:
    """Where memory transports meet. Hand one to several transports, or name it in `memory://name`."""

    _named: ClassVar["WeakValueDictionary[str, Hub]"] = WeakValueDictionary()

    def __init__(self, max_payload: int | None = None) -> None:
        self.max_payload = max_payload
        self.subscriptions: dict[MemorySubscription, None] = {}
        self.inboxes: dict[str, Observer] = {}
        self._turns: Counter[str] = Counter()

    @classmethod
    def named(cls, name: str) -> "Hub":
        """The hub of that name in this process; it lives as long as a transport holds it."""
        hub = cls._named.get(name)
        if hub is None:
            hub = cls._named[name] = cls()
        return hub

    async def deliver(self, subject: str, data: bytes, reply: str = "") -> bool:
        """Hand a message to every interested subscription, one per queue group. False when there is none."""
        inbox, _, reply_id = subject.rpartition("/")
        if inbox in self.inboxes:
            await self.inboxes[inbox].replied(reply_id, data)
            return True
        receivers = self._receivers(subject)
        for receiver in receivers:
            await receiver.on_message(data, reply)
        return bool(receivers)

    def _receivers(self, subject: str) -> list[MemorySubscription]:
        interested = [one for one in self.subscriptions if one.subjects.fullmatch(subject)]
        receivers = [one for one in interested if not one.queue]
        for queue in dict.fromkeys(one.queue for one in interested if one.queue):
            members = [one for one in interested if one.queue == queue]
            receivers.append(members[self._turns[queue] % len(members)])
            self._turns[queue] += 1
        return receivers


class MemoryTransport:
    """A connection to a hub."""

    delivers_at_once = True
    has_inbox = True

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.connected = False
        self._inbox = f"_INBOX.{new_id()}"
        self._observer = Observer()

    @property
    def max_payload(self) -> int | None:
        return self.hub.max_payload

    async def connect(self, observer: Observer, name: str, inboxes: str = "_INBOX") -> None:
        self._observer, self.connected = observer, True
        self.hub.inboxes[self._inbox] = observer

    async def subscribe(self, subject: str, on_message: OnMessage, queue: str = "") -> MemorySubscription:
        self._require_connection()
        pattern = re.escape(subject).replace(r"\*", r"[^.]+").replace(">", ".+")
        subscription = MemorySubscription(self, re.compile(pattern, re.DOTALL), on_message, queue)
        self.hub.subscriptions[subscription] = None
        return subscription

    async def publish(self, subject: str, data: bytes, reply_id: str | None = None) -> None:
        reply = f"{self._inbox}/{reply_id}" if reply_id is not None else ""
        if not await self._deliver(subject, data, reply) and reply_id is not None:
            await self._observer.no_responders(reply_id)

    def try_publish(self, subject: str, data: bytes, reply_id: str | None = None) -> bool:
        """Never: the receivers of a message handle it first."""
        return False

    async def has_subscribers(self, subject: str, data: bytes) -> bool:
        return await self._deliver(subject, data, "")

    async def flush(self) -> None:
        """Everything was delivered when `publish` returned."""
        self._require_connection()

    async def close(self) -> None:
        self.connected = False
        self.hub.inboxes.pop(self._inbox, None)
        for subscription in [one for one in self.hub.subscriptions if one.owner is self]:
            await subscription.cancel()

    async def _deliver(self, subject: str, data: bytes, reply: str) -> bool:
        self._require_connection()
        limit = self.hub.max_payload
        if limit is not None and len(data) > limit:
            raise too_large(len(data), limit)
        return await self.hub.deliver(subject, data, reply)

    def _require_connection(self) -> None:
        if not self.connected:
            raise BrokerDisconnectedError


def too_large(size: int, limit: int) -> PayloadTooLargeError:
    """The error of every transport for a message above its limit."""
    return PayloadTooLargeError(
        f"The message has {size} bytes, and the server takes {limit} at most (max_payload). Send less at a time.",
        {"size": size, "limit": limit},
    )
