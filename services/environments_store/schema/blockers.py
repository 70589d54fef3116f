"""The sessions that hold locks on the table, for the log and `migrate check`. None of them is ever terminated."""

from datetime import timedelta

import msgspec

from services.environments_store.database.postgres_session import PostgresSession

__all__ = ["Blocker", "describe", "who_blocks"]

# Of other roles' sessions an ordinary role sees pid, application and lock mode, but not the query or its age.
QUERY = """
SELECT a.pid, a.application_name AS application, coalesce(a.usename, p.owner)::text AS role, a.state, l.mode, p.gid,
       clock_timestamp() - coalesce(a.xact_start, p.prepared) AS age, left(a.query, 60) AS query
FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)
LEFT JOIN (pg_locks x JOIN pg_prepared_xacts p ON x.locktype = 'transactionid' AND x.transactionid = p.transaction)
     ON l.pid IS NULL AND x.pid IS NULL AND x.virtualtransaction = l.virtualtransaction
WHERE l.locktype = 'relation' AND l.relation = $1::oid AND l.granted
  AND (a.pid <> pg_backend_pid() OR p.gid IS NOT NULL)
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY coalesce(a.xact_start, p.prepared) NULLS LAST, a.pid
"""
HIDDEN = "<insufficient privilege>"


class Blocker(msgspec.Struct, frozen=True, kw_only=True):
    """`pid` is None for a prepared transaction, which has no process: it is identified by its `gid`."""

    pid: int | None
    gid: str | None = None
    application: str
    role: str
    mode: str
    state: str | None = None
    age_s: float | None = None
    query: str | None = None

    def __str__(self) -> str:
        who = f"pid {self.pid} ({self.application or self.role})"
        text = f"{who if self.gid is None else f'the prepared transaction {self.gid!r}'} holds {self.mode}"
        if self.age_s is not None:
            text += f" for {self.age_s:.0f} s"
        if self.state:
            text += f", {self.state}"
        return f"{text}: {self.query}" if self.query else text


async def who_blocks(session: PostgresSession, oid: int) -> tuple[Blocker, ...]:
    """Every other holder of a lock on the table, oldest transaction first. Raises StatementFailure."""
    rows = await session.fetch(QUERY, oid)
    return tuple(
        Blocker(
            pid=row["pid"],
            gid=row["gid"],
            application=row["application"] or "",
            role=row["role"] or "",
            mode=row["mode"],
            state=row["state"],
            age_s=_seconds(row["age"]),
            query=None if row["query"] in (None, "", HIDDEN) else row["query"],
        )
        for row in rows
    )


def describe(blockers: tuple[Blocker, ...]) -> str:
    if not blockers:
        return "The table was locked by a session that has ended meanwhile."
    return f"{'; '.join(map(str, blockers))}. End that transaction, or wait for the next attempt."


def _seconds(age: timedelta | None) -> float | None:
    return None if age is None else max(0.0, age.total_seconds())
