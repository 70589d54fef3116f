"""NATS, by nats-py (moleculer protocol §14), none of whose exceptions leaves here."""

import asyncio
import re
from typing import Any

import anyio
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from broker.defaults import (
    NATS_CANCEL_WAIT_S,
    NATS_CLOSE_TIMEOUT_S,
    NATS_CONNECT_TIMEOUT_S,
    NATS_PING_INTERVAL_S,
    NATS_SUBJECT_BYTES,
)
from broker.errors import BrokerDisconnectedError, MoleculerError
from broker.ids import new_id
from broker.masking import masked_text
from broker.transports.base import Observer, OnMessage
from broker.transports.memory import too_large
from broker.transports.nats_address import checked, credentials
from broker.transports.nats_client import (
    TRANSLATED,
    USELESS,
    MendedClient,
    abandon,
    flush,
    invalid_subject,
    next_server,
    usable_options,
    useless_options,
    words,
)

NO_RESPONDERS = "503"

NO_INBOX = (
    "The permissions of this node's user do not let it publish and subscribe to '%s.>'. It works without: a lost node "
    "is noticed by its missing heartbeats, and the writer of a stream does not wait for a slow reader."
)

_DENIED = re.compile(r'permissions violation for (?P<what>publish|subscription) to "(?P<subject>.*?)"( using queue|$)')


class NATSTransport:
    """A connection to one NATS server of a list.

    `servers` are URLs like `nats://user:password@host:4222`; `options` go to nats-py as they are (tls, token,
    user_credentials, nkeys_seed…).
    """

    def __init__(self, servers: list[str], **options: Any) -> None:
        self._servers = [checked(server) for server in servers]
        self._options = usable_options(options)
        self._client: Client | None = None
        self._observer = Observer()
        self._inboxes = self._inbox = ""
        self._answers: Subscription | None = None
        self._asked: dict[str, asyncio.Future[bool]] = {}
        self._has_inbox = self._said_so = False
        self._closing = False

    @property
    def connected(self) -> bool:
        return self._client is not None and self._client.is_connected

    @property
    def max_payload(self) -> int | None:
        return self._client.max_payload if self._client else None

    @property
    def has_inbox(self) -> bool:
        return self._has_inbox

    async def connect(self, observer: Observer, name: str, inboxes: str = "_INBOX") -> None:
        self._observer, self._inboxes, self._inbox = observer, inboxes, f"{inboxes}.{name}"
        attempt = _Attempt(len(self._servers))
        client = MendedClient()
        client.on_servers_changed = observer.servers_changed

        async def failed(error: Exception) -> None:
            if attempt.running:
                attempt.count(error)
            else:
                await self._failed(words(error))

        async def closed() -> None:
            if not self._closing and not attempt.running:
                await observer.failed(
                    "The connection to NATS was closed for good. Is the node still allowed to connect?"
                )

        try:
            with TRANSLATED, anyio.fail_after(NATS_CONNECT_TIMEOUT_S * len(self._servers)):
                await client.connect(
                    servers=self._servers,
                    name=name,
                    error_cb=failed,
                    disconnected_cb=self._disconnected,
                    reconnected_cb=self._reconnected,
                    closed_cb=closed,
                    connect_timeout=NATS_CONNECT_TIMEOUT_S,
                    # With a handler that waits itself, only how long a close waits for the end of a reconnection.
                    reconnect_time_wait=NATS_CANCEL_WAIT_S,
                    max_reconnect_attempts=-1,
                    reconnect_to_server_handler=next_server,
                    **{"ping_interval": NATS_PING_INTERVAL_S, **credentials(self._servers), **self._options},
                )
                attempt.running = False
                client._skip_subject_validation = True  # `_check_subject` does it
                self._answers = await client.subscribe(f"{self._inbox}.>", cb=self._on_inbox)
                await self._try_inbox(client)
        except BaseException as error:
            await abandon(client)
            if self._options and isinstance(error, USELESS):
                raise useless_options(error) from error
            if isinstance(error, TimeoutError | BrokerDisconnectedError):
                raise BrokerDisconnectedError(f"{self}: {error or 'no answer'}") from error
            raise
        self._client = client

    async def subscribe(self, subject: str, on_message: OnMessage, queue: str = "") -> "NATSSubscription":
        async def on_nats_message(message: Msg) -> None:
            await on_message(message.data, message.reply)

        _check_subject(f"{subject}{queue}")
        if "" in subject.split("."):
            raise invalid_subject()
        with TRANSLATED:
            return NATSSubscription(await self._use().subscribe(subject, queue=queue, cb=on_nats_message))

    async def publish(self, subject: str, data: bytes, reply_id: str | None = None) -> None:
        client = self._use_for(data)
        reply = f"{self._inbox}.{reply_id}" if reply_id and self._has_inbox else ""
        _check_subject(subject + reply)
        with TRANSLATED:
            await client.publish(subject, data, reply)

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
        client, self._client = self._client, None
        if client is None or client.is_closed:
            return
        self._closing = True
        with anyio.CancelScope(shield=True):  # a half-closed socket would stay open
            if client.is_connected:
                try:
                    with TRANSLATED:
                        await client.flush(NATS_CLOSE_TIMEOUT_S)
                except MoleculerError:
                    pass  # a connection that is going down anyway
            with anyio.move_on_after(NATS_CLOSE_TIMEOUT_S):
                # Before Python 3.12, a reconnection that gets its answer in the moment of its cancellation goes on, and
                # leaves the client open for as long as the process lives.
                while not client.is_closed:
                    await client.close()

    def __str__(self) -> str:
        return ", ".join(masked_text(server) for server in self._servers)

    def _use(self) -> Client:
        if self._client is None:
            raise BrokerDisconnectedError
        return self._client

    def _use_for(self, data: bytes) -> Client:
        """The client, when it can send this now."""
        client = self._use()
        if not client.is_connected:  # nats-py would buffer it: an answer could come from the past
            raise BrokerDisconnectedError
        if len(data) > client.max_payload:
            raise too_large(len(data), client.max_payload)
        return client

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

    async def _try_inbox(self, client: Client) -> None:
        """Whether this node gets what is sent to its inbox, and may send to those of others. The server complains of
        what it refuses before it answers a flush."""
        assert self._answers is not None
        before, self._has_inbox = self._answers.delivered, True
        for subject in (f"{self._inbox}.", f"{self._inboxes}._."):
            await client.publish(f"{subject}test", b"")
        await flush(client)
        self._has_inbox = self._has_inbox and self._answers.delivered > before
        if not self._has_inbox and not self._said_so:
            self._said_so = True
            await self._observer.failed(NO_INBOX % self._inboxes)

    async def _failed(self, text: str) -> None:
        denied = _DENIED.search(text)
        if denied and denied["subject"].startswith(f"{self._inboxes}.".lower()):
            self._has_inbox = False  # `_try_inbox` says so
            return
        await self._observer.failed(text)
        if denied and denied["what"] == "publish":
            await self._observer.denied(denied["subject"])

    async def _disconnected(self) -> None:
        if not self._closing and self._client is not None:  # else it is an attempt to connect that ends
            await self._observer.disconnected()

    async def _reconnected(self) -> None:
        if self._client is not None:
            await self._try_inbox(self._client)
        await self._observer.reconnected()


class NATSSubscription:
    """A subscription of nats-py."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    async def cancel(self) -> None:
        try:
            with TRANSLATED:
                await self._subscription.unsubscribe()
        except MoleculerError:
            pass  # gone already, or gone with the connection


class _Attempt:
    """One try to connect: nats-py would try for ever, so its error callback ends it after each server failed once."""

    def __init__(self, servers: int) -> None:
        self.running = True
        self._left = servers

    def count(self, error: Exception) -> None:
        self._left -= 1
        if self._left <= 0:
            raise BrokerDisconnectedError(words(error)) from error


_BLANK = re.compile(r"[ \t\r\n]")


def _check_subject(text: str) -> None:
    """Nothing in a subject may end it, nor be so long that it ends the connection for good. A star that is but a part
    of a token is a letter to the server, as JS nodes subscribe it (§1.3); nats-py itself refuses it."""
    if not text or _BLANK.search(text) or _is_long(text):
        raise invalid_subject()


def _is_long(text: str) -> bool:
    """Whether a subject has more bytes than the server takes; four are the most for a character."""
    return len(text) > NATS_SUBJECT_BYTES // 4 and len(text.encode("utf-8", "surrogatepass")) > NATS_SUBJECT_BYTES
