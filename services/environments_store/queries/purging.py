"""The statements of the purge: whose `deletedAt` is a date before the cut-off, in batches that disturb nobody.

The cut-off is computed once, by the database. A row that somebody restores, or another purge deletes, is left to them:
PostgreSQL skips rows that are locked and looks at the date again after the lock; SQLite has one writer at a time.
SQLite orders every number before every text, so a date written as a number would pass for the oldest of all: only text
that begins like a date, and that SQLite reads as one, is ever purged.
"""

from typing import NamedTuple

from services.environments_store.queries.postgresql import nearest_date, readable
from services.environments_store.schema.status import SchemaStatus

__all__ = ["Purging", "choose_purging"]


class Purging(NamedTuple):
    """`cutoff` takes days; `delete` the cut-off and how many at most; `facts` and `months` the cut-off."""

    cutoff: str
    delete: str
    facts: str
    """One row: `count`, `oldest` and `newest` date."""
    months: str
    """Rows of `month` (`2025-05`) and `count`."""


_PG_RETURNED = (
    f'id, NULL::text AS environment, "environmentUuid", "timestamp", {readable("createdAt", "updatedAt", "deletedAt")}'
)
_DELETED, _OLDEST, _NEWEST = map(nearest_date, ('"deletedAt"', 'min("deletedAt")', 'max("deletedAt")'))
_LITE_RETURNED = "id, NULL AS environment, environmentUuid, timestamp, createdAt, updatedAt, deletedAt"
_LITE_OLD = (
    "deletedAt IS NOT NULL AND id IS NOT NULL AND deletedAt GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]*'"
    " AND julianday(deletedAt) < julianday($1)"
)
_LITE_UTC = "strftime('%Y-%m-%d %H:%M:%f +00:00', deletedAt)"  # the forms of a date do not sort beside each other


def _postgresql(now: str) -> Purging:
    return Purging(
        cutoff=f"SELECT {now} - make_interval(days => $1) AS cutoff",
        delete=(
            "DELETE FROM environments WHERE ctid = ANY (ARRAY("
            'SELECT ctid FROM environments WHERE "deletedAt" < $1 ORDER BY "deletedAt" LIMIT $2 FOR UPDATE SKIP LOCKED'
            # The date once more outside: whatever the plan does, a row restored meanwhile is kept. Written so that no
            # index can answer it: before ANALYZE has seen a large trash the planner would read all of it each time.
            f')) AND ("deletedAt" < $1) IS TRUE RETURNING {_PG_RETURNED}'
        ),
        facts=(
            f"SELECT count(*) AS count, {_OLDEST} AS oldest, {_NEWEST} AS newest"
            ' FROM environments WHERE "deletedAt" < $1'
        ),
        months=(
            f"SELECT to_char({_DELETED}, 'YYYY-MM') AS month, count(*) AS count"
            ' FROM environments WHERE "deletedAt" < $1 GROUP BY 1 ORDER BY 1'
        ),
    )


_POSTGRESQL = _postgresql("now()")
_POSTGRESQL_TIMESTAMP = _postgresql("(now() AT TIME ZONE 'UTC')")
_SQLITE = Purging(
    cutoff="SELECT strftime('%Y-%m-%d %H:%M:%f +00:00', 'now', '-' || $1 || ' days') AS cutoff",
    delete=(
        f"DELETE FROM environments WHERE rowid IN (SELECT rowid FROM environments WHERE {_LITE_OLD}"
        f" ORDER BY deletedAt LIMIT $2) RETURNING {_LITE_RETURNED}"
    ),
    facts=(
        f"SELECT count(*) AS count, min({_LITE_UTC}) AS oldest, max({_LITE_UTC}) AS newest"
        f" FROM environments WHERE {_LITE_OLD}"
    ),
    months=(
        f"SELECT strftime('%Y-%m', deletedAt) AS month, count(*) AS count FROM environments WHERE {_LITE_OLD}"
        " GROUP BY 1 ORDER BY 1"
    ),
)


def choose_purging(status: SchemaStatus) -> Purging:
    """The set that fits the table as it was last seen, which has the column."""
    if status.dialect == "sqlite":
        return _SQLITE
    return _POSTGRESQL if status.deleted_at_zone else _POSTGRESQL_TIMESTAMP
