"""What goes on around the table on a PostgreSQL server, and decides whether now is a good moment to migrate."""

from collections.abc import Iterator

from services.environments_store.database.failures import StatementFailure, service_error
from services.environments_store.database.postgres_session import PostgresSession
from services.environments_store.defaults import MigrationBudgets
from services.environments_store.schema.blockers import Blocker, who_blocks
from services.environments_store.schema.findings import Finding
from services.environments_store.schema.inspect_postgres import inspect
from services.environments_store.schema.inspection import Inspection
from services.environments_store.schema.postgres_steps import open_session

__all__ = ["look_around"]

# An ordinary role sees the name and the address of others' sessions, but not since when they are in a transaction.
SESSIONS = """
SELECT coalesce(nullif(application_name, ''), 'without a name') AS application, host(client_addr) AS address,
       count(*) AS sessions, max(extract(epoch FROM clock_timestamp() - xact_start))::float8 AS oldest_s
FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'
  AND pid <> pg_backend_pid() AND application_name NOT LIKE 'environments-store%'
GROUP BY 1, 2 ORDER BY 1, 2
"""
STANDBYS = "SELECT count(*) FROM pg_stat_replication"
_LONG_TRANSACTION_S = 5.0
_INDEX_BYTES_A_ROW = 7
_OLDEST_GENERATION = "jsonb"


async def look_around(url: str) -> list[Finding]:
    """Who else is connected, for how long, and what the index will need."""
    try:
        session = await open_session(url, "doctor", MigrationBudgets())
        try:
            found = await inspect(session)
            blockers = await who_blocks(session, found.oid) if found.kind else ()
            return [*_dumps(blockers), *await _others(session, found), *await _index(session, found), *_age(found)]
        finally:
            await session.close()
    except StatementFailure as failure:
        raise service_error(failure, write=False) from failure


def _dumps(blockers: tuple[Blocker, ...]) -> Iterator[Finding]:
    for blocker in blockers:
        if blocker.application == "pg_dump":
            yield Finding(
                level="error",
                subject="dump",
                message=f"A dump runs now: {blocker}. Adding the column, or dropping it, has to wait for its end.",
                remedy="Let it end before nodes are started.",
            )


async def _others(session: PostgresSession, found: Inspection) -> list[Finding]:
    findings = []
    for row in await session.fetch(SESSIONS):
        name = f"'{row['application']}' from {row['address'] or 'here'} ({row['sessions']} sessions)"
        findings.append(
            Finding(
                level="info",
                subject="other-program",
                message=f"Another program is connected: {name}.",
                remedy="If it is the original from before soft delete, stop it: at its start it drops the column.",
            )
        )
        if (row["oldest_s"] or 0) > _LONG_TRANSACTION_S:
            findings.append(
                Finding(
                    level="info" if found.soft_delete and found.index else "warning",
                    subject="old-transaction",
                    message=f"A transaction of {name} is {row['oldest_s']:.0f} s old: an index build waits for it.",
                    remedy="End it before migrating, or let the service wait: nobody else has to.",
                )
            )
    return findings


async def _index(session: PostgresSession, found: Inspection) -> list[Finding]:
    findings = []
    if found.kind == "r" and found.index is None and found.rows_estimate > 0:
        size = max(found.rows_estimate * _INDEX_BYTES_A_ROW // 1024, 8)
        findings.append(
            Finding(
                level="info",
                subject="disk",
                message=f"The index will have about {size:,} kB, and the build writes it twice.",
                remedy="See that the disk has more: PostgreSQL does not tell how much is free.",
            )
        )
    standbys = int(await session.fetch_value(STANDBYS))
    if standbys:
        findings.append(
            Finding(
                level="info",
                subject="replication",
                message=f"{standbys} standby servers follow this one; long queries there hold the new column up.",
            )
        )
    return findings


def _age(found: Inspection) -> Iterator[Finding]:
    if any(column.name == "environment" and column.type == _OLDEST_GENERATION for column in found.columns):
        yield Finding(
            level="info",
            subject="jsonb",
            message="The documents are jsonb, of the oldest generation: they keep their content, but not their bytes.",
            remedy="Nothing has to be done.",
        )
