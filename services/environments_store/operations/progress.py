"""How far the index is that a migration builds now, seen from another connection."""

from collections.abc import Callable
from typing import NamedTuple

import anyio

from services.environments_store.database.failures import StatementFailure
from services.environments_store.database.location import read_location
from services.environments_store.database.postgres_session import PostgresSession
from services.environments_store.defaults import MigrationBudgets, OperationLimits
from services.environments_store.schema.names import TABLE, quoted

__all__ = ["BuildProgress", "watch_index_build"]

# Blocks while the table is read, tuples while the index is filled, lockers while old transactions are waited for.
QUERY = """
SELECT phase, CASE WHEN blocks_total > 0 THEN blocks_done WHEN tuples_total > 0 THEN tuples_done ELSE lockers_done END
       AS done,
       CASE WHEN blocks_total > 0 THEN blocks_total WHEN tuples_total > 0 THEN tuples_total ELSE lockers_total END
       AS total,
       current_locker_pid AS waits_for
FROM pg_stat_progress_create_index WHERE relid = to_regclass($1)
"""


class BuildProgress(NamedTuple):
    """`waits_for`: the process whose old transaction holds the build up, 0 for none."""

    phase: str
    done: int
    total: int
    waits_for: int


async def watch_index_build(
    url: str, report: Callable[[BuildProgress], None], limits: OperationLimits | None = None
) -> None:
    """Report for ever, until cancelled; quiet on SQLite, and when the watching connection is lost."""
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
            row = await session.fetch_one(QUERY, quoted(TABLE))
            if row is not None:
                report(BuildProgress(row["phase"], row["done"], row["total"], row["waits_for"] or 0))
            await anyio.sleep(limits.progress_every_s)
    except StatementFailure:
        return
    finally:
        await session.close()
