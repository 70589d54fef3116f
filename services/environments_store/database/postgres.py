"""The serving pool of PostgreSQL connections."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any, TypeVar

import anyio

from services.environments_store.database.base import Dialect, Documents, Queries, Row
from services.environments_store.database.failures import StatementFailure, service_errors
from services.environments_store.database.large import alone_when_large
from services.environments_store.database.location import read_location
from services.environments_store.database.postgres_pool import Pool, Pooled, make_pool
from services.environments_store.database.postgres_session import driver_failures
from services.environments_store.database.statements import is_read, touched_rows
from services.environments_store.defaults import DatabaseSettings

__all__ = ["PostgresDatabase"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


class PostgresDatabase:
    """A `Database` on PostgreSQL, direct or through a transaction pooler.

    Connections are made when they are needed, so a server that is away costs errors, not the service: the next query
    after its return works.
    """

    dialect: Dialect = "postgresql"

    def __init__(self, url: str, settings: DatabaseSettings) -> None:
        self._url = url
        self._several_hosts = read_location(url).several_hosts
        self._settings = settings
        self._pool: Pool | None = None
        self._pool_lock = anyio.Lock()
        self.on_full: Callable[[], None] = lambda: None
        self._closed = False

    async def open(self) -> None:
        self._closed = False

    async def close(self) -> None:
        self._closed = True
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    async def fetch(self, query: str, *arguments: object) -> Sequence[Row]:
        rows: Sequence[Row] = await self._run(query, lambda connection: connection.fetch(query, *arguments))
        return rows

    async def fetch_one(self, query: str, *arguments: object) -> Row | None:
        row: Row | None = await self._run(query, lambda connection: connection.fetchrow(query, *arguments))
        return row

    async def execute(self, query: str, *arguments: object) -> int:
        return touched_rows(await self._run(query, lambda connection: connection.execute(query, *arguments)))

    def transaction(self) -> AbstractAsyncContextManager[Queries]:
        return self._transaction()

    def stream(
        self, query: str, *arguments: object, batch: int, paced: bool = False, documents: Documents | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[Sequence[Row]]]:
        stream = self._paced_stream if paced else self._stream
        return stream(query, arguments, batch, documents)

    async def refresh(self) -> None:
        pool = self._pool
        if pool is None:
            return
        await pool.expire()
        if self._several_hosts:
            # Another host may be the one that takes writes now: the next query looks for it.
            self._pool = None
            await pool.close()

    async def _run(self, query: str, operation: Callable[[Pooled], Awaitable[T]]) -> T:
        """Run one statement that commits by itself; a read whose connection was lost runs once more."""
        write = not is_read(query)
        with service_errors(write=write):
            if write:
                async with (self._pool or await self._get_pool()).shares.writes:
                    return await (self._pool or await self._get_pool()).run(operation)
            try:
                return await (self._pool or await self._get_pool()).run(operation)
            except StatementFailure as failure:
                if not failure.lost or failure.timed_out or not failure.sent:
                    raise
            return await (await self._get_pool()).run(operation)

    @asynccontextmanager
    async def _transaction(self) -> AsyncGenerator[Queries]:
        # For BEGIN and COMMIT; failures of what the block runs are translated where they happen.
        with service_errors(write=True):
            async with (await self._get_pool()).shares.writes, self._connection() as connection:
                with driver_failures(sent=False):
                    transaction = connection.transaction()
                    await transaction.start()
                try:
                    yield _Transaction(connection)
                except BaseException:
                    await _roll_back(transaction)
                    raise
                # It may be done whatever becomes of the caller, who has to know. `command_timeout_s` bounds it.
                with anyio.CancelScope(shield=True), driver_failures():
                    await transaction.commit()

    @asynccontextmanager
    async def _paced_stream(
        self, query: str, arguments: tuple[object, ...], batch: int, documents: Documents | None
    ) -> AsyncGenerator[AsyncIterator[Sequence[Row]]]:
        with service_errors(write=False):
            shares = (await self._get_pool()).shares
            async with shares.export(), self._stream(query, arguments, batch, documents) as batches:
                yield batches

    @asynccontextmanager
    async def _stream(
        self, query: str, arguments: tuple[object, ...], batch: int, documents: Documents | None
    ) -> AsyncGenerator[AsyncIterator[Sequence[Row]]]:
        with service_errors(write=False):
            async with self._connection() as connection:
                with driver_failures():
                    # What `large` gets is to be of the same snapshot as the rows.
                    transaction = connection.transaction(isolation="repeatable_read", readonly=True)
                    await transaction.start()
                try:
                    with driver_failures():
                        idle = int(self._settings.stream_idle_timeout_s * 1000)
                        await connection.execute(f"SET LOCAL idle_in_transaction_session_timeout = {idle}")
                        # Without a name of its own where statements are not kept: behind a pooler one outlives its
                        # client, and every process counts its names from 1. `connection.cursor` always gives a name.
                        statement = await connection.prepare(query)
                        cursor = await statement.cursor(*arguments)
                    rows = _batches(cursor, batch)
                    if documents is not None:
                        alone = documents.alone
                        rows = alone_when_large(rows, lambda row: _Transaction(connection).fetch(alone, row["id"]))
                    async with aclosing(rows) as batches:
                        yield batches
                finally:
                    await _roll_back(transaction)

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[Pooled]:
        async with (await self._get_pool()).connection() as connection:
            yield connection

    async def _get_pool(self) -> Pool:
        if self._pool is None and not self._closed:
            try:
                with anyio.fail_after(self._settings.connect_timeout_s + self._settings.acquire_timeout_s):
                    async with self._pool_lock:
                        if self._pool is None:
                            self._pool = await make_pool(self._url, self._settings, lambda: self.on_full())
            except TimeoutError:
                raise StatementFailure("no connection in time", sent=False, timed_out=True) from None
        if self._pool is None or self._closed:
            await self.close()  # it may have been closed while the pool was made
            raise StatementFailure("the pool is closed", sent=False)
        return self._pool


class _Transaction:
    """The statements of one transaction. A lost connection here stored nothing: COMMIT was never sent."""

    def __init__(self, connection: Pooled) -> None:
        self._connection = connection

    async def fetch(self, query: str, *arguments: object) -> Sequence[Row]:
        rows: Sequence[Row] = await self._run(lambda connection: connection.fetch(query, *arguments))
        return rows

    async def fetch_one(self, query: str, *arguments: object) -> Row | None:
        row: Row | None = await self._run(lambda connection: connection.fetchrow(query, *arguments))
        return row

    async def execute(self, query: str, *arguments: object) -> int:
        return touched_rows(await self._run(lambda connection: connection.execute(query, *arguments)))

    async def _run(self, operation: Callable[[Pooled], Awaitable[T]]) -> T:
        # A connection that has ended refuses the call itself, before there is anything to await.
        with service_errors(write=False), driver_failures():
            return await operation(self._connection)


async def _batches(cursor: Any, batch: int) -> AsyncGenerator[Sequence[Row]]:
    while True:
        with service_errors(write=False), driver_failures():
            rows: Sequence[Row] = await cursor.fetch(batch)
        if not rows:
            return
        yield rows


async def _roll_back(transaction: Any) -> None:
    """Roll back also while being cancelled. A lost connection has rolled back already."""
    with anyio.CancelScope(shield=True):
        try:
            with driver_failures():
                await transaction.rollback()
        except StatementFailure:
            logger.debug("The connection was lost before the rollback, which PostgreSQL then does itself")
