"""Brings the schema up to date whenever the service connects, keeps it so, and says how it stands."""

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
    """One dialect's way. Both methods return the seconds until the next look and raise StatementFailure."""

    async def bring_column(self, deadline: float) -> float: ...
    async def finish(self) -> float: ...


class Migrator:
    """`prepare` before serving, then `run` in the background for as long as the service lives.

    A table that is missing where PostgreSQL looks for it, and lies in another schema, is made only with `create_table`.

    `database` is told to forget what it knew of the table whenever the column came or changed; the migration itself
    uses connections of its own, which no caller of the service waits for.
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
        """How the schema stood at the last look."""
        return self._reporter.status

    @property
    def on_change(self) -> Callable[[SchemaStatus], None] | None:
        """Called with each new status that differs from the one before."""
        return self._reporter.on_change

    @on_change.setter
    def on_change(self, callback: Callable[[SchemaStatus], None] | None) -> None:
        self._reporter.on_change = callback

    async def prepare(self) -> SchemaStatus:
        """Inspect, and bring the column within the start budget.

        What cannot be had now is a state of the answer, not an exception. Raises DatabaseUnavailableError when no
        connection can be had, and DatabaseError for a file that is no database.
        """
        deadline = anyio.current_time() + self._budgets.start_s
        while True:
            try:
                await self._migration.bring_column(deadline)
                break
            except StatementFailure as failure:
                # A first connection that fails is for the caller to tell and try again; a lost one is tried again
                # here, and so is a file that somebody has locked even against readers.
                busy, late = outcome_of(failure) == "blocked", anyio.current_time() >= deadline
                if not busy and not (self._reporter.inspected and failure.lost):
                    raise service_error(failure, write=False) from failure
                if late and not self._reporter.inspected:
                    raise service_error(failure, write=False) from failure
                if late or failure.lost:
                    self._reporter.unavailable(failure.message)
                if late:
                    break
            await anyio.sleep(self._random.uniform(0.5, 1.0) * self._budgets.reconnect_min_s)
        self._tell_missing()
        await self._refresh()
        return self.status

    async def run(self) -> None:
        """Finish what `prepare` left, and look again on a timer, for ever. To be run in the node's task group."""
        reconnect_s = self._budgets.reconnect_min_s
        if self._is_complete():
            # `prepare` has just looked: a start on a finished database costs no second connection.
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
                # A mistake of ours must not end the healing of a service that runs for months.
                self._logger.exception("Looking after the schema failed; it is tried again")
                pause_s = self._budgets.sleep_max_s
            self._tell_looked()
            await self._rest(pause_s)

    async def complete(self) -> SchemaStatus:
        """Index and statistics in the foreground: until they are there, left to a person, or the budget has passed."""
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
        """A query met another table, or a server that takes no writes, than was seen: look at once, and let the
        database look for its server anew."""
        self._mismatch = True
        self.look_soon()

    def look_soon(self) -> None:
        """The database may be gone, or back."""
        self._looked = self._looked or anyio.Event()
        self._wake.set()

    async def looked(self) -> None:
        """Return when every look that was asked for is done."""
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
            self._tell_missing()
        if self.status.soft_delete:
            pause_s = await self._migration.finish()
        await self._refresh()
        return pause_s

    async def _rest(self, pause_s: float) -> None:
        """Until it is time to look again, or somebody says that it is."""
        with anyio.move_on_after(pause_s):
            await self._wake.wait()
            # Many requests may meet the same trouble: one look answers for all of them.
            await anyio.sleep(self._budgets.poll_min_s)
        self._wake = anyio.Event()

    def _tell_looked(self) -> None:
        looked, self._looked = self._looked, None
        if looked is not None:
            looked.set()

    def _is_complete(self) -> bool:
        return self.status.state == "ready" and all(step.state == "done" for step in self.status.steps)

    def _is_unfinished(self) -> bool:
        return self.status.soft_delete and any(step.state != "done" for step in self.status.steps)

    def _tell_missing(self) -> None:
        status = self.status
        missing = any(step.name == "column" and step.state != "done" for step in status.steps)
        if missing and status.reason not in ("lost", "unavailable"):
            text = status.error or "The attempts go on in the background."
            self._reporter.missed(status.reason or "waiting", text)

    async def _refresh(self) -> None:
        status = self.status
        # A connection keeps what its role had set when it was made.
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
    """Everything in the foreground: what `migrate run` does, for `wait_s` where the column has to wait. Raises as
    `Migrator.prepare` does."""
    budgets = budgets or MigrationBudgets()
    budgets = budgets if wait_s is None else msgspec.structs.replace(budgets, start_s=wait_s)
    migrator = Migrator(url, None, node_id=node_id, logger=logger, budgets=budgets, create_table=create_table)
    await migrator.prepare()
    return await migrator.complete()
