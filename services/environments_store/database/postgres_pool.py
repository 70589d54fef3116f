"""The pool of PostgreSQL connections: how many, with which settings, and what changes behind a pooler."""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeAlias, TypeVar

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

T = TypeVar("T")

# Text, because these classes take a parameter in their stubs only.
AsyncpgPool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
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
        self.writes = TimedSemaphore(size - left, timeout_s, "waiting writes or unread exports may hold them")
        self._paced = TimedSemaphore(size - 2 * left, timeout_s, "unread exports may hold them")

    @asynccontextmanager
    async def export(self) -> AsyncGenerator[None]:
        """Hold one of the connections that exports may use. Raises StatementFailure when none becomes free in time."""
        async with self._paced, self.writes:
            yield


class Place:
    """One connection, made when it is needed. A pool of asyncpg's with a single connection makes it, replaces it when
    it is expired or worn, and closes it; between statements that pool counts it as taken, which spares each statement
    the two visits."""

    def __init__(self, pool: AsyncpgPool, settings: DatabaseSettings) -> None:
        self._pool = pool
        self._settings = settings
        self._connection: Pooled | None = None
        self._uses_left = 0
        self.used_at = 0.0

    @property
    def connection(self) -> Pooled:
        assert self._connection is not None, "it has been taken"
        return self._connection

    @property
    def connected(self) -> bool:
        return self._pool.get_size() > 0

    async def take(self) -> None:
        """Raises StatementFailure when it cannot connect."""
        with driver_failures(sent=False):
            self._connection = await self._pool.acquire()
        self._uses_left = self._settings.statements_between_releases

    def take_again(self) -> bool:
        """Whether the connection that was kept can be used; one that has ended meanwhile is let go."""
        try:
            if not self.connection.is_closed():
                return True
        except asyncpg.InterfaceError:  # asyncpg has noticed, and taken it back
            pass
        self.terminate()
        return False

    def keep(self, now: float) -> bool:
        """After a statement that was done: whether the connection stays as it is until the next one."""
        self.used_at = now
        self._uses_left -= 1
        return self._uses_left > 0

    async def release(self) -> None:
        """Give the connection back to asyncpg, which waits for the end of what was cancelled, and drops a connection
        that is broken; that must not hide what the statement answered."""
        connection, self._connection = self.connection, None
        with anyio.CancelScope(shield=True):
            try:
                with driver_failures():
                    await self._pool.release(connection, timeout=self._settings.acquire_timeout_s)
            except StatementFailure as failure:
                logger.debug("A broken connection left the pool: %s", failure)

    def terminate(self) -> None:
        """End the connection that was kept."""
        connection, self._connection = self.connection, None
        with suppress(asyncpg.InterfaceError):
            connection.terminate()

    async def expire(self) -> None:
        """Have asyncpg replace the connection before its next use."""
        self._uses_left = 0
        await self._pool.expire_connections()

    async def close(self) -> None:
        with suppress(StatementFailure), driver_failures():
            await self._pool.close()

    def abandon(self) -> None:
        self._pool.terminate()


class Pool:
    """At most `size` connections. Where the server allows fewer, those that it gives are shared, and callers wait.

    Each has a place of its own. One pool of asyncpg's for all of them hands out the place that was returned last,
    connected or not: a caller may get the error of a connection that the server refuses while another one is idle.
    """

    def __init__(self, places: list[Place], settings: DatabaseSettings, on_full: Callable[[], None]) -> None:
        self.size = len(places)
        self.shares = Shares(self.size, settings)
        self._places = places
        self._free = list(places)  # connected ones last
        self._kept: list[Place] = []  # the one that was used last at the end
        self._turns = TimedSemaphore(self.size, settings.acquire_timeout_s)
        self._settings = settings
        self._on_full = on_full
        self._full_until = -math.inf
        self._returned = anyio.Event()
        self._waiting = 0
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._idle_check: asyncio.TimerHandle | None = None

    async def run(self, statement: Callable[[Pooled], Awaitable[T]]) -> T:
        """Run one statement that leaves nothing behind: its connection is kept as it is for the next. Raises
        StatementFailure."""
        place = self._take_kept() or await self._take()
        try:
            with driver_failures():
                result = await statement(place.connection)
        except BaseException:
            await self._release(place)
            raise
        now = self._loop.time()
        if self._closed or not place.keep(now):
            await self._release(place)
            return result
        self._kept.append(place)
        if self._idle_check is None:
            self._idle_check = self._loop.call_at(now + self._settings.idle_s, self._close_idle)
        self._notify()
        self._turns.release()
        return result

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Pooled]:
        """One connection for several statements. Raises StatementFailure when none becomes free in time."""
        place = self._take_kept() or await self._take()
        try:
            yield place.connection
        finally:
            await self._release(place)

    async def expire(self) -> None:
        """Have every connection replaced before its next use."""
        await self._release_kept()
        for place in self._places:
            await place.expire()

    async def close(self) -> None:
        """Wait for the statements that run, for a bounded time."""
        self._closed = True
        if self._idle_check is not None:
            self._idle_check.cancel()
        with anyio.move_on_after(self._settings.acquire_timeout_s, shield=True) as scope:
            await self._release_kept()
            for place in self._places:
                await place.close()
        if scope.cancelled_caught:
            for place in self._places:
                place.abandon()

    def _take_kept(self) -> Place | None:
        """A connection that is ready, without a timer or a wait: the usual case. None when there is none."""
        if not self._kept or not self._turns.try_acquire():
            return None
        place = self._pop_kept()
        if place is None:
            self._turns.release()
        return place

    def _pop_kept(self) -> Place | None:
        while self._kept:
            place = self._kept.pop()
            if place.take_again():
                return place
            self._free.insert(0, place)
        return None

    async def _take(self) -> Place:
        deadline = self._loop.time() + self._settings.acquire_timeout_s
        if await self._turns.acquire():
            try:
                kept = self._pop_kept()
                if kept is not None:
                    return kept
                with anyio.CancelScope(deadline=deadline):
                    return await self._take_in_turn()
            except BaseException:
                self._turns.release()
                raise
            self._turns.release()
        why = ": the server allows no more connections" if math.isfinite(self._full_until) else ""
        raise StatementFailure(f"no connection became free in time{why}", sent=False, timed_out=True)

    async def _take_in_turn(self) -> Place:
        while True:
            kept = self._pop_kept()
            if kept is not None:
                return kept
            place = self._choose()
            if place is None:
                await self._wait()
                continue
            try:
                await place.take()
            except StatementFailure as failure:
                self._return(place)
                if failure.sqlstate != TOO_MANY_CONNECTIONS:
                    raise
                self._note_full(failure)
            except BaseException:
                self._return(place)
                raise
            else:
                return place

    def _choose(self) -> Place | None:
        """A connected place, or one to connect; None while the server allows no more connections."""
        for position in reversed(range(len(self._free))):
            if self._free[position].connected:
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
        return sum(place.connected for place in self._places)

    async def _wait(self) -> None:
        """Until a connection is returned, or it is time to ask the server again."""
        self._waiting += 1
        try:
            with anyio.move_on_at(self._full_until):
                await self._returned.wait()
        finally:
            self._waiting -= 1

    async def _release(self, place: Place) -> None:
        await place.release()
        self._return(place)
        self._turns.release()

    async def _release_kept(self) -> None:
        while self._kept:
            place = self._kept.pop()
            await place.release()
            self._return(place)

    def _return(self, place: Place) -> None:
        self._free.insert(len(self._free) if place.connected else 0, place)
        self._notify()

    def _notify(self) -> None:
        if self._waiting:
            self._returned.set()
            self._returned = anyio.Event()

    def _close_idle(self) -> None:
        """Close what was not used for long, as asyncpg does with what it has itself, and look again in time."""
        self._idle_check = None
        since = self._loop.time() - self._settings.idle_s
        while self._kept and self._kept[0].used_at <= since:
            place = self._kept.pop(0)
            place.terminate()
            self._return(place)
        if self._kept:
            next_at = self._kept[0].used_at + self._settings.idle_s
            self._idle_check = self._loop.call_at(next_at, self._close_idle)


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
        logger.info("The database is behind a transaction pooler: prepared statements are not cached")
    pools = [
        await asyncpg.create_pool(
            read_location(url).dsn,
            min_size=0,
            max_size=1,
            timeout=timeout_s,
            command_timeout=settings.command_timeout_s,
            max_inactive_connection_lifetime=settings.idle_s,
            server_settings=server_settings,
            # asyncpg's own default where statements may be kept.
            statement_cache_size=0 if server.pooled else 100,
            target_session_attrs=attribute,
            # No statement of ours changes a session, so giving a connection back needs no round trip.
            reset=_keep_session,
        )
        for _ in range(_size(server, settings))
    ]
    return Pool([Place(pool, settings) for pool in pools], settings, on_full)


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
