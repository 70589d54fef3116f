"""One connection by nats-py, mended where it would lose a node, and its exceptions and options as ours."""

import asyncio
import inspect
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import anyio
import nats.aio.client
import nats.errors
from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.protocol.parser import AUTHORIZATION_VIOLATION, ERR_RE, PERMISSIONS_ERR

from broker.defaults import (
    NATS_CLOSE_TIMEOUT_S,
    NATS_CONNECT_TIMEOUT_S,
    NATS_PENDING_MESSAGES,
    NATS_PING_INTERVAL_S,
    NATS_READ_BYTES,
)
from broker.errors import BrokerDisconnectedError, BrokerOptionsError
from broker.transports.base import Observer
from broker.transports.nats_address import credentials
from broker.transports.nats_intake import Intake, Take

# nats-py reads 32 kB at a time and has no option for it: a node that also works between two reads then falls behind a
# JS node that streams, until the server drops it as a slow consumer.
nats.aio.client.DEFAULT_BUFFER_SIZE = NATS_READ_BYTES

_LOST = (nats.errors.UnexpectedEOF, OSError)
"""Errors that say no more than that a connection is lost."""

OVERRUN = (
    "Messages on '%s' arrive faster than this node handles them. As many as it keeps are waiting, and others are "
    "dropped until there is room."
)


class RefusedError(BrokerDisconnectedError):
    """The server does not accept the credentials."""


class Connection(Client):
    """A connection to one server. It ends when it is lost; the next one is another object.

    nats-py would reconnect by itself, but waits before each try, and can neither choose the server well nor hold two
    connections at a time.
    """

    def __init__(self, server: str, observer: Observer) -> None:
        super().__init__()
        self.server = server
        self.advertised: list[str] = []
        """Where the other servers of the cluster listen, as far as the server has said."""
        self.is_open = False
        self.changed = asyncio.Event()
        """Set when the connection has ended, and when the server is about to end it."""
        self.reason: str | None = None
        """Why it has ended, when that is known."""
        self.intake = self._ps = Intake(self)
        self._observer = observer
        self._opening = True

    async def open(self, name: str, options: dict[str, Any], patience_s: float) -> None:
        """Raises RefusedError, BrokerDisconnectedError and, for `options` that cannot be used, BrokerOptionsError."""
        try:
            with anyio.fail_after(patience_s):
                await self.connect(
                    servers=[self.server],
                    name=name,
                    error_cb=self._on_error,
                    lame_duck_mode_cb=self._on_lame_duck,
                    connect_timeout=NATS_CONNECT_TIMEOUT_S,
                    allow_reconnect=False,
                    skip_subject_validation=True,  # the transport checks subjects
                    **{"ping_interval": NATS_PING_INTERVAL_S, **credentials(self.server), **options},
                )
            if not self.is_connected:
                raise nats.errors.Error("nats: the server has not answered the greeting")
        except BaseException as error:
            await self.abandon()
            if AUTHORIZATION_VIOLATION in words(error).lower():
                raise RefusedError(words(error)) from error
            if isinstance(error, OSError | nats.errors.Error):
                raise BrokerDisconnectedError(words(error)) from error
            if options and isinstance(error, TypeError | ImportError):
                raise _unusable_options(error) from error
            raise
        self._opening, self.is_open = False, True

    async def subscribe_taker(self, subject: str, queue: str, take: Take) -> Subscription:
        """As `subscribe`, but `take` gets each message in the task that reads, as long as none before it waits for
        something. Others are queued by nats-py for another task, which costs more than most messages do."""
        handle = self.intake.handler(take)
        live = await self.subscribe(subject, queue=queue, cb=handle, pending_msgs_limit=NATS_PENDING_MESSAGES)
        self.intake.takers[b"%d" % live._id] = take, live
        return live

    def write(self, subject: str, data: bytes, reply: str) -> bool:
        """As `publish`, without its coroutines, for a subject that was checked. False when it may have to wait for the
        server, or cannot be done at all: then `publish` waits, or raises why not."""
        queue, flusher = self._flush_queue, self._flusher_task
        if queue is None or flusher is None or self._status != Client.CONNECTED:
            return False
        size = len(data)
        if size > self._max_payload or size + self._pending_data_size > self._max_pending_size:
            return False
        if queue.empty():
            if flusher.done():
                return False
            queue.put_nowait(asyncio.get_running_loop().create_future())
        message = b"".join((f"PUB {subject} {reply} {size}\r\n".encode(), data, b"\r\n"))
        self._pending.append(message)
        self._pending_data_size += len(message)
        return True

    async def abandon(self) -> None:
        """End it without a word."""
        self._opening = self.is_open = False
        self._abort()
        if self._flush_queue is not None:  # else it failed before it opened anything, and cannot be closed
            with anyio.move_on_after(NATS_CLOSE_TIMEOUT_S, shield=True), suppress(OSError, nats.errors.Error):
                await super()._close(Client.CLOSED)

    async def _on_error(self, error: Exception) -> None:
        if self._opening:
            raise error  # else nats-py tries again
        if isinstance(error, nats.errors.SlowConsumerError):
            if error.sid not in self.intake.overrun:  # one line until there is room again
                self.intake.overrun.add(error.sid)
                await self._observer.failed(OVERRUN % error.subject)
        elif self.is_open and not isinstance(error, _LOST):
            await self._observer.failed(words(error))

    async def _on_lame_duck(self) -> None:
        self.changed.set()

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        self.intake.takers.pop(b"%d" % sid, None)
        super()._remove_sub(sid, max_msgs)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        """nats-py reports only servers that joined the cluster, not those that left it, and keeps these."""
        before, self.advertised = self.advertised, info.get("connect_urls") or []
        await super()._process_info(info, initial_connection)
        if not initial_connection and set(before) != set(self.advertised):
            await self._observer.servers_changed()

    def _connect_command(self) -> bytes:
        """The greeting, with the password. nats-py sends it in the clear to a `tls://` address whose server, or
        whoever stands in its place, offers no TLS."""
        if urlsplit(self.server).scheme == "tls" and not self._server_info.get("tls_required"):
            raise nats.errors.Error("nats: the address says tls://, and the server offers no TLS")
        return super()._connect_command()

    async def _process_err(self, err_msg: str) -> None:
        """What a server says before it ends a connection: nats-py may report the end in its place. A permission that
        is missing ends nothing; nats-py would put the subject into lower case."""
        if PERMISSIONS_ERR in err_msg:
            line = ERR_RE.match(self._ps.buf)
            await self._on_error(nats.errors.Error(line[1].decode(errors="replace") if line else err_msg))
            return
        if self.is_open:
            self.reason = err_msg.strip("'")
        await super()._process_err(err_msg)

    async def _process_pong(self) -> None:
        """nats-py stops reading when the caller of a flush has given up before the answer."""
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        """Called at every end of an open connection. nats-py would first wait until the server has taken all that was
        written, which a frozen one never does, and drop what has arrived and is not handled yet."""
        if self.is_open:
            self.is_open = False
            if self.reason is None and self._err is not None and not isinstance(self._err, _LOST):
                self.reason = words(self._err)
            self._abort()
            self._pending.clear()
            self._pending_data_size = 0
            self._release_waiters()
            self.changed.set()
            with anyio.move_on_after(NATS_CLOSE_TIMEOUT_S):
                for subscription in list(self._subs.values()):
                    await subscription._pending_queue.join()
        await super()._close(status, do_cbs)

    def _release_waiters(self) -> None:
        """End the waits for the server to answer a flush, or to take what was written, before their timeouts."""
        for pong in self._pongs:
            if not pong.done():
                pong.set_exception(nats.errors.ConnectionClosedError())
                pong.exception()  # asyncio reports it when there is no waiter
        while self._flush_queue and not self._flush_queue.empty():
            written = self._flush_queue.get_nowait()
            if not written.done():
                written.set_result(None)

    def _abort(self) -> None:
        writer = getattr(self._transport, "_io_writer", None)  # a WebSocket has none
        if writer is not None:
            writer.transport.abort()


async def flush(client: Client) -> None:
    """Return when the server has taken everything published before.

    nats-py sends the PING of a flush ahead of what is still in its buffer, so only a second one comes after it.
    """
    for _ in range(2):
        await client.flush(NATS_CONNECT_TIMEOUT_S)


_OWN = {
    *("servers", "name", "error_cb", "disconnected_cb", "reconnected_cb", "closed_cb", "connect_timeout"),
    *("reconnect_time_wait", "max_reconnect_attempts", "reconnect_to_server_handler", "allow_reconnect"),
    *("lame_duck_mode_cb", "discovered_server_cb", "dont_randomize", "skip_subject_validation"),
}
"""Options of nats-py that the broker sets itself, or does without."""

_KNOWN = set(inspect.signature(Client.connect).parameters) - {"self"}


def usable_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options for nats-py. Raises BrokerOptionsError for one that it does not have, or that the broker sets."""
    for name in options:
        if name in _OWN or name not in _KNOWN:
            reason = "the broker sets it itself" if name in _OWN else "nats-py has no such option"
            raise BrokerOptionsError(f"'{name}' cannot be among the transporter_options: {reason}.")
    return options


def _unusable_options(error: BaseException) -> BrokerOptionsError:
    """For options of a wrong type, and for `user_credentials` and seeds without the package nkeys."""
    missing = error.name if isinstance(error, ImportError) else None
    package = "'environments-store[nkeys]'" if missing == "nkeys" else missing
    hint = f" (pip install {package})" if package else ""
    return BrokerOptionsError(f"The transporter_options cannot be used: {error}{hint}.")


def words(error: BaseException) -> str:
    """What went wrong, for a log line: some exceptions of nats-py have no text."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    text = (str(error) or type(error).__name__).removeprefix("nats: ")
    return text[1:-1] if text[0] == text[-1] == "'" else text


@contextmanager
def translated() -> Iterator[None]:
    """Raises BrokerDisconnectedError for exceptions of nats-py and of sockets."""
    try:
        yield
    except (nats.errors.Error, OSError) as error:
        raise BrokerDisconnectedError(f"NATS: {words(error)}") from error
