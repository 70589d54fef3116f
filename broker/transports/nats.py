"""NATS, by nats-py (moleculer protocol §14), none of whose exceptions leaves here."""

import asyncio
import re
from dataclasses import replace
from time import monotonic
from typing import Any

import anyio
from nats.aio.msg import Msg

from broker.defaults import NATS_CONNECT_TIMEOUT_S, NATS_DENIED_AGAIN_S, NATS_SUBJECT_BYTES
from broker.errors import BrokerDisconnectedError, BrokerOptionsError
from broker.ids import new_id
from broker.masking import masked_text
from broker.transports.base import Observer, OnMessage, Receiver
from broker.transports.memory import too_large
from broker.transports.nats_address import Servers, checked
from broker.transports.nats_client import (
    TRANSLATED,
    Connection,
    RefusedError,
    flush,
    invalid_subject,
    usable_options,
)
from broker.transports.nats_link import Link, NATSSubscription

NO_RESPONDERS = "503"

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
        self._answers: NATSSubscription | None = None
        self._asked: dict[str, asyncio.Future[bool]] = {}
        self._has_inbox = self._said_so = False
        self._denied: set[str] = set()
        """Subjects that were logged since a monotonic time."""
        self._denied_since = 0.0

    @property
    def connected(self) -> bool:
        return self._link.connection is not None

    @property
    def max_payload(self) -> int | None:
        return self._link.max_payload

    @property
    def has_inbox(self) -> bool:
        return self._has_inbox

    async def connect(self, observer: Observer, name: str, inboxes: str = "_INBOX") -> None:
        self._observer, self._inboxes, self._inbox = observer, inboxes, f"{inboxes}.{name}"
        self._answers = NATSSubscription(self._link, f"{self._inbox}.>", "", self._on_inbox)
        try:
            await self._link.open(replace(observer, failed=self._failed), name, self._answers)
        except RefusedError as error:
            raise BrokerOptionsError(
                f"NATS does not let this node in. {error}. Check its user and password, token, or credentials."
            ) from error

    async def subscribe(self, subject: str, on_message: OnMessage, queue: str = "") -> NATSSubscription:
        async def on_nats_message(message: Msg) -> None:
            await on_message(message.data, message.reply)

        _check_subject(f"{subject}{queue}")
        if "" in subject.split("."):
            raise invalid_subject()
        take = on_message.take if isinstance(on_message, Receiver) else None
        return await self._link.subscribe(NATSSubscription(self._link, subject, queue, on_nats_message, take))

    async def publish(self, subject: str, data: bytes, reply_id: str | None = None) -> None:
        connection = self._link.current
        if connection is None or not connection.is_open:
            raise BrokerDisconnectedError
        reply = f"{self._inbox}.{reply_id}" if reply_id and self._has_inbox else ""
        if not _PLAIN(subject + reply):
            _check_subject(subject + reply)
        if not connection.write(subject, data, reply):
            if len(data) > connection.max_payload:
                raise too_large(len(data), connection.max_payload)
            with TRANSLATED:
                await connection.publish(subject, data, reply)

    async def is_heard(self, subject: str, data: bytes) -> bool:
        question = new_id()
        heard: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._asked[question] = heard
        try:
            await self.publish(subject, data, question)
            if not self._has_inbox:
                return True
            with TRANSLATED, anyio.fail_after(NATS_CONNECT_TIMEOUT_S):
                await self._use().publish(f"{self._inbox}.{question}", b"")  # comes behind what the server says
                return await heard
        finally:
            del self._asked[question]

    async def flush(self) -> None:
        with TRANSLATED:
            await flush(self._use())

    async def close(self) -> None:
        await self._link.close()

    def __str__(self) -> str:
        return ", ".join(masked_text(server) for server in self._servers)

    def _use(self) -> Connection:
        connection = self._link.connection
        if connection is None:
            raise BrokerDisconnectedError
        return connection

    async def _on_inbox(self, message: Msg) -> None:
        reply_id = message.subject[len(self._inbox) + 1 :]
        no_responders = message.headers is not None and message.headers.get("Status") == NO_RESPONDERS
        asked = self._asked.get(reply_id)
        if asked is not None:
            if not asked.done():
                asked.set_result(not no_responders)
        elif no_responders:
            await self._observer.nobody_listens(reply_id)
        else:
            await self._observer.replied(reply_id, message.data)

    async def _try_inbox(self, connection: Connection) -> None:
        """Whether this node gets what is sent to its inbox, and may send to those of others. The server complains of
        what it refuses before it answers a flush."""
        assert self._answers is not None
        assert self._answers.live is not None
        self._has_inbox = True
        for subject in (f"{self._inbox}.", f"{self._inboxes}._."):
            await connection.publish(f"{subject}test", b"")
        await flush(connection)
        self._has_inbox = self._has_inbox and self._answers.live.delivered > 0
        if not self._has_inbox and not self._said_so:
            self._said_so = True
            await self._observer.failed(NO_INBOX % self._inboxes)

    async def _failed(self, text: str) -> None:
        denied = _DENIED.search(text)
        if denied and denied["subject"].startswith(f"{self._inboxes}."):
            self._has_inbox = False  # `_try_inbox` says so
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


_BLANK = re.compile(r"[ \t\r\n]")

_PLAIN = re.compile(rf"[!-~]{{1,{NATS_SUBJECT_BYTES // 4}}}").fullmatch
"""Whether `_check_subject` has nothing against a text; most subjects show it at a glance."""


def _check_subject(text: str) -> None:
    """Nothing in a subject may end it, nor be so long that it ends the connection for good. A star that is but a part
    of a token is a letter to the server, as JS nodes subscribe it (§1.3); nats-py itself refuses it."""
    if not text or _BLANK.search(text) or _is_long(text):
        raise invalid_subject()


def _is_long(text: str) -> bool:
    """Whether a subject has more bytes than the server takes; four are the most for a character."""
    return len(text) > NATS_SUBJECT_BYTES // 4 and len(text.encode("utf-8", "surrogatepass")) > NATS_SUBJECT_BYTES
