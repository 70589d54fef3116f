"""The progress of a migration's index build, read over another connection."""

from collections.abc import Callable
from typing import NamedTuple

import anyio

from services.environments_store.database.base import Row
from services.environments_store.database.failures import StatementFailure
from services.environments_store.database.location import read_location
from services.environments_store.database.postgres_session import PostgresSession
from services.environments_store.defaults import MigrationBudgets, OperationLimits
from services.environments_store.schema.names import migration_name

__all__ = ["BuildProgress", "watch_index_build"]

# The build counts blocks while it reads the table, tuples while it fills the index, and lockers while it waits for old
# transactions. It is not listed while it waits for the lock on the table. Other roles' sessions have NULL columns.
QUERY = """
SELECT p.phase, CASE WHEN blocks_total > 0 THEN blocks_done WHEN tuples_total > 0 THEN tuples_done ELSE lockers_done END
       AS done,
       CASE WHEN blocks_total > 0 THEN blocks_total WHEN tuples_total > 0 THEN tuples_total ELSE lockers_total END
       AS total, b.pid, b.application_name AS application, b.usename::text AS role, b.state,
       extract(epoch FROM clock_timestamp() - b.xact_start)::float8 AS age_s
FROM pg_stat_activity a LEFT JOIN pg_stat_progress_create_index p USING (pid)
LEFT JOIN pg_stat_activity b ON a.wait_event_type = 'Lock' AND b.pid = ANY (pg_blocking_pids(a.pid))
WHERE a.datname = current_database() AND a.usename = current_user
  AND a.query LIKE 'CREATE INDEX CONCURRENTLY%' AND a.state = 'active' AND a.application_name = $1
LIMIT 1
"""


class BuildProgress(NamedTuple):
    """`waits_for` names the session that blocks the build and its age; it is empty for none."""

    phase: str
    done: int
    total: int
    waits_for: str


async def watch_index_build(
    url: str, builder: str, report: Callable[[BuildProgress], None], limits: OperationLimits | None = None
) -> None:
    """Report the build of the session `builder` until cancelled; stop without an error on SQLite and when this
    connection is lost."""
    if read_location(url).dialect == "sqlite":
        return
    limits, budgets = limits or OperationLimits(), MigrationBudgets()
    try:
        session = await PostgresSession.connect(
            url,
            application_name="environments-store progress",
            connect_timeout_s=budgets.connect_timeout_s,
            answer_timeout_s=budgets.statement_timeout_s,
        )
    except StatementFailure:
        return
    try:
        while True:
            row = await session.fetch_one(QUERY, migration_name(builder))
            if row is not None:
                phase = row["phase"] or "waiting for the table"
                report(BuildProgress(phase, row["done"] or 0, row["total"] or 0, _waits_for(row)))
            await anyio.sleep(limits.progress_every_s)
    except StatementFailure:
        return
    finally:
        await session.close()


def _waits_for(row: Row) -> str:
    if row["pid"] is None:
        return ""
    age = "" if row["age_s"] is None else f", in a transaction of {row['age_s']:.0f} s"
    state = f", {row['state']}" if row["state"] else ""
    return f"pid {row['pid']} ({row['application'] or row['role']}){state}{age}"
