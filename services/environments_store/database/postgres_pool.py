"""The pool of PostgreSQL connections: how many, with which settings, and what changes behind a pooler."""

import logging
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeAlias

import anyio
import asyncpg

from services.environments_store.database.failures import TOO_MANY_CONNECTIONS, StatementFailure
from services.environments_store.database.location import read_location
from services.environments_store.database.postgres_session import Connection, Server, connect, driver_failures, probe
from services.environments_store.database.semaphore import TimedSemaphore
from services.environments_store.defaults import DatabaseSettings
from services.environments_store.schema.names import counted

__all__ = ["Pool", "Pooled", "Shares", "make_pool"]

logger = logging.getLogger(__name__)

# Text, because these classes take a parameter in their stubs only.
Place: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Pooled: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"

FIRST_CHECKING_VERSION = 140000
"""client_connection_check_interval exists from PostgreSQL 14 on."""
NOT_OF_THE_POOL = 2
"""Of the connections that a role may have: one is for the migration and for commands, one says that a node serves."""


class Shares:
    """How the connections of a pool are divided.

    Writes may hang, as without a synchronous standby, and exports last as long as their readers like: reads keep
    connections that neither takes, and writes some that exports leave.
    """

    def __init__(self, size: int, settings: DatabaseSettings) -> None:
        left = min(settings.left_to_others, max(1, size // 4))
        timeout_s = settings.acquire_timeout_s
        self._slow = TimedSemaphore(size - left, timeout_s, "waiting writes or unread exports may hold them")
        self._paced = TimedSemaphore(size - 2 * left, timeout_s, "unread exports may hold them")

    @asynccontextmanager
    async def write(self) -> AsyncGenerator[None]:
        """Hold one of the connections that writes may use. Raises StatementFailure when none becomes free in time."""
        async with self._slow.hold():
            yield

    @asynccontextmanager
    async def export(self) -> AsyncGenerator[None]:
        """The same for an export."""
        async with self._paced.hold(), self._slow.hold():
            yield


class Pool:
    """At most `size` connections. Where the server allows fewer, those that it gives are shared, and callers wait.

    Each is a pool of asyncpg's with a single connection, which that makes when needed and closes when idle. One pool of
    several hands out the place that was returned last, connected or not: a caller may get the error of a connection
    that the server refuses while another connection is idle.
    """

    def __init__(self, places: list[Place], settings: DatabaseSettings, on_full: Callable[[], None]) -> None:
        self.size = len(places)
        self.shares = Shares(self.size, settings)
        self._places = places
        self._free = list(places)  # connected ones last
        self._turns = anyio.Semaphore(self.size, fast_acquire=True)
        self._settings = settings
        self._on_full = on_full
        self._full_until = -math.inf
        self._returned = anyio.Event()
        self._waiting = 0

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Pooled]:
        """One of them. Raises StatementFailure when none becomes free in time."""
        try:
            with anyio.fail_after(self._settings.acquire_timeout_s):
                await self._turns.acquire()
                try:
                    place, connection = await self._take()
                except BaseException:
                    self._turns.release()
                    raise
        except TimeoutError:
            why = ": the server allows no more connections" if math.isfinite(self._full_until) else ""
            message = f"no connection became free in time{why}"
            raise StatementFailure(message, sent=False, timed_out=True) from None
        try:
            yield connection
        finally:
            await self._release(place, connection)
            self._return(place)
            self._turns.release()

    async def expire(self) -> None:
        """Have every connection replaced before its next use."""
        for place in self._places:
            await place.expire_connections()

    async def close(self) -> None:
        """Wait for the statements that run, for a bounded time."""
        with anyio.move_on_after(self._settings.acquire_timeout_s, shield=True) as scope:
            for place in self._places:
                with suppress(StatementFailure), driver_failures():
                    await place.close()
        if scope.cancelled_caught:
            for place in self._places:
                place.terminate()

    async def _take(self) -> tuple[Place, Pooled]:
        while True:
            place = self._choose()
            if place is None:
                await self._wait()
                continue
            try:
                with driver_failures(sent=False):
                    connection = await place.acquire()
            except StatementFailure as failure:
                self._return(place)
                if failure.sqlstate != TOO_MANY_CONNECTIONS:
                    raise
                self._note_full(failure)
            except BaseException:
                self._return(place)
                raise
            else:
                return place, connection

    def _choose(self) -> "Place | None":
        """A connected place, or one to connect; None while the server allows no more connections."""
        for position in reversed(range(len(self._free))):
            if self._free[position].get_size():
                return self._free.pop(position)
        now = anyio.current_time()
        if now < self._full_until:
            return None
        if math.isfinite(self._full_until):  # one attempt at a time: each costs the server a process
            self._full_until = now + self._settings.full_pause_s
        return self._free.pop(0)

    def _note_full(self, failure: StatementFailure) -> None:
        if not math.isfinite(self._full_until):
            logger.warning(
                "The server allows no more connections (%s): calls share the %d that this node has. DATABASE_POOL_SIZE"
                " bounds what a node asks for",
                failure,
                self._connected(),
            )
        self._full_until = anyio.current_time() + self._settings.full_pause_s
        if not self._connected():
            self._on_full()

    def _connected(self) -> int:
        return sum(place.get_size() for place in self._places)

    async def _wait(self) -> None:
        """Until a connection is returned, or it is time to ask the server again."""
        self._waiting += 1
        try:
            with anyio.move_on_at(self._full_until):
                await self._returned.wait()
        finally:
            self._waiting -= 1

    def _return(self, place: Place) -> None:
        self._free.insert(len(self._free) if place.get_size() else 0, place)
        if self._waiting:
            self._returned.set()
            self._returned = anyio.Event()

    async def _release(self, place: Place, connection: Pooled) -> None:
        """asyncpg drops a connection that is broken; that must not hide what the statement answered."""
        with anyio.CancelScope(shield=True):
            try:
                with driver_failures():
                    await place.release(connection, timeout=self._settings.acquire_timeout_s)
            except StatementFailure as failure:
                logger.debug("A broken connection left the pool: %s", failure)


async def make_pool(url: str, settings: DatabaseSettings, on_full: Callable[[], None]) -> Pool:
    """Look at the server once, then make a pool that suits it. Raises StatementFailure when it cannot be reached; a
    server that allows no more connections is asked again until the caller gives up.

    `on_full` is called when the server allows the pool no connection at all.
    """
    timeout_s = settings.connect_timeout_s
    while True:
        try:
            connection, attribute = await connect(url, application_name=settings.application_name, timeout_s=timeout_s)
            break
        except StatementFailure as failure:
            if failure.sqlstate != TOO_MANY_CONNECTIONS:
                raise
        on_full()
        await anyio.sleep(settings.full_pause_s)
    try:
        server = await probe(connection, timeout_s)
        server_settings = await _server_settings(connection, settings, server)
    finally:
        await _close(connection, timeout_s)
    if server.pooled:
        logger.info("A transaction pooler stands before the database: prepared statements are not kept")
    places = [
        await asyncpg.create_pool(
            read_location(url).dsn,
            min_size=0,
            max_size=1,
            timeout=timeout_s,
            command_timeout=settings.command_timeout_s,
            server_settings=server_settings,
            # asyncpg's own default where statements may be kept.
            statement_cache_size=0 if server.pooled else 100,
            target_session_attrs=attribute,
            # No statement of ours changes a session, so giving a connection back needs no round trip.
            reset=_keep_session,
        )
        for _ in range(_size(server, settings))
    ]
    return Pool(places, settings, on_full)


def _size(server: Server, settings: DatabaseSettings) -> int:
    if server.connection_limit is None or settings.pool_size + NOT_OF_THE_POOL <= server.connection_limit:
        return settings.pool_size
    size = max(1, server.connection_limit - NOT_OF_THE_POOL)
    logger.warning(
        "The role or the database allows %s: the pool has %d instead of %d (DATABASE_POOL_SIZE)",
        counted(server.connection_limit, "connection", "connections"),
        size,
        settings.pool_size,
    )
    return size


async def _server_settings(connection: Connection, settings: DatabaseSettings, server: Server) -> dict[str, str]:
    """What a connection asks for at start-up: a pooler refuses all but the first two."""
    asked = {"TimeZone": "UTC", "application_name": settings.application_name}
    if server.pooled:
        return asked
    # Each write is one statement that waits for another's and then sees its work: in a role's own REPEATABLE READ or
    # SERIALIZABLE one of two writers would be refused.
    asked["default_transaction_isolation"] = "read committed"
    asked["statement_timeout"] = _milliseconds(settings.statement_timeout_s)
    asked["lock_timeout"] = _milliseconds(settings.lock_timeout_s)
    asked["idle_in_transaction_session_timeout"] = _milliseconds(settings.idle_in_transaction_timeout_s)
    interval = _milliseconds(settings.connection_check_interval_s)
    if server.version >= FIRST_CHECKING_VERSION and await _accepts(connection, interval):
        asked["client_connection_check_interval"] = interval
    return asked


async def _accepts(connection: Connection, interval: str) -> bool:
    """Some systems that PostgreSQL runs on cannot watch a socket, and refuse the setting."""
    try:
        with driver_failures():
            await connection.execute(f"SET client_connection_check_interval = {interval}")
    except StatementFailure:
        return False
    return True


async def _close(connection: Connection, timeout_s: float) -> None:
    with anyio.CancelScope(shield=True):
        try:
            with driver_failures():
                await connection.close(timeout=timeout_s)
        except StatementFailure:
            connection.terminate()


async def _keep_session(_: object) -> None:
    return None


def _milliseconds(seconds: float) -> str:
    return str(int(seconds * 1000))
