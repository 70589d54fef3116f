"""NATS, by nats-py (moleculer protocol §14). The only module that imports it; none of its exceptions leaves here."""

import asyncio
import inspect
import random
import re
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

import anyio
import nats.aio.client
import nats.errors
from nats.aio.client import Client, Srv
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.protocol.parser import PERMISSIONS_ERR

from broker.defaults import (
    NATS_CANCEL_WAIT_S,
    NATS_CLOSE_TIMEOUT_S,
    NATS_CONNECT_TIMEOUT_S,
    NATS_PING_INTERVAL_S,
    NATS_READ_BYTES,
    NATS_RECONNECT_JITTER_S,
    NATS_RECONNECT_WAIT_S,
    NATS_SUBJECT_BYTES,
)
from broker.errors import BrokerDisconnectedError, BrokerOptionsError, MoleculerError
from broker.transports.base import Observer, OnMessage
from broker.transports.memory import too_large

NO_RESPONDERS = "503"
INVALID_SUBJECT = "INVALID_SUBJECT"

# nats-py reads 32 kB at a time and has no option for it: a node that also works between two reads then falls behind a
# JS node that streams, until the server gives it up as a slow consumer.
nats.aio.client.DEFAULT_BUFFER_SIZE = NATS_READ_BYTES


class _Client(Client):
    def _connect_command(self) -> bytes:
        """The first words to a server, with the password. nats-py says them in the clear to a `tls://` address whose
        server, or who stands in its place, offers no TLS."""
        server = self._current_server
        if server is not None and server.uri.scheme == "tls" and not self._server_info.get("tls_required"):
            raise nats.errors.Error("nats: the address says tls://, and the server offers no TLS")
        return super()._connect_command()

    async def _connect_to_server(self, s: Srv) -> None:
        """Nobody closes the socket of a reconnection that came to nothing; nats-py puts the next one in its place."""
        if self._transport is not None:
            self._transport.close()  # type: ignore[no-untyped-call] # as most of nats-py
        await super()._connect_to_server(s)

    async def _process_err(self, err_msg: str) -> None:
        """nats-py closes for good at nearly all that a server may say to a running connection: the rights of the user
        were changed, or expired, some limit is reached. The next connection may be taken, now or in an hour."""
        if not self.is_connected or PERMISSIONS_ERR in err_msg.lower():
            await super()._process_err(err_msg)
            return
        error = nats.errors.Error("nats: " + err_msg.strip("'"))
        await self._error_cb(error)
        await self._process_op_err(error)

    async def _process_pong(self) -> None:
        """Nobody may wait any more for the answer to a flush; nats-py then gives up reading, without a word to us."""
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()


class NATSTransport:
    """A connection to one NATS server of a list.

    `servers` are URLs like `nats://user:password@host:4222`; `options` go to nats-py as they are (tls, token,
    user_credentials, nkeys_seed…).
    """

    def __init__(self, servers: list[str], **options: Any) -> None:
        self._servers = [_checked(server) for server in servers]
        self._options = _usable(options)
        self._client: Client | None = None
        self._observer = Observer()
        self._inbox = ""
        self._closing = False

    @property
    def connected(self) -> bool:
        return self._client is not None and self._client.is_connected

    @property
    def max_payload(self) -> int | None:
        return self._client.max_payload if self._client else None

    async def connect(self, observer: Observer, name: str) -> None:
        self._observer = observer
        attempt = _Attempt(len(self._servers))
        client = _Client()

        async def failed(error: Exception) -> None:
            if attempt.running:
                attempt.count(error)
            else:
                await observer.failed(_words(error))

        async def closed() -> None:
            if not self._closing and not attempt.running:
                await observer.failed(
                    "The connection to NATS was closed for good. Is the node still allowed to connect?"
                )

        try:
            with _TRANSLATED, anyio.fail_after(NATS_CONNECT_TIMEOUT_S * len(self._servers)):
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
                    reconnect_to_server_handler=_next_server,
                    **{"ping_interval": NATS_PING_INTERVAL_S, **_credentials(self._servers), **self._options},
                )
                attempt.running = False
                client._skip_subject_validation = True  # `_check_subject` does it
                self._inbox = client.new_inbox()
                await client.subscribe(f"{self._inbox}.>", cb=self._on_inbox)
        except BaseException as error:
            await _abandon(client)
            if self._options and isinstance(error, _USELESS):
                raise _useless(error) from error
            if isinstance(error, TimeoutError | BrokerDisconnectedError):
                raise BrokerDisconnectedError(f"{self}: {error or 'no answer'}") from error
            raise
        self._client = client

    async def subscribe(self, subject: str, on_message: OnMessage, queue: str = "") -> "NATSSubscription":
        async def on_nats_message(message: Msg) -> None:
            await on_message(message.data, message.reply)

        _check_subject(f"{subject}{queue}")
        if "" in subject.split("."):
            raise _invalid_subject()
        with _TRANSLATED:
            return NATSSubscription(await self._use().subscribe(subject, queue=queue, cb=on_nats_message))

    async def publish(self, subject: str, data: bytes, reply_id: str | None = None) -> None:
        client = self._use_for(data)
        _check_subject(subject)
        with _TRANSLATED:
            await client.publish(subject, data, f"{self._inbox}.{reply_id}" if reply_id else "")

    async def is_heard(self, subject: str, data: bytes) -> bool:
        client = self._use_for(data)
        _check_subject(subject)
        inbox = client.new_inbox()
        with _TRANSLATED:
            answers = await client.subscribe(inbox)
            await client.publish(subject, data, inbox)
            await _flush(client)  # the server answers in order: a 503 is here before the last PONG
            heard = answers.pending_msgs == 0
            await answers.unsubscribe()
        return heard

    async def flush(self) -> None:
        with _TRANSLATED:
            await _flush(self._use())

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is None or client.is_closed:
            return
        self._closing = True
        with anyio.CancelScope(shield=True):  # a half-closed socket would stay open
            if client.is_connected:
                try:
                    with _TRANSLATED:
                        await client.flush(NATS_CLOSE_TIMEOUT_S)
                except MoleculerError:
                    pass  # a connection that is going down anyway
            with anyio.move_on_after(NATS_CLOSE_TIMEOUT_S):
                # Before Python 3.12, a reconnection that gets its answer in the moment of its cancellation goes on, and
                # leaves the client open for as long as the process lives.
                while not client.is_closed:
                    await client.close()

    def __str__(self) -> str:
        return ", ".join(masked(server) for server in self._servers)

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
        if message.headers and message.headers.get("Status") == NO_RESPONDERS:
            await self._observer.nobody_listens(message.subject[len(self._inbox) + 1 :])
        else:
            await self._observer.replied(message.subject[len(self._inbox) + 1 :], message.data)

    async def _disconnected(self) -> None:
        if not self._closing and self._client is not None:  # else it is an attempt to connect that ends
            await self._observer.disconnected()

    async def _reconnected(self) -> None:
        await self._observer.reconnected()


class NATSSubscription:
    """A subscription of nats-py."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    async def cancel(self) -> None:
        try:
            with _TRANSLATED:
                await self._subscription.unsubscribe()
        except MoleculerError:
            pass  # gone already, or gone with the connection


async def _flush(client: Client) -> None:
    """Return when the server has taken everything published before.

    nats-py sends the PING of a flush ahead of what is still in its buffer, so only a second one comes after it.
    """
    await client.flush(NATS_CONNECT_TIMEOUT_S)
    await client.flush(NATS_CONNECT_TIMEOUT_S)


async def _abandon(client: Client) -> None:
    """Close what a try to connect has opened: a server that refuses us is tried again and again, for as long as it
    does."""
    if client._flush_queue is None:  # it failed before it opened anything, and cannot be closed
        return
    with anyio.move_on_after(NATS_CLOSE_TIMEOUT_S, shield=True):
        try:
            with _TRANSLATED:
                await client.close()
        except MoleculerError:
            pass  # it was never of use to anybody


class _Attempt:
    """One try to connect: nats-py would try for ever, so its error callback ends it after each server failed once."""

    def __init__(self, servers: int) -> None:
        self.running = True
        self._left = servers

    def count(self, error: Exception) -> None:
        self._left -= 1
        if self._left <= 0:
            raise BrokerDisconnectedError(_words(error)) from error


def _next_server(servers: list[Any], _information: dict[str, Any]) -> tuple[Any, float]:
    """Any server of the list, after a wait with jitter: nodes must not come back all at the same instant."""
    return random.choice(servers), NATS_RECONNECT_WAIT_S + random.uniform(0, NATS_RECONNECT_JITTER_S)


def _credentials(servers: list[str]) -> dict[str, str]:
    """User and password, or the token, of addresses that all have the same ones. nats-py would send them as they stand
    in the address, percent-encoding and all; to addresses with different ones it still does."""
    found = {(parts.username, parts.password) for parts in map(urlsplit, servers)}
    user, password = found.pop()
    if found or user is None:
        return {}
    return {"token": unquote(user)} if password is None else {"user": unquote(user), "password": unquote(password)}


def masked(url: str) -> str:
    """A URL without its password."""
    parts = urlsplit(url)
    if not parts.password and not parts.username:
        return url
    return parts._replace(netloc=f"***@{parts.hostname}" + (f":{parts.port}" if parts.port else "")).geturl()


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        usable = parts.scheme in ("nats", "tls", "ws", "wss") and parts.hostname and (parts.port is None or parts.port)
    except ValueError:
        usable = False
    if not usable:
        raise BrokerOptionsError(
            "The address of the NATS server is not usable. A right one looks like nats://127.0.0.1:4222, "
            "nats://user:password@host:4222 or tls://host:4222; several are separated by commas. In a password, "
            "characters such as / @ : # and ? are written as %2F %40 %3A %23 and %3F."
        )
    return parts.geturl()


_OWN = {
    *("servers", "name", "error_cb", "disconnected_cb", "reconnected_cb", "closed_cb", "connect_timeout"),
    *("reconnect_time_wait", "max_reconnect_attempts", "reconnect_to_server_handler", "allow_reconnect"),
}
"""Options of nats-py that the broker sets itself."""

_KNOWN = set(inspect.signature(Client.connect).parameters) - {"self"}

_USELESS = (TypeError, ImportError)
"""What nats-py raises for options of a wrong type, and for `user_credentials` and seeds without the package nkeys."""


def _usable(options: dict[str, Any]) -> dict[str, Any]:
    for name in options:
        if name in _OWN:
            raise BrokerOptionsError(f"'{name}' cannot be among the transporter_options: the broker sets it itself.")
        if name not in _KNOWN:
            raise BrokerOptionsError(f"'{name}' is among the transporter_options, and nats-py has no such option.")
    return options


def _useless(error: BaseException) -> BrokerOptionsError:
    missing = f" (pip install {error.name})" if isinstance(error, ImportError) and error.name else ""
    return BrokerOptionsError(f"The transporter_options cannot be used: {error}{missing}.")


_BLANK = re.compile(r"[ \t\r\n]")


def _check_subject(text: str) -> None:
    """Nothing in a subject may end it, nor be so long that it ends the connection for good. A star that is but a part
    of a token is a letter to the server, as JS nodes subscribe it (§1.3); nats-py itself refuses it."""
    if not text or _BLANK.search(text) or _is_long(text):
        raise _invalid_subject()


def _is_long(text: str) -> bool:
    """Whether a subject has more bytes than the server takes; four are the most for a character."""
    return len(text) > NATS_SUBJECT_BYTES // 4 and len(text.encode("utf-8", "surrogatepass")) > NATS_SUBJECT_BYTES


def _invalid_subject() -> MoleculerError:
    return MoleculerError("A name cannot be part of a NATS subject.", 500, INVALID_SUBJECT)


def _words(error: BaseException) -> str:
    """What went wrong, for a log line: some exceptions of nats-py have no text."""
    text = str(error) or type(error).__name__
    return text.removeprefix("nats: ")


class _Translation:
    """Exceptions of nats-py and of sockets as ours, chained to their cause. Holds nothing, so one is enough."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        match error:
            case None:
                return
            case nats.errors.MaxPayloadError():
                raise MoleculerError("The message is above max_payload.", 413, "PAYLOAD_TOO_LARGE") from error
            case nats.errors.BadSubjectError():
                raise _invalid_subject() from error
            case nats.errors.Error() | OSError():
                raise BrokerDisconnectedError(f"NATS: {_words(error)}") from error


_TRANSLATED = _Translation()
