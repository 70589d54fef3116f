"""Migrates the schema whenever the service connects, keeps it migrated, and reports its status."""

import logging
import random
from collections.abc import Callable
from typing import Protocol

import anyio
import msgspec

from services.environments_store.database.base import Database
from services.environments_store.database.failures import TOO_MANY_CONNECTIONS, StatementFailure, service_error
from services.environments_store.database.location import read_location
from services.environments_store.defaults import MigrationBudgets
from services.environments_store.schema.names import TABLE
from services.environments_store.schema.outcomes import outcome_of
from services.environments_store.schema.reporter import StatusReporter
from services.environments_store.schema.status import SchemaStatus

__all__ = ["Migrator", "migrate_once"]


class Migration(Protocol):
    """The migration of one dialect. Both methods return the seconds until the next inspection, and raise
    StatementFailure."""

    async def bring_column(self, deadline: float) -> float: ...
    async def finish(self) -> float: ...


class Migrator:
    """Call `prepare` before serving, then `run` in the background for as long as the service lives.

    With `create_table` the table is created even if another schema has one. `database` is refreshed whenever the column
    was added or changed; the migration has connections of its own, which no caller waits for.
    """

    def __init__(
        self,
        url: str,
        database: Database | None,
        *,
        node_id: str,
        logger: logging.Logger,
        budgets: MigrationBudgets | None = None,
        table: str = TABLE,
        create_table: bool = False,
    ) -> None:
        location = read_location(url)
        self._database = database
        self._budgets = budgets or MigrationBudgets()
        self._random = random.Random()  # jitter between nodes, no secret
        self._logger = logger
        self._reporter = StatusReporter(location.dialect, logger)
        self._migration = self._choose(url, node_id, table, create_table)
        self._wake = anyio.Event()
        self._looked: anyio.Event | None = None
        self._queried: tuple[object, ...] = (False, True, True, None)
        self._mismatch = False

    @property
    def status(self) -> SchemaStatus:
        """The status after the last inspection."""
        return self._reporter.status

    @property
    def on_change(self) -> Callable[[SchemaStatus], None] | None:
        """Called with each changed status."""
        return self._reporter.on_change

    @on_change.setter
    def on_change(self, callback: Callable[[SchemaStatus], None] | None) -> None:
        self._reporter.on_change = callback

    async def prepare(self) -> SchemaStatus:
        """Inspect, and add the column within the start budget.

        A column that cannot be added now is a state, not an exception. Raises DatabaseUnavailableError when the
        database cannot be reached, and DatabaseError for a file that is not a database.
        """
        deadline = anyio.current_time() + self._budgets.start_s
        while True:
            try:
                await self._migration.bring_column(deadline)
                break
            except StatementFailure as failure:
                # The caller reports and retries a first connection that fails; a lost connection, and a file that is
                # locked even against readers, are retried here.
                busy, late = outcome_of(failure) == "blocked", anyio.current_time() >= deadline
                inspected = self._reporter.last is not None
                if (not busy and not (inspected and failure.lost)) or (late and not inspected):
                    raise service_error(failure, write=False) from failure
                if late or failure.lost:
                    self._reporter.unavailable(failure.message)
                if late:
                    break
            await anyio.sleep(self._random.uniform(0.5, 1.0) * self._budgets.reconnect_min_s)
        self._log_missing()
        await self._refresh()
        return self.status

    async def run(self) -> None:
        """Complete the migration and inspect periodically until cancelled. To be run in the node's task group."""
        reconnect_s = self._budgets.reconnect_min_s
        if self._is_complete():
            # `prepare` has just inspected: a start on a migrated database costs no second connection.
            await self._rest(self._budgets.reinspect_s)
        while True:
            try:
                pause_s = await self._cycle()
                reconnect_s = self._budgets.reconnect_min_s
            except StatementFailure as failure:
                if failure.sqlstate == TOO_MANY_CONNECTIONS:
                    self._reporter.crowded(failure.message)
                else:
                    self._reporter.unavailable(failure.message)
                pause_s = reconnect_s * self._random.uniform(0.5, 1.0)
                reconnect_s = min(reconnect_s * 2, self._budgets.reconnect_max_s)
            except Exception:
                # A bug must not end the healing of a service that runs for months.
                self._logger.exception("The migration failed unexpectedly; it will be retried")
                pause_s = self._budgets.sleep_max_s
            self._set_looked()
            await self._rest(pause_s)

    async def complete(self) -> SchemaStatus:
        """Build index and statistics in the foreground, until they are complete, need a person, or time is up."""
        deadline = anyio.current_time() + self._budgets.index_wait_s
        try:
            while self._is_unfinished() and anyio.current_time() < deadline:
                pause_s = await self._migration.finish()
                if pause_s >= self._budgets.reinspect_s or not self._is_unfinished():
                    break
                await anyio.sleep(pause_s)
        except StatementFailure as failure:
            raise service_error(failure, write=False) from failure
        self._reporter.step(None)
        return self.status

    def report_mismatch(self) -> None:
        """A query found the table changed, or the server read-only: inspect at once, and have the database find its
        server again."""
        self._mismatch = True
        self.look_soon()

    def look_soon(self) -> None:
        """Inspect soon: the database may have become unreachable or reachable."""
        self._looked = self._looked or anyio.Event()
        self._wake.set()

    async def looked(self) -> None:
        """Return when every requested inspection is done."""
        if self._looked is not None:
            await self._looked.wait()

    def _choose(self, url: str, node_id: str, table: str, create_table: bool) -> Migration:
        location = read_location(url)
        if location.dialect == "sqlite":
            from services.environments_store.schema.sqlite_migration import SqliteMigration

            return SqliteMigration(location, table, self._budgets, self._reporter, self._random)
        from services.environments_store.schema.postgres_migration import PostgresMigration

        what = (url, table, node_id, self._budgets, self._reporter, self._random)
        return PostgresMigration(*what, create_table=create_table)

    async def _cycle(self) -> float:
        pause_s = self._budgets.reinspect_s
        if not self.status.soft_delete:
            pause_s = await self._migration.bring_column(anyio.current_time() + self._budgets.reinspect_s)
            self._log_missing()
        if self.status.soft_delete:
            pause_s = await self._migration.finish()
        await self._refresh()
        return pause_s

    async def _rest(self, pause_s: float) -> None:
        """Sleep until the next inspection is due or requested."""
        with anyio.move_on_after(pause_s):
            await self._wake.wait()
            # Many requests may meet the same trouble: one look answers for all of them.
            await anyio.sleep(self._budgets.poll_min_s)
        self._wake = anyio.Event()

    def _set_looked(self) -> None:
        looked, self._looked = self._looked, None
        if looked is not None:
            looked.set()

    def _is_complete(self) -> bool:
        return self.status.state == "ready" and all(step.state == "done" for step in self.status.steps)

    def _is_unfinished(self) -> bool:
        return self.status.soft_delete and any(step.state != "done" for step in self.status.steps)

    def _log_missing(self) -> None:
        status = self.status
        missing = any(step.name == "column" and step.state != "done" for step in status.steps)
        if missing and status.reason not in ("lost", "unavailable"):
            text = status.error or "The service retries in the background."
            self._reporter.missed(status.reason or "waiting", text)

    async def _refresh(self) -> None:
        status = self.status
        # A connection keeps the role's settings from when it was opened.
        queried = (status.soft_delete, status.deleted_at_zone, status.writable, status.reason)
        changed, self._queried = self._mismatch or queried != self._queried, queried
        self._mismatch = False
        if changed and self._database is not None:
            await self._database.refresh()


async def migrate_once(
    url: str,
    *,
    logger: logging.Logger,
    node_id: str = "migrate",
    budgets: MigrationBudgets | None = None,
    create_table: bool = False,
    wait_s: float | None = None,
) -> SchemaStatus:
    """Migrate in the foreground, as `migrate run` does, waiting up to `wait_s` for the column's lock. Raises as
    `Migrator.prepare` does."""
    budgets = budgets or MigrationBudgets()
    budgets = budgets if wait_s is None else msgspec.structs.replace(budgets, start_s=wait_s)
    migrator = Migrator(url, None, node_id=node_id, logger=logger, budgets=budgets, create_table=create_table)
    await migrator.prepare()
    return await migrator.complete()
