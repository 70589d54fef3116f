"""The migration of a SQLite file, in one transaction, so that a killed process leaves all or nothing of it."""

import random
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import aiosqlite
import anyio
import anyio.to_thread
import msgspec

from services.environments_store.database.base import Dialect
from services.environments_store.database.failures import StatementFailure
from services.environments_store.database.location import Location
from services.environments_store.database.sqlite_connection import close_quietly, connect, file_failures
from services.environments_store.database.sqlite_place import FilePlace
from services.environments_store.defaults import MigrationBudgets
from services.environments_store.schema.backup_tables import Fingerprint, Run, fingerprint, put_back, rename_missing
from services.environments_store.schema.index import free_name
from services.environments_store.schema.inspect_sqlite import inspect, query
from services.environments_store.schema.inspection import Inspection
from services.environments_store.schema.names import METADATA_TABLE, backup_name, quoted
from services.environments_store.schema.outcomes import outcome_of, public_words
from services.environments_store.schema.plan import obstacle_to_column, pending_steps, trouble
from services.environments_store.schema.reporter import StatusReporter
from services.environments_store.schema.sql import add_column, create_index, create_tables

__all__ = ["SqliteMigration"]


class SqliteMigration:
    """`bring_column` does all steps; `finish` inspects again and keeps the statistics. Both raise StatementFailure."""

    dialect: Dialect = "sqlite"

    def __init__(
        self, location: Location, table: str, budgets: MigrationBudgets, reporter: StatusReporter, source: random.Random
    ) -> None:
        if location.path is None:
            raise ValueError("a SQLite migration needs the path of a file")
        self._path: Path = location.path
        self._read_only = location.read_only
        self._table = table
        self._budgets = budgets
        self._reporter = reporter
        self._random = source
        self._place: FilePlace | None = None

    async def bring_column(self, deadline: float) -> float:
        """Do all missing steps; returns the seconds until the next inspection."""
        async with self._connection() as connection:
            pause_s = self._budgets.poll_min_s
            while True:
                found = await self._look(connection)
                if self._is_settled(found):
                    return self._budgets.reinspect_s
                try:
                    left_behind = await self._left_behind(connection) if found.leftovers else None
                    if await self._apply(connection, found, left_behind):
                        if "statistics" in pending_steps(await self._look(connection)):
                            await self._analyse(connection)
                        return self._budgets.reinspect_s
                    self._reporter.blocked("the original application is rebuilding its tables")
                except StatementFailure as failure:
                    if outcome_of(failure) != "blocked":
                        return self._after(failure)
                    self._reporter.blocked(failure.message)
                if anyio.current_time() + pause_s >= deadline:
                    return pause_s
                await anyio.sleep(pause_s * self._random.uniform(0.5, 1.0))
                pause_s = min(pause_s * self._budgets.sleep_growth, self._budgets.sleep_patient_s)

    async def finish(self) -> float:
        """Inspect again, and analyse a full index once it has rows: without statistics the planner sorts all rows for a
        page."""
        async with self._connection() as connection:
            found = await self._look(connection)
            if not self._is_settled(found):
                return await self.bring_column(anyio.current_time())
            if found.writable and "statistics" in pending_steps(found):
                await self._analyse(connection)
            return self._budgets.reinspect_s

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[aiosqlite.Connection]:
        """Connect to the file of the first inspection, which alone may create it."""
        mode = "ro" if self._read_only else "rwc"
        if self._place is not None:
            await anyio.to_thread.run_sync(self._place.check)
            mode = "ro" if self._read_only else "rw"
        elif not self._read_only:
            with file_failures(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = await connect(self._path, mode=mode, busy_timeout_s=self._budgets.sqlite_busy_ms / 1000)
        self._place = connection.place
        try:
            yield connection
        finally:
            await close_quietly(connection)

    async def _look(self, connection: aiosqlite.Connection) -> Inspection:
        found = await inspect(connection, self._path, table=self._table, read_only=self._read_only)
        if not found.leftovers or found.soft_delete or not self._reporter.had_column:
            self._reporter.found(found)
        # Otherwise the original may be rebuilding the table: the next inspections decide.
        return found

    def _is_settled(self, found: Inspection) -> bool:
        """Whether nothing is missing, or nothing can be done. A lost column is added only by a person."""
        if obstacle_to_column(found) is not None or not found.writable:
            return True
        pending = set(pending_steps(found)) - {"statistics"}
        return not (pending & {"leftovers"} if self._reporter.lost else pending)

    async def _left_behind(self, connection: aiosqlite.Connection) -> Fingerprint | None:
        """The fingerprint of backups that a killed original left behind. None when it changes, because the original is
        rebuilding its tables now: renaming its backup would break its start and hide the rows from it."""
        before = await self._fingerprint(connection)
        until = anyio.current_time() + self._budgets.rebuild_recheck_s
        while anyio.current_time() < until:
            await anyio.sleep(min(self._budgets.poll_min_s, self._budgets.rebuild_recheck_s))
            if await self._fingerprint(connection) != before:
                return None
        return before

    async def _fingerprint(self, connection: aiosqlite.Connection) -> Fingerprint | None:
        run = partial(query, connection, self._path)
        await run("BEGIN IMMEDIATE")
        try:
            return await fingerprint(run, self._table)
        finally:
            await _roll_back(connection)

    async def _apply(
        self, connection: aiosqlite.Connection, found: Inspection, left_behind: Fingerprint | None
    ) -> bool:
        """Do all steps in one transaction, which inspects again: another node may have been faster.

        False, and nothing is done, when the backup tables are not known to be `left_behind`: a table must not change
        while the original copies its rows.
        """
        run = partial(query, connection, self._path)
        if found.kind is not None and not found.soft_delete and not self._reporter.had_column:
            self._reporter.adding()
        await run("BEGIN IMMEDIATE")
        try:
            if await fingerprint(run, self._table) != left_behind:
                await run("ROLLBACK")
                return False
            look = partial(inspect, connection, self._path, table=self._table)
            done = await _bring_up_to_date(run, look, self._table, may_add=not self._reporter.had_column)
            await run("COMMIT")
        except BaseException:
            await _roll_back(connection)
            raise
        if done.added:
            self._reporter.added()
        for note in done.notes:
            self._reporter.warn(note, note)
        return True

    async def _analyse(self, connection: aiosqlite.Connection) -> None:
        self._reporter.step("statistics")
        try:
            await query(connection, self._path, f"ANALYZE {quoted(self._table)}")
        except StatementFailure as failure:
            self._reporter.detail("statistics", failure.message)
        self._reporter.step(None)
        await self._look(connection)

    def _after(self, failure: StatementFailure) -> float:
        match outcome_of(failure):
            case "read-only":
                self._reporter.trouble(trouble("read-only", failure.message, "The database is read-only."))
            case "lost":
                raise failure
            case _:
                self._reporter.trouble(trouble("failed", failure.message, public_words(failure)))
        return self._budgets.sleep_max_s


async def _roll_back(connection: aiosqlite.Connection) -> None:
    """Roll back, which is harmless if SQLite has already done so, as on a full disk."""
    with anyio.CancelScope(shield=True):
        try:
            await connection.rollback()
        except (sqlite3.Error, ValueError):
            return


class _Done(msgspec.Struct, frozen=True):
    """`added`: the column was missing. `notes`: what was done with backup tables, for the log."""

    added: bool
    notes: tuple[str, ...]


async def _bring_up_to_date(
    run: Run, look: Callable[[], Awaitable[Inspection]], table: str, *, may_add: bool = True
) -> _Done:
    """Do the missing steps. The column is added before the rows of a backup, to restore their `deletedAt` too. Without
    `may_add` it is not added."""
    names = (table, METADATA_TABLE)
    notes = [await rename_missing(run, name, backup_name(name)) for name in names]
    found = await look()
    for statement in create_tables("sqlite")[:2]:
        await run(statement)
    missing = found.kind is not None and not found.soft_delete and obstacle_to_column(found) is None
    added = missing and may_add
    if added:
        await run(add_column("sqlite", table=table))
    notes += [await put_back(run, name, backup_name(name)) for name in names]
    found = await look()
    if found.soft_delete and found.kind == "r" and found.index is None:
        await run(create_index("sqlite", table=table, name=free_name(found)))
    return _Done(added, tuple(note for note in notes if note))
