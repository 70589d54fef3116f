"""The client of nats-py, mended where it would lose a node, and its exceptions and options as ours."""

import asyncio
import inspect
import random
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

import anyio
import nats.aio.client
import nats.errors
from nats.aio.client import Client, Srv
from nats.protocol.parser import PERMISSIONS_ERR

from broker.defaults import (
    NATS_CLOSE_TIMEOUT_S,
    NATS_CONNECT_TIMEOUT_S,
    NATS_READ_BYTES,
    NATS_RECONNECT_JITTER_S,
    NATS_RECONNECT_WAIT_S,
)
from broker.errors import BrokerDisconnectedError, BrokerOptionsError, MoleculerError

# nats-py reads 32 kB at a time and has no option for it: a node that also works between two reads then falls behind a
# JS node that streams, until the server gives it up as a slow consumer.
nats.aio.client.DEFAULT_BUFFER_SIZE = NATS_READ_BYTES


class MendedClient(Client):
    """Ours in each method that says why."""

    on_servers_changed: Callable[[], Awaitable[None]]

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

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        """nats-py tells only of servers that joined the cluster, not of those that left it."""
        await super()._process_info(info, initial_connection)
        if not initial_connection:
            await self.on_servers_changed()

    async def _process_pong(self) -> None:
        """Nobody may wait any more for the answer to a flush; nats-py then gives up reading, without a word to us."""
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()


async def flush(client: Client) -> None:
    """Return when the server has taken everything published before.

    nats-py sends the PING of a flush ahead of what is still in its buffer, so only a second one comes after it.
    """
    await client.flush(NATS_CONNECT_TIMEOUT_S)
    await client.flush(NATS_CONNECT_TIMEOUT_S)


async def abandon(client: Client) -> None:
    """Close what a try to connect has opened: a server that refuses us is tried again and again, for as long as it
    does."""
    if client._flush_queue is None:  # it failed before it opened anything, and cannot be closed
        return
    with anyio.move_on_after(NATS_CLOSE_TIMEOUT_S, shield=True):
        try:
            with TRANSLATED:
                await client.close()
        except MoleculerError:
            pass  # it was never of use to anybody


def next_server(servers: list[Any], _information: dict[str, Any]) -> tuple[Any, float]:
    """Any server of the list, after a wait with jitter: nodes must not come back all at the same instant."""
    return random.choice(servers), NATS_RECONNECT_WAIT_S + random.uniform(0, NATS_RECONNECT_JITTER_S)


_OWN = {
    *("servers", "name", "error_cb", "disconnected_cb", "reconnected_cb", "closed_cb", "connect_timeout"),
    *("reconnect_time_wait", "max_reconnect_attempts", "reconnect_to_server_handler", "allow_reconnect"),
}
"""Options of nats-py that the broker sets itself."""

_KNOWN = set(inspect.signature(Client.connect).parameters) - {"self"}

USELESS = (TypeError, ImportError)
"""What nats-py raises for options of a wrong type, and for `user_credentials` and seeds without the package nkeys."""


def usable_options(options: dict[str, Any]) -> dict[str, Any]:
    for name in options:
        if name in _OWN:
            raise BrokerOptionsError(f"'{name}' cannot be among the transporter_options: the broker sets it itself.")
        if name not in _KNOWN:
            raise BrokerOptionsError(f"'{name}' is among the transporter_options, and nats-py has no such option.")
    return options


def useless_options(error: BaseException) -> BrokerOptionsError:
    missing = error.name if isinstance(error, ImportError) else None
    package = "'environments-store[nkeys]'" if missing == "nkeys" else missing
    hint = f" (pip install {package})" if package else ""
    return BrokerOptionsError(f"The transporter_options cannot be used: {error}{hint}.")


def invalid_subject() -> MoleculerError:
    """The error for a name with blanks, for one that is too long, and for no name."""
    return MoleculerError("A name cannot be part of a NATS subject.", 500, "INVALID_SUBJECT")


def words(error: BaseException) -> str:
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
                raise invalid_subject() from error
            case nats.errors.Error() | OSError():
                raise BrokerDisconnectedError(f"NATS: {words(error)}") from error


TRANSLATED = _Translation()
