"""How the pool of PostgreSQL connections is made: with which settings, and what changes behind a pooler."""

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TypeAlias

import anyio
import asyncpg

from services.environments_store.database.failures import StatementFailure
from services.environments_store.database.location import read_location
from services.environments_store.database.postgres_session import Connection, connect, driver_failures, probe
from services.environments_store.database.turns import Turns
from services.environments_store.defaults import DatabaseSettings

__all__ = ["Pool", "Pooled", "Shares", "make_pool"]

logger = logging.getLogger(__name__)

# Text, because these classes take a parameter in their stubs only.
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Pooled: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"

FIRST_CHECKING_VERSION = 140000
"""client_connection_check_interval exists from PostgreSQL 14 on."""


class Shares:
    """How the connections of a pool are divided.

    Writes may hang, as without a synchronous standby, and exports last as long as their readers like: reads keep
    connections that neither takes, and writes some that exports leave.
    """

    def __init__(self, settings: DatabaseSettings) -> None:
        size = settings.pool_size
        left = min(settings.left_to_others, max(1, size // 4))
        timeout_s = settings.acquire_timeout_s
        self._slow = Turns(size - left, timeout_s, "writes that wait, or exports without a reader, may hold them")
        self._paced = Turns(size - 2 * left, timeout_s, "exports without a reader may hold them")

    @asynccontextmanager
    async def write(self) -> AsyncGenerator[None]:
        """Hold one of the connections that writes may use. Raises StatementFailure when none becomes free in time."""
        async with self._slow.one():
            yield

    @asynccontextmanager
    async def export(self) -> AsyncGenerator[None]:
        """The same for an export."""
        async with self._paced.one(), self._slow.one():
            yield


async def make_pool(url: str, settings: DatabaseSettings) -> Pool:
    """Look at the server once, then make a pool that suits it. Raises StatementFailure when it cannot be reached."""
    timeout_s = settings.connect_timeout_s
    connection, attribute = await connect(url, application_name=settings.application_name, timeout_s=timeout_s)
    try:
        pooled, version = await probe(connection, timeout_s)
        server_settings = await _server_settings(connection, settings, pooled=pooled, version=version)
    finally:
        await _close(connection, timeout_s)
    if pooled:
        logger.info("A transaction pooler stands before the database: prepared statements are not kept")
    pool: Pool = await asyncpg.create_pool(
        read_location(url).dsn,
        min_size=0,
        max_size=settings.pool_size,
        timeout=timeout_s,
        command_timeout=settings.command_timeout_s,
        server_settings=server_settings,
        # asyncpg's own default where statements may be kept.
        statement_cache_size=0 if pooled else 100,
        target_session_attrs=attribute,
        # No statement of ours changes a session, so giving a connection back needs no round trip.
        reset=_keep_session,
    )
    return pool


async def _server_settings(
    connection: Connection, settings: DatabaseSettings, *, pooled: bool, version: int
) -> dict[str, str]:
    """What a connection asks for at start-up: a pooler refuses all but the first two."""
    asked = {"TimeZone": "UTC", "application_name": settings.application_name}
    if pooled:
        return asked
    # Each write is one statement that waits for another's and then sees its work: in a role's own REPEATABLE READ or
    # SERIALIZABLE one of two writers would be refused.
    asked["default_transaction_isolation"] = "read committed"
    asked["statement_timeout"] = _milliseconds(settings.statement_timeout_s)
    asked["lock_timeout"] = _milliseconds(settings.lock_timeout_s)
    asked["idle_in_transaction_session_timeout"] = _milliseconds(settings.idle_in_transaction_timeout_s)
    interval = _milliseconds(settings.connection_check_interval_s)
    if version >= FIRST_CHECKING_VERSION and await _accepts(connection, interval):
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
