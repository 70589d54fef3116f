"""A connection that is guarded against an original that rebuilds its tables at its start.

The original copies the table to `environments_backup`, drops it, creates it again and copies the rows back, for each
column and without a transaction. A write beside that backup is dropped with the table, and the new table is empty for a
moment. While there is a backup, writes, and reads of an empty table, therefore fail with a retryable error.
"""

import sqlite3
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite
import anyio

from services.environments_store.database.failures import REBUILT, StatementFailure
from services.environments_store.database.sqlite_place import FilePlace
from services.environments_store.schema.names import TABLE, backup_name

__all__ = ["GuardedConnection"]

T = TypeVar("T")

_INSTRUCTIONS_BETWEEN_LOOKS = 100_000
"""Of SQLite's own machine: about a millisecond."""
_COPY = backup_name(TABLE)
_FIND_COPY = f"SELECT 1 FROM sqlite_master WHERE name = '{_COPY}'"


def _after_the_others() -> None:
    """The visit that is over when all before it are."""


class GuardedConnection(aiosqlite.Connection):
    """Each method is one visit to the connection's thread, whatever it does there: visits cost more than statements.

    They raise sqlite3.Error, and StatementFailure for a write beside a copy, for reads of an empty table there, and
    where the path of the file names another one by now.
    """

    place: FilePlace
    """Of the file that is open here."""

    async def settle(self, path: Path) -> None:
        """Remember the file that was just opened by this path. To be called before the methods below."""
        self.place = await self._visit(FilePlace, path)

    async def change_rows(self, query: str, arguments: Mapping[str, object]) -> tuple[list[sqlite3.Row], int]:
        """One statement in a transaction of its own; its rows, and how many it touched. Of a caller that is gone before
        the commit, nothing is stored; one that is gone later is let go when it is over."""
        abandoned = threading.Event()
        try:
            return await self._visit(self._change_rows, query, arguments, abandoned)
        except anyio.get_cancelled_exc_class():
            abandoned.set()
            with anyio.CancelScope(shield=True), suppress(ValueError):  # closed by now
                await self._visit(_after_the_others)
            raise

    async def read(self, query: str, arguments: Mapping[str, object], *, surely: bool) -> list[sqlite3.Row]:
        """The rows; `surely`: an empty answer means that there are none. A caller that is gone ends its query, whether
        the thread has come to it yet or not."""
        abandoned = threading.Event()
        try:
            return await self._visit(self._read, query, arguments, surely, abandoned)
        finally:
            abandoned.set()

    async def read_document(self, id: object) -> bytes | None:
        """The document straight from the file; None where that cannot be, as in a view or a table without rowids. A
        statement holds it once more beside the copy that it gives, and the interpreter waits for that copy."""
        return await self._visit(self._read_document, id)

    async def begin(self, kind: str) -> None:
        """Begin a transaction that may write (`IMMEDIATE`) or one that reads (`DEFERRED`)."""
        await self._visit(self._begin, kind)

    async def commit_in_place(self) -> None:
        """Commit, unless the file was taken away meanwhile."""
        await self._visit(self._commit)

    async def _visit(self, work: Callable[..., T], *arguments: object) -> T:
        result: T = await self._execute(work, *arguments)
        return result

    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Every visit, those of aiosqlite too. The thread keeps what it was given last, and what it has answered, until
        the next one: that is not to be a document."""
        given, answered = [partial(fn, *args, **kwargs)], []
        await super()._execute(lambda: answered.append(given.pop()()))  # type: ignore[no-untyped-call] # aiosqlite's
        return answered.pop()

    def _change_rows(
        self, query: str, arguments: Mapping[str, Any], abandoned: threading.Event
    ) -> tuple[list[sqlite3.Row], int]:
        self._begin("IMMEDIATE")
        try:
            cursor = self._conn.execute(query, arguments)
            rows = cursor.fetchall()
            if not abandoned.is_set():
                self._conn.execute("COMMIT")
            return rows, max(0, cursor.rowcount)
        finally:
            self._conn.rollback()  # quiet after a commit

    def _commit(self) -> None:
        self.place.check()
        self._conn.execute("COMMIT")

    def _read(
        self, query: str, arguments: Mapping[str, Any], surely: bool, abandoned: threading.Event
    ) -> list[sqlite3.Row]:
        self.place.check()
        self._conn.set_progress_handler(abandoned.is_set, _INSTRUCTIONS_BETWEEN_LOOKS)
        try:
            rows = self._conn.execute(query, arguments).fetchall()
            if rows or not surely:
                return rows
            self._begin("DEFERRED")
            try:
                return self._conn.execute(query, arguments).fetchall()
            finally:
                self._conn.rollback()
        finally:
            self._conn.set_progress_handler(None, 0)

    def _read_document(self, id: object) -> bytes | None:
        try:
            [rowid] = self._conn.execute(f"SELECT _rowid_ FROM {TABLE} WHERE id = ?", (id,)).fetchone()
            with self._conn.blobopen(TABLE, "environment", rowid, readonly=True) as document:
                return document.read()
        except (sqlite3.OperationalError, TypeError):  # the number of a row of a view is NULL
            return None

    def _begin(self, kind: str) -> None:
        self.place.check()
        self._conn.execute(f"BEGIN {kind}")
        try:
            if self._conn.execute(_FIND_COPY).fetchone() and (kind == "IMMEDIATE" or self._is_empty()):
                raise StatementFailure(
                    f"there is a table '{_COPY}': the original application rebuilds it now, or was killed at that",
                    sqlstate=REBUILT,
                )
        except BaseException:
            self._conn.rollback()
            raise

    def _is_empty(self) -> bool:
        return self._conn.execute(f"SELECT 1 FROM {TABLE}").fetchone() is None
