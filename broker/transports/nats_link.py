"""The way to the NATS servers: one connection in use, and the next one when it is lost or about to be."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import anyio
from nats.aio.subscription import Subscription

from broker.defaults import (
    NATS_CLOSE_TIMEOUT_S,
    NATS_CONNECT_TIMEOUT_S,
    NATS_OVERLAP_S,
    NATS_RECONNECT_FIRST_S,
    NATS_RECONNECT_MAX_S,
    NATS_RECONNECT_PATIENCE_S,
)
from broker.errors import BrokerDisconnectedError, MoleculerError
from broker.masking import masked_text
from broker.transports.base import Observer
from broker.transports.nats_address import Servers
from broker.transports.nats_client import Connection, RefusedError, flush, translated
from broker.transports.nats_intake import Overlap

logger = logging.getLogger("broker")


class Link:
    """Keeps a connection to one server of a list, with everything subscribed on it."""

    def __init__(
        self, servers: Servers, options: dict[str, Any], prepare: Callable[[Connection], Awaitable[None]]
    ) -> None:
        """`prepare` gets each connection before it is used, with everything subscribed."""
        self._servers, self._options, self._prepare = servers, options, prepare
        self._observer, self._name = Observer(), ""
        self.current: Connection | None = None
        """The last one that was used, which may be lost."""
        self._subscriptions: dict[NATSSubscription, None] = {}
        self._keeper: tuple[asyncio.Task[None], anyio.CancelScope] | None = None

    @property
    def connection(self) -> Connection | None:
        """The connection to use; None when there is none now."""
        return self.current if self.current is not None and self.current.is_open else None

    async def open(self, observer: Observer, name: str, first: "NATSSubscription") -> None:
        """Connect to the first server that accepts it. Raises RefusedError and BrokerDisconnectedError."""
        self._observer, self._name = observer, name
        self._subscriptions = {first: None}
        connection = await self._open_one_of(self._servers.in_turn(), NATS_CONNECT_TIMEOUT_S)
        await self._take(connection)
        logger.info("Connected to the NATS server %s", masked_text(connection.server))
        scope = anyio.CancelScope()  # cancelled until it ends; before Python 3.12 a task alone may not notice
        keeping = asyncio.get_running_loop().create_task(self._keep(connection, scope), name="connection to NATS")
        self._keeper = keeping, scope

    async def subscribe(self, subscription: "NATSSubscription") -> "NATSSubscription":
        """Subscribe on this connection, and on each later one."""
        if self.current is None:
            raise BrokerDisconnectedError
        self._subscriptions[subscription] = None
        if self.current.is_open:
            with suppress(BrokerDisconnectedError), translated():
                await subscription.open_on(self.current)
        return subscription

    async def close(self) -> None:
        """Send what was published, then end the connection. It may be closed already."""
        with anyio.CancelScope(shield=True):  # a half-closed socket would stay open
            if self._keeper is not None:
                keeping, scope = self._keeper
                scope.cancel()
                await asyncio.wait([keeping])
            connection, self.current, self._keeper = self.current, None, None
            self._subscriptions.clear()
            if connection is not None:
                if connection.is_open:
                    with suppress(MoleculerError), translated():  # it may be lost at this moment
                        await connection.flush(NATS_CLOSE_TIMEOUT_S)
                await connection.abandon()

    def forget(self, subscription: "NATSSubscription") -> None:
        self._subscriptions.pop(subscription, None)

    async def _open_one_of(self, servers: Sequence[str], patience_s: float) -> Connection:
        """A connection to the first of these servers that accepts one. Raises RefusedError when one of them does not
        accept the credentials, else BrokerDisconnectedError."""
        failures: dict[str, BrokerDisconnectedError] = {}
        for server in servers:
            self._servers.tried(server)
            name = self._servers.certified_as(server)
            connection = Connection(server, self._observer)
            try:
                options = {"tls_hostname": name, **self._options} if name else self._options
                await connection.open(self._name, options, patience_s)
            except BrokerDisconnectedError as error:
                failures[f"{masked_text(server)}: {error}"] = error
            else:
                return connection
        refused = any(isinstance(error, RefusedError) for error in failures.values())
        raise (RefusedError if refused else BrokerDisconnectedError)("; ".join(sorted(failures)))

    async def _take(self, connection: Connection) -> None:
        """Subscribe to everything on a new connection, then use it."""
        try:
            with translated():
                while missing := [one for one in self._subscriptions if one.connection is not connection]:
                    for subscription in missing:
                        await subscription.open_on(connection)
                    await flush(connection)
                    await self._prepare(connection)
        except BaseException:
            await connection.abandon()
            raise
        self.current = connection

    async def _keep(self, connection: Connection, scope: anyio.CancelScope) -> None:
        with scope:
            tries = 0
            while True:
                opened = anyio.current_time()
                await connection.changed.wait()
                self._servers.advertise(connection.server, connection.advertised)
                if connection.is_open:
                    connection = await self._move(connection)
                if not connection.is_open:
                    short = anyio.current_time() - opened < NATS_RECONNECT_MAX_S
                    tries = tries + 1 if short else 0  # a server that accepts and drops is tried less and less often
                    connection = await self._reconnect(connection, tries)

    async def _reconnect(self, lost: Connection, tries: int) -> Connection:
        if lost.reason is not None:
            await self._observer.failed(lost.reason)
        await self._observer.disconnected()
        reported: set[str] = set()
        while True:
            await anyio.sleep(_wait_s(tries))
            servers = self._servers.in_turn()
            try:
                connection = await self._open_one_of(servers, _patience_s(servers, tries))
                await self._take(connection)
            except BrokerDisconnectedError as error:
                if str(error) not in reported:  # one line for each reason
                    reported.add(str(error))
                    await self._observer.failed(str(error))
                tries += 1
            else:
                logger.info("Connected to the NATS server %s", masked_text(connection.server))
                await self._observer.reconnected()
                return connection

    async def _move(self, lame: Connection) -> Connection:
        """Go to another server before this one closes its connections. Returns the connection to go on with: while
        there is no other server, this one, until it has ended."""
        tries = 0
        while lame.is_open:
            lame.changed.clear()
            others = [server for server in self._servers.in_turn() if server != lame.server]
            try:
                connection = await self._open_one_of(others, _patience_s(others, tries))
                if lame.is_open:
                    await self._overlapping(lame, connection)
                    return connection
                await connection.abandon()  # messages are lost already: this is an outage
            except BrokerDisconnectedError:
                with anyio.move_on_after(_wait_s(tries)):
                    await lame.changed.wait()
                tries += 1
        return lame

    async def _overlapping(self, old: Connection, new: Connection) -> None:
        """Use the new connection, and receive from both until all servers send to the new one."""
        old.intake.overlap = new.intake.overlap = Overlap(old.intake)
        try:
            await self._take(new)
            logger.info(
                "The NATS server %s is about to close; moved to %s", masked_text(old.server), masked_text(new.server)
            )
            await anyio.sleep(NATS_OVERLAP_S)
            with anyio.move_on_after(NATS_CLOSE_TIMEOUT_S), suppress(BrokerDisconnectedError), translated():
                await old.drain()
            await anyio.sleep(NATS_OVERLAP_S)  # for the last copies to arrive, and to be handled
            arrived = [(live, live.delivered) for one in self._subscriptions if (live := one.live)]
            with anyio.move_on_after(NATS_CLOSE_TIMEOUT_S):
                while any(live.delivered - live.pending_msgs < until for live, until in arrived):  # noqa: ASYNC110
                    await anyio.sleep(NATS_OVERLAP_S / 10)
        finally:
            if self.current is new:
                await old.abandon()
            old.intake.overlap = new.intake.overlap = None


@dataclass(eq=False)
class NATSSubscription:
    """A subscription, on whichever connection is in use. `subscribe` makes it on one."""

    link: Link
    subscribe: Callable[[Connection], Awaitable[Subscription]]
    connection: Connection | None = None
    live: Subscription | None = None
    """That of nats-py."""

    async def open_on(self, connection: Connection) -> None:
        self.connection = connection
        live = await self.subscribe(connection)
        if self.connection is connection:
            self.live = live

    async def cancel(self) -> None:
        self.link.forget(self)
        live, self.live = self.live, None
        if live is not None:
            with suppress(BrokerDisconnectedError), translated():  # gone already, or gone with the connection
                await live.unsubscribe()


def _wait_s(tries: int) -> float:
    """How long to wait after so many tries: twice as long each time, with jitter."""
    longest = min(NATS_RECONNECT_MAX_S, NATS_RECONNECT_FIRST_S * 2.0 ** min(tries, 32))
    return random.uniform(longest / 2, longest)


def _patience_s(servers: Sequence[str], tries: int) -> float:
    """How long a server may take to accept a connection: not long where there is another one, at first."""
    first = NATS_RECONNECT_PATIENCE_S if len(servers) > 1 else NATS_CONNECT_TIMEOUT_S
    return min(NATS_CONNECT_TIMEOUT_S, first * 2.0 ** min(tries, 32))
