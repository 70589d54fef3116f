"""The inspection of a database, for `migrate check` and for commands. Changes nothing."""

from functools import partial
from typing import NamedTuple

import anyio.to_thread
import msgspec

from services.environments_store.database.base import Dialect
from services.environments_store.database.failures import StatementFailure, service_error
from services.environments_store.database.location import Location, read_location
from services.environments_store.defaults import MigrationBudgets
from services.environments_store.schema.blockers import Blocker
from services.environments_store.schema.findings import findings_of
from services.environments_store.schema.inspection import Inspection
from services.environments_store.schema.names import TABLE
from services.environments_store.schema.plan import status_of
from services.environments_store.schema.status import Finding, Step
from services.environments_store.schema.trial import try_statements

__all__ = ["Report", "Seen", "check", "look", "report_of"]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`database` is the URL without its password; `rows_estimate` is the planner's estimate, or one from the size of
    the table, and -1 on SQLite."""

    dialect: Dialect
    database: str
    table: str
    rows_estimate: int
    steps: tuple[Step, ...]
    findings: tuple[Finding, ...]

    @property
    def pending(self) -> bool:
        """Whether a step is missing, or a problem makes an action unavailable."""
        return any(step.state != "done" for step in self.steps) or any(one.level == "error" for one in self.findings)


class Seen(NamedTuple):
    """An inspection, with the sessions that hold locks on the table."""

    location: Location
    found: Inspection
    blockers: tuple[Blocker, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The problems of the table, and the sessions that block adding the column."""
        waits = [
            Finding(
                level="warning",
                subject="blocker",
                message=f"{blocker}: adding the column has to wait for it.",
                remedy="End that transaction, or wait: the service retries by itself.",
            )
            for blocker in (() if self.found.has_column else self.blockers)
        ]
        return (*findings_of(self.found), *waits)


async def check(url: str, *, table: str = TABLE) -> Report:
    """Inspect without a lock. Raises ConfigError, DatabaseUnavailableError, and DatabaseError for no database."""
    return report_of(await look(url, table=table))


async def look(url: str, *, table: str = TABLE) -> Seen:
    """The inspection that `check` reports. Raises as `check` does."""
    location = read_location(url)
    try:
        if location.dialect == "sqlite":
            return Seen(location, await _look_at_file(location, table), ())
        return Seen(location, *await _look_at_server(url, table))
    except StatementFailure as failure:
        raise service_error(failure, write=False) from failure


def report_of(seen: Seen) -> Report:
    location, found, _ = seen
    return Report(
        dialect=found.dialect,
        database=location.label,
        table=found.table if found.dialect == "sqlite" else f"{found.schema}.{found.table}",
        rows_estimate=found.rows if found.dialect == "postgresql" else -1,
        steps=status_of(found).steps,
        findings=seen.findings,
    )


async def _look_at_server(url: str, table: str) -> tuple[Inspection, tuple[Blocker, ...]]:
    from services.environments_store.schema.blockers import who_blocks
    from services.environments_store.schema.inspect_postgres import inspect, measure
    from services.environments_store.schema.postgres_steps import explain, open_session

    budgets = MigrationBudgets()
    session = await open_session(url, "check", budgets)
    try:
        found = await inspect(session, table)
        blockers = await who_blocks(session, found.oid) if found.kind else ()
        found = await try_statements(found, partial(explain, session, budgets))
        if found.rows_estimate < 0 or found.seen_in:
            found = await measure(session, found)
        return found, blockers
    finally:
        await session.close()


async def _look_at_file(location: Location, table: str) -> Inspection:
    from services.environments_store.database.sqlite_connection import close_quietly, connect, file_failures
    from services.environments_store.schema.inspect_sqlite import inspect

    path = location.path
    if path is None:
        raise ValueError("a look at a SQLite file needs its path")
    with file_failures(path):
        there = await anyio.to_thread.run_sync(path.exists)
    if not there:
        return Inspection(dialect="sqlite", schema="main", table=table, kind=None)
    # Not mode=ro: reading a file in WAL mode may have to create the shared memory file beside it.
    mode = "ro" if location.read_only else "rw"
    connection = await connect(path, mode=mode, busy_timeout_s=MigrationBudgets().sqlite_busy_ms / 1000)
    try:
        return await inspect(connection, path, table=table, read_only=location.read_only)
    finally:
        await close_quietly(connection)
