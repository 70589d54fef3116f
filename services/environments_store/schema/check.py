"""Look at a database and change nothing: what `migrate check` shows."""

from typing import NamedTuple

import anyio.to_thread
import msgspec

from services.environments_store.database.base import Dialect
from services.environments_store.database.failures import StatementFailure, service_error
from services.environments_store.database.location import Location, read_location
from services.environments_store.defaults import MigrationBudgets
from services.environments_store.schema.blockers import Blocker
from services.environments_store.schema.findings import Finding, findings_of
from services.environments_store.schema.inspection import Inspection
from services.environments_store.schema.names import TABLE
from services.environments_store.schema.plan import status_of
from services.environments_store.schema.status import Step

__all__ = ["Report", "Seen", "check", "look", "report_of"]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`database` is the URL without its password; `rows_estimate` is the planner's, -1 when it has none."""

    dialect: Dialect
    database: str
    table: str
    rows_estimate: int
    steps: tuple[Step, ...]
    findings: tuple[Finding, ...]

    @property
    def pending(self) -> bool:
        """Whether a step is missing, or something keeps the service from working."""
        return any(step.state != "done" for step in self.steps) or any(one.level == "error" for one in self.findings)


class Seen(NamedTuple):
    """One look at a database: what is there, and who holds the table."""

    location: Location
    found: Inspection
    blockers: tuple[Blocker, ...]


async def check(url: str, *, table: str = TABLE) -> Report:
    """Inspect without a lock. Raises ConfigError, DatabaseUnavailableError, and DatabaseError for no database."""
    return report_of(await look(url, table=table))


async def look(url: str, *, table: str = TABLE) -> Seen:
    """What `check` reports on, as data. Raises as it does."""
    location = read_location(url)
    try:
        if location.dialect == "sqlite":
            return Seen(location, await _look_at_file(location, table), ())
        return Seen(location, *await _look_at_server(url, table))
    except StatementFailure as failure:
        raise service_error(failure, write=False) from failure


def report_of(seen: Seen) -> Report:
    location, found, blockers = seen
    return Report(
        dialect=found.dialect,
        database=location.label,
        table=found.table if found.dialect == "sqlite" else f"{found.schema}.{found.table}",
        rows_estimate=found.rows_estimate if found.dialect == "postgresql" else -1,
        steps=status_of(found).steps,
        findings=findings_of(found, blockers),
    )


async def _look_at_server(url: str, table: str) -> tuple[Inspection, tuple[Blocker, ...]]:
    from services.environments_store.schema.blockers import who_blocks
    from services.environments_store.schema.inspect_postgres import inspect
    from services.environments_store.schema.postgres_steps import open_session

    session = await open_session(url, "check", MigrationBudgets())
    try:
        found = await inspect(session, table)
        return found, await who_blocks(session, found.oid) if found.kind else ()
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
    # Not mode=ro: reading a file in WAL mode may have to make the shared memory file beside it.
    mode = "ro" if location.read_only else "rw"
    connection = await connect(path, mode=mode, busy_timeout_s=MigrationBudgets().sqlite_busy_ms / 1000)
    try:
        return await inspect(connection, path, table=table, read_only=location.read_only)
    finally:
        await close_quietly(connection)
