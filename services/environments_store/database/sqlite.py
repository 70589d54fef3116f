"""A SQLite file as the service's database: one connection writes, several read."""

import logging
import random
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path

import aiosqlite
import anyio
import anyio.to_thread

from services.environments_store.database.base import Dialect, Documents, Queries, Row
from services.environments_store.database.failures import StatementFailure, service_error, service_errors
from services.environments_store.database.large import WholeRow, alone_when_large
from services.environments_store.database.semaphore import TimedSemaphore
from services.environments_store.database.sqlite_connection import bind, close_quietly, connect, file_failures
from services.environments_store.database.sqlite_guarded import GuardedConnection
from services.environments_store.database.sqlite_place import FilePlace
from services.environments_store.database.statements import changes_rows, is_read
from services.environments_store.defaults import DatabaseSettings

__all__ = ["SqliteDatabase"]

logger = logging.getLogger(__name__)


class SqliteDatabase:
    """A `Database` on one file.

    Writes go one after another through one connection; reads have their own, so in WAL mode, which `open` asks for,
    neither waits for the other. SQLite tells the end of every write, so its outcome is never unknown.
    """

    dialect: Dialect = "sqlite"

    def __init__(self, path: Path, settings: DatabaseSettings, *, read_only: bool = False) -> None:
        self._path = path
        self._settings = settings
        self._read_only = read_only
        self.on_full: Callable[[], None] = lambda: None
        self._writer: GuardedConnection | None = None
        self._writing = anyio.Lock()
        self._idle: list[GuardedConnection] = []
        self._readers: list[GuardedConnection] = []
        self._reading = anyio.Semaphore(settings.reader_count)
        # A stream keeps its reader for longer than a statement: one reader is always left for the others.
        count, timeout_s = settings.reader_count, settings.acquire_timeout_s
        self._streaming = TimedSemaphore(count - 1, timeout_s, "unread lists and exports may hold them")
        self._pacing = TimedSemaphore(count - settings.left_to_others, timeout_s, "unread exports may hold them")

    async def open(self) -> None:
        if self._writer is not None:
            return
        try:
            if not self._read_only:
                with file_failures(self._path):
                    self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = await self._connect("ro" if self._read_only else "rwc")
            if not self._read_only:
                await self._go_to_wal(self._writer)
        except StatementFailure as failure:
            await self.close()
            raise service_error(failure, write=False) from failure

    async def close(self) -> None:
        connections = [*self._readers, *([self._writer] if self._writer else [])]
        self._writer = None
        self._readers, self._idle = [], []
        for connection in connections:
            await close_quietly(connection)

    async def fetch(self, query: str, *arguments: object) -> Sequence[Row]:
        if is_read(query):
            with service_errors(write=False):
                async with self._reader() as reader:
                    return await self._read(reader, query, arguments)
        async with self._exclusive() as writer:
            if changes_rows(query):
                return (await self._change_rows(writer, query, arguments))[0]
            return await _Transaction(writer, self._path).fetch(query, *arguments)

    async def fetch_one(self, query: str, *arguments: object) -> Row | None:
        rows = await self.fetch(query, *arguments)
        return rows[0] if rows else None

    async def execute(self, query: str, *arguments: object) -> int:
        async with self._exclusive() as writer:
            if changes_rows(query):
                return (await self._change_rows(writer, query, arguments))[1]
            return await _Transaction(writer, self._path).execute(query, *arguments)

    def transaction(self) -> AbstractAsyncContextManager[Queries]:
        return self._transaction()

    def stream(
        self, query: str, *arguments: object, batch: int, paced: bool = False, documents: Documents | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[Sequence[Row]]]:
        return self._stream(query, arguments, batch, self._pacing if paced else self._streaming, documents)

    async def refresh(self) -> None:
        """Nothing to forget: SQLite itself prepares a statement again when the schema has changed."""

    @asynccontextmanager
    async def _transaction(self) -> AsyncGenerator[Queries]:
        async with self._exclusive() as writer:
            transaction = _Transaction(writer, self._path)
            try:
                await transaction.begin()
                yield transaction
                with anyio.CancelScope(shield=True):  # it may be done whatever becomes of the caller, who has to know
                    await transaction.commit()
            except BaseException:
                await _roll_back(writer)
                raise

    @asynccontextmanager
    async def _stream(
        self, query: str, arguments: tuple[object, ...], batch: int, slots: TimedSemaphore, documents: Documents | None
    ) -> AsyncGenerator[AsyncIterator[Sequence[Row]]]:
        with service_errors(write=False):
            async with slots, self._reader() as reader:
                try:
                    with file_failures(self._path):
                        if self._read_only:
                            await reader.execute("BEGIN")
                        else:
                            await reader.begin("DEFERRED")
                        cursor = await reader.execute(
                            f"SELECT id FROM ({query})" if documents else query, bind(arguments)
                        )
                    try:
                        rows = _batches(cursor, self._path, batch)
                        if documents is not None:
                            alone = documents.alone
                            rows = self._with_documents(rows, reader, documents)
                            rows = alone_when_large(rows, lambda row: self._read_alone(reader, alone, row))
                        async with aclosing(rows) as batches:
                            yield batches
                    finally:
                        with anyio.CancelScope(shield=True), file_failures(self._path):
                            await cursor.close()
                finally:
                    await _roll_back(reader)

    async def _read(self, reader: GuardedConnection, query: str, arguments: tuple[object, ...]) -> Sequence[Row]:
        """A file that is only read is taken as it is: this process could not repair what a killed original left."""
        with file_failures(self._path):
            return await reader.read(query, bind(arguments), surely=not self._read_only)

    async def _with_documents(
        self, batches: AsyncGenerator[Sequence[Row]], reader: GuardedConnection, documents: Documents
    ) -> AsyncGenerator[Sequence[Row]]:
        """The rows of batches of ids, in their order."""
        assert documents.together is not None
        async with aclosing(batches):
            async for some in batches:
                ids = [row["id"] for row in some]
                query = documents.together.format(", ".join(f"${number}" for number in range(1, len(ids) + 1)))
                found: dict[object, list[Row]] = {}
                with service_errors(write=False), file_failures(self._path):
                    for row in await reader.execute_fetchall(query, bind(ids)):
                        found.setdefault(row["id"], []).append(row)
                yield [row for id in ids for row in found.pop(id, ())]

    async def _read_alone(self, reader: GuardedConnection, query: str, row: Row) -> Sequence[Row]:
        with service_errors(write=False), file_failures(self._path):
            document = await reader.read_document(row["id"])
            if document is not None:
                return [WholeRow(row, document)]
            return list(await reader.execute_fetchall(query, bind((row["id"],))))

    async def _change_rows(
        self, writer: GuardedConnection, query: str, arguments: tuple[object, ...]
    ) -> tuple[Sequence[Row], int]:
        with service_errors(write=True), file_failures(self._path):
            return await writer.change_rows(query, bind(arguments))

    @asynccontextmanager
    async def _exclusive(self) -> AsyncGenerator[GuardedConnection]:
        async with self._writing:
            if self._writer is None:
                raise service_error(StatementFailure(f"'{self._path}' is not open", sent=False), write=False)
            yield self._writer

    @asynccontextmanager
    async def _reader(self) -> AsyncGenerator[GuardedConnection]:
        async with self._reading:
            if self._writer is None:
                raise StatementFailure(f"'{self._path}' is not open", sent=False)
            reader = self._idle.pop() if self._idle else await self._connect_reader(self._writer.place)
            try:
                yield reader
            finally:
                if reader in self._readers:
                    self._idle.append(reader)

    async def _connect_reader(self, place: FilePlace) -> GuardedConnection:
        await anyio.to_thread.run_sync(place.check)
        # Not mode=ro: reading in WAL mode writes to the shared memory file beside the database.
        reader = await self._connect("ro" if self._read_only else "rw")
        self._readers.append(reader)
        with file_failures(self._path):
            await reader.execute_fetchall("PRAGMA query_only = ON")
        return reader

    async def _connect(self, mode: str) -> GuardedConnection:
        return await connect(self._path, mode=mode, busy_timeout_s=self._settings.sqlite_busy_timeout_s)

    async def _go_to_wal(self, writer: GuardedConnection) -> None:
        """Ask for WAL, which stays in the file. It needs a moment alone; without one the file stays as it is."""
        reason = "its file system cannot share memory between processes"
        with anyio.move_on_after(self._settings.sqlite_wal_timeout_s):
            while True:
                try:
                    with file_failures(self._path):
                        rows = list(await writer.execute_fetchall("PRAGMA journal_mode = WAL"))
                    if rows[0][0] == "wal":
                        return
                    break
                except StatementFailure as failure:
                    reason = failure.message
                    if not (failure.sqlstate or "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
                        break
                    await anyio.sleep(random.uniform(0.05, 0.2))  # jitter between processes, no secret
        logger.warning(
            "'%s' stays in its journal mode, where readers and the writer wait for each other: %s", self._path, reason
        )


class _Transaction:
    """Statements on the writing connection, inside a transaction or each committing by itself."""

    def __init__(self, connection: GuardedConnection, path: Path) -> None:
        self._connection = connection
        self._path = path

    async def begin(self) -> None:
        with service_errors(write=True), file_failures(self._path):
            await self._connection.begin("IMMEDIATE")

    async def commit(self) -> None:
        with service_errors(write=True), file_failures(self._path):
            await self._connection.commit_in_place()

    async def fetch(self, query: str, *arguments: object) -> Sequence[Row]:
        with service_errors(write=True), file_failures(self._path):
            return list(await self._connection.execute_fetchall(query, bind(arguments)))

    async def fetch_one(self, query: str, *arguments: object) -> Row | None:
        rows = await self.fetch(query, *arguments)
        return rows[0] if rows else None

    async def execute(self, query: str, *arguments: object) -> int:
        with service_errors(write=True), file_failures(self._path):
            async with self._connection.execute(query, bind(arguments)) as cursor:
                return max(0, cursor.rowcount)


async def _batches(cursor: aiosqlite.Cursor, path: Path, batch: int) -> AsyncGenerator[Sequence[Row]]:
    while True:
        with service_errors(write=False), file_failures(path):
            rows = list(await cursor.fetchmany(batch))
        if not rows:
            return
        yield rows


async def _roll_back(connection: GuardedConnection) -> None:
    """Roll back also while being cancelled: a BEGIN that is still waiting in its thread may yet succeed."""
    with anyio.CancelScope(shield=True):
        try:
            await connection.rollback()
        except (sqlite3.Error, ValueError):
            logger.debug("SQLite had rolled back by itself")
