"""What else happens on the PostgreSQL server, and whether it prevents a migration now."""

from collections.abc import Iterator, Sequence

from services.environments_store.database.base import Row
from services.environments_store.database.failures import StatementFailure, service_error
from services.environments_store.defaults import MigrationBudgets, OperationLimits
from services.environments_store.schema.blockers import Blocker
from services.environments_store.schema.index import size_kilobytes
from services.environments_store.schema.inspection import Inspection
from services.environments_store.schema.names import counted, quoted
from services.environments_store.schema.postgres_steps import open_session
from services.environments_store.schema.status import Finding

__all__ = ["server_findings"]

# Of other roles' sessions an ordinary role sees role, application and that there is a snapshot, but not its age, the
# statement or the address. The original sets no application name; its last statement shows its generation.
SESSIONS = """
SELECT coalesce(nullif(application_name, ''), 'without a name') AS application, usename::text AS role,
       CASE WHEN client_port IS NOT NULL THEN coalesce(host(client_addr), 'here') END AS address,
       count(*) AS sessions, max(extract(epoch FROM clock_timestamp() - xact_start))::float8 AS oldest_s,
       bool_or(xact_start IS NULL AND (backend_xid IS NOT NULL OR backend_xmin IS NOT NULL)) AS hidden,
       bool_or(query ~ '(FROM|INTO|UPDATE) "environments" ' AND query NOT LIKE 'DELETE%'
               AND query NOT LIKE '%"deletedAt"%') AS old_generation,
       application_name LIKE 'environments-store%' AS ours
FROM pg_stat_activity WHERE datname = current_database() AND usename IS NOT NULL
  AND coalesce(backend_type, 'client backend') = 'client backend' AND pid <> pg_backend_pid()
GROUP BY application_name, 2, 3 ORDER BY 1, 2, 3
"""
# Prepared transactions belong to no session and hold their locks until they are ended by name.
PREPARED = """
SELECT gid, owner::text AS owner, extract(epoch FROM clock_timestamp() - prepared)::float8 AS age_s
FROM pg_prepared_xacts WHERE database = current_database() ORDER BY prepared
"""
# A walsender with a logical slot serves a subscriber; one in state `backup` is a base backup.
FOLLOWERS = """
SELECT count(*) FILTER (WHERE s.slot_type IS DISTINCT FROM 'logical' AND r.state IS DISTINCT FROM 'backup') AS standbys,
       count(*) FILTER (WHERE s.slot_type = 'logical') AS subscribers
FROM pg_stat_replication r LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid
"""
_OLDEST_GENERATION = "jsonb"


async def server_findings(
    url: str, found: Inspection, blockers: Sequence[Blocker], limits: OperationLimits
) -> list[Finding]:
    """Who else is connected, how old their transactions are, and what disk space the index needs."""
    try:
        session = await open_session(url, "check", MigrationBudgets())
        try:
            rows = await session.fetch(SESSIONS)
            return [
                *_dumps(found, blockers),
                *_others(rows),
                *_old_transactions(rows, found, limits),
                *_prepared(await session.fetch(PREPARED), limits),
                *_disk(found),
                *_followers(await session.fetch_one(FOLLOWERS)),
                *_age(found),
            ]
        finally:
            await session.close()
    except StatementFailure as failure:
        raise service_error(failure, write=False) from failure


def _dumps(found: Inspection, blockers: Sequence[Blocker]) -> Iterator[Finding]:
    for blocker in blockers:
        if blocker.application == "pg_dump":
            yield Finding(
                level="info" if found.soft_delete else "error",
                subject="dump",
                message=f"pg_dump is running: {blocker}. Adding or dropping the column has to wait until it ends.",
                remedy="Let it end before you start nodes.",
            )


def _others(rows: Sequence[Row]) -> Iterator[Finding]:
    for row in rows:
        if row["ours"]:
            continue
        if row["old_generation"]:
            yield Finding(
                level="warning",
                subject="old-generation",
                message=f"{_name(row)} reads the table without deletedAt: it may be the original application from"
                " before soft delete.",
                remedy="Stop it before you start nodes: its oldest versions drop the column when they start, and every"
                " deleted environment is live again.",
            )
        else:
            yield Finding(
                level="info",
                subject="other-program",
                message=f"Another program is connected: {_name(row)}.",
                remedy="If it is the original application from before soft delete, stop it: it drops the column when it"
                " starts.",
            )


def _old_transactions(rows: Sequence[Row], found: Inspection, limits: OperationLimits) -> Iterator[Finding]:
    complete = found.soft_delete and found.index is not None
    for row in rows:
        if (row["oldest_s"] or 0) > limits.old_transaction_s:
            yield Finding(
                level="info" if complete else "warning",
                subject="old-transaction",
                message=f"A transaction of {_name(row)} is {row['oldest_s']:.0f} s old: an index build waits for it.",
                remedy="End it before migrating, or let the service wait: other sessions are not blocked meanwhile.",
            )
        elif row["hidden"] and not complete:
            yield Finding(
                level="info",
                subject="old-transaction",
                message=f"A transaction of {_name(row)} is open; role {quoted(found.role)} may not see its age.",
                remedy=f"As a superuser run: GRANT pg_read_all_stats TO {quoted(found.role)};",
            )


def _prepared(rows: Sequence[Row], limits: OperationLimits) -> Iterator[Finding]:
    for row in rows:
        if row["age_s"] > limits.old_transaction_s:
            yield Finding(
                level="warning",
                subject="old-transaction",
                message=f"The prepared transaction '{row['gid']}' of role {quoted(row['owner'])} is"
                f" {row['age_s']:.0f} s old and keeps its locks until it is committed or rolled back.",
                remedy=f"Run: COMMIT PREPARED '{row['gid']}'; or ROLLBACK PREPARED '{row['gid']}';",
            )


def _disk(found: Inspection) -> Iterator[Finding]:
    if found.kind == "r" and found.index is None and found.rows > 0:
        yield Finding(
            level="info",
            subject="disk",
            message=f"The index will take about {size_kilobytes(found):,} kB, and its build as much again; PostgreSQL"
            " does not report the free disk space.",
            remedy="Check that the server's disk has more than that free.",
        )


def _followers(row: Row | None) -> Iterator[Finding]:
    if row is not None and row["standbys"]:
        yield Finding(
            level="info",
            subject="replication",
            message=f"{counted(row['standbys'], 'standby follows', 'standbys follow')} this server: a long query on a"
            " standby delays the new column there.",
        )
    if row is not None and row["subscribers"]:
        yield Finding(
            level="info",
            subject="replication",
            message=f"{counted(row['subscribers'], 'subscriber', 'subscribers')} of logical replication"
            f" {'is' if row['subscribers'] == 1 else 'are'} connected to this server.",
        )


def _age(found: Inspection) -> Iterator[Finding]:
    if any(column.name == "environment" and column.type == _OLDEST_GENERATION for column in found.columns):
        yield Finding(
            level="info",
            subject="jsonb",
            message="The documents are stored as jsonb, as by the oldest versions: they keep their content but not"
            " their formatting.",
            remedy="Nothing has to be done.",
        )


def _name(row: Row) -> str:
    sessions = counted(row["sessions"], "session", "sessions")
    where = f" from {row['address']}" if row["address"] else ""
    return f"'{row['application']}' of role {quoted(row['role'])}{where} ({sessions})"
