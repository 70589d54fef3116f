"""NATS, by nats-py (moleculer protocol §14), whose exceptions are raised as errors of the broker."""

import asyncio
import re
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any

import anyio
from nats.aio.msg import Msg

from broker.defaults import NATS_CONNECT_TIMEOUT_S, NATS_DENIED_AGAIN_S, NATS_SUBJECT_BYTES
from broker.errors import BrokerDisconnectedError, BrokerOptionsError, MoleculerError
from broker.ids import new_id
from broker.masking import masked_text
from broker.transports.base import Observer, OnMessage, Receiver
from broker.transports.memory import too_large
from broker.transports.nats_address import Servers, checked
from broker.transports.nats_client import Connection, RefusedError, flush, translated, usable_options
from broker.transports.nats_link import Link, NATSSubscription

NO_INBOX = (
    "The permissions of this node's user do not let it publish and subscribe to '%s.>'. It works without: a lost node "
    "is noticed by its missing heartbeats, and the writer of a stream does not wait for a slow reader."
)

MAY_NOT_PUBLISH = (
    "The NATS user of this node has no permission to publish to '%s'. What it sends there is lost, and a caller that "
    "waits for it is left to its timeout. Grant the permission at the NATS server."
)

_DENIED = re.compile(r'Permissions Violation for (?P<what>Publish|Subscription) to "(?P<subject>.*?)"( using queue|$)')


class NATSTransport:
    """A connection to one NATS server of a list, made again whenever it is lost.

    `servers` are URLs like `nats://user:password@host:4222`; `options` go to nats-py as they are (tls, token,
    user_credentials, nkeys_seed…).
    """

    delivers_at_once = False

    def __init__(self, servers: list[str], **options: Any) -> None:
        self._servers = [checked(server) for server in servers]
        self._options = usable_options(options)
        self._link = Link(Servers(self._servers), self._options, self._try_inbox)
        self._observer = Observer()
        self._inboxes = self._inbox = ""
        self._answers = NATSSubscription(self._link, self._subscribe_to_inbox)
        self._asked: dict[str, asyncio.Future[bool]] = {}
        self.has_inbox = self._reported = False
        self._denied: set[str] = set()
        """Subjects that were logged since a monotonic time."""
        self._denied_since = 0.0

    @property
    def connected(self) -> bool:
        return self._link.connection is not None

    @property
    def max_payload(self) -> int | None:
        return self._link.current.max_payload if self._link.current else None

    async def connect(self, observer: Observer, name: str, inboxes: str = "_INBOX") -> None:
        self._observer, self._inboxes, self._inbox = observer, inboxes, f"{inboxes}.{name}"
        try:
            await self._link.open(replace(observer, failed=self._failed), name, self._answers)
        except RefusedError as error:
            raise BrokerOptionsError(
                f"NATS does not let this node in. {error}. Check its user and password, token, or credentials."
            ) from error

    async def subscribe(self, subject: str, on_message: OnMessage, queue: str = "") -> NATSSubscription:
        _check(f"{subject}{queue}")
        if "" in subject.split("."):
            raise _invalid_subject()
        # Of another function, everything is left to do.
        take = on_message.take if isinstance(on_message, Receiver) else partial(partial, on_message)
        return await self._link.subscribe(
            NATSSubscription(self._link, lambda connection: connection.subscribe_taker(subject, queue, take))
        )

    async def publish(self, subject: str, data: bytes, reply_id: str | None = None) -> None:
        if self.try_publish(subject, data, reply_id):
            return
        connection, reply = self._use(), f"{self._inbox}.{reply_id}" if reply_id and self.has_inbox else ""
        _check(subject + reply)
        if len(data) > connection.max_payload:
            raise too_large(len(data), connection.max_payload)
        with translated():
            await connection.publish(subject, data, reply)

    def try_publish(self, subject: str, data: bytes, reply_id: str | None = None) -> bool:
        connection = self._link.current
        if connection is None or not connection.is_open:
            return False
        reply = f"{self._inbox}.{reply_id}" if reply_id and self.has_inbox else ""
        names = subject + reply  # most show at a glance that `_check` has nothing against them
        plain = names.isascii() and names.isprintable() and " " not in names and len(names) <= NATS_SUBJECT_BYTES
        return plain and subject != "" and connection.write(subject, data, reply)

    async def has_subscribers(self, subject: str, data: bytes) -> bool:
        question = new_id()
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._asked[question] = answer
        try:
            await self.publish(subject, data, question)
            if not self.has_inbox:
                return True
            with translated(), anyio.fail_after(NATS_CONNECT_TIMEOUT_S):
                await self._use().publish(f"{self._inbox}.{question}", b"")  # comes behind what the server says
                return await answer
        finally:
            del self._asked[question]

    async def flush(self) -> None:
        with translated():
            await flush(self._use())

    async def close(self) -> None:
        await self._link.close()

    def __str__(self) -> str:
        return ", ".join(masked_text(server) for server in self._servers)

    def _use(self) -> Connection:
        if self._link.connection is None:
            raise BrokerDisconnectedError
        return self._link.connection

    async def _subscribe_to_inbox(self, connection: Connection) -> Any:
        async def handle(message: Msg) -> None:
            if connection.intake.is_new(message.subject, message.data):
                no_responders = message.headers is not None and message.headers.get("Status") == "503"
                await self._on_inbox(message.subject[len(self._inbox) + 1 :], message.data, no_responders)

        return await connection.subscribe(f"{self._inbox}.>", cb=handle)

    async def _on_inbox(self, reply_id: str, data: bytes, no_responders: bool) -> None:
        asked = self._asked.get(reply_id)
        if asked is not None:
            if not asked.done():
                asked.set_result(not no_responders)
        elif no_responders:
            await self._observer.no_responders(reply_id)
        else:
            await self._observer.replied(reply_id, data)

    async def _try_inbox(self, connection: Connection) -> None:
        """Whether this node gets what is sent to its inbox, and may send to those of others. The server complains of
        what it refuses before it answers a flush."""
        assert self._answers.live is not None
        self.has_inbox = True
        for inbox in (self._inbox, f"{self._inboxes}._"):
            await connection.publish(f"{inbox}.test", b"")
        await flush(connection)
        self.has_inbox = self.has_inbox and self._answers.live.delivered > 0
        if not self.has_inbox and not self._reported:
            self._reported = True
            await self._observer.failed(NO_INBOX % self._inboxes)

    async def _failed(self, text: str) -> None:
        denied = _DENIED.search(text)
        if denied and denied["subject"].startswith(f"{self._inboxes}."):
            self.has_inbox = False  # `_try_inbox` reports it
        elif denied and denied["what"] == "Publish":
            await self._may_not_publish(denied["subject"])
        else:
            await self._observer.failed(text)

    async def _may_not_publish(self, subject: str) -> None:
        now = monotonic()
        if now - self._denied_since > NATS_DENIED_AGAIN_S:
            self._denied, self._denied_since = set(), now
        if subject not in self._denied:
            self._denied.add(subject)
            await self._observer.failed(MAY_NOT_PUBLISH % subject)
        await self._observer.denied(subject)


def _check(subject: str) -> None:
    """Raises for what would end the subject, or is so long that it would end the connection for good. A star that is
    only part of a token is a letter to the server, and JS nodes subscribe to it so (§1.3)."""
    size = len(subject.encode(errors="surrogatepass"))
    if size > NATS_SUBJECT_BYTES or not re.fullmatch(r"[^ \t\r\n]+", subject):
        raise _invalid_subject()


def _invalid_subject() -> MoleculerError:
    return MoleculerError("A name cannot be part of a NATS subject.", 500, "INVALID_SUBJECT")
