"""The statements of the purge: whose `deletedAt` is a date before the cut-off, in batches that nothing waits for.

The cut-off is computed once, by the database. Rows are found first, in the order of their dates, and deleted by their
ids: views and tables WITHOUT ROWID have no other key. A row that is restored meanwhile, or that another purge deletes,
is left to them: PostgreSQL skips rows that are locked and looks at the date again after the lock; SQLite has one writer
at a time.
SQLite orders every number before every text, so a date written as a number would pass for the oldest of all: only text
that begins like a date, and that SQLite reads as one, is ever purged.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from services.environments_store.queries.postgresql import SETTLE, nearest_date, readable
from services.environments_store.schema.status import SchemaStatus

__all__ = ["Purging", "choose_purging"]


class Purging(NamedTuple):
    """The parameter of `cutoff` is days, the first of all others but `there` the cut-off. `pack_ids` packs ids."""

    cutoff: str
    candidates: str
    """Rows of `id` and `moment`, from a moment on (`first` is before all), without some ids, with a limit."""
    first: str
    delete: str
    """Takes ids, and returns the rows that it deleted."""
    left: str
    """Takes ids, and returns those that could be deleted now and are still there."""
    there: str
    """Takes nothing but ids, and returns those that are in the table."""
    settle: str | None
    """As among the other statements of the store."""
    pack_ids: Callable[[Sequence[str]], object]
    facts: str
    """One row: `count`, `oldest` and `newest` date."""
    months: str
    """Rows of `month` (`2025-05`) and `count`."""


_PG_RETURNED = (
    'id::text AS id, NULL::text AS environment, "environmentUuid", "timestamp", '
    f"{readable('createdAt', 'updatedAt', 'deletedAt')}"
)
_DELETED, _OLDEST, _NEWEST = map(nearest_date, ('"deletedAt"', 'min("deletedAt")', 'max("deletedAt")'))
_LITE_RETURNED = "id, NULL AS environment, environmentUuid, timestamp, createdAt, updatedAt, deletedAt"
_LITE_OLD = (
    "deletedAt IS NOT NULL AND id IS NOT NULL AND deletedAt GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]*'"
    " AND julianday(deletedAt) < julianday($1)"
)
_LITE_UTC = "strftime('%Y-%m-%d %H:%M:%f +00:00', deletedAt)"  # the forms of a date do not sort beside each other


def _postgresql(now: str, kind: str) -> Purging:
    free = 'FROM environments WHERE id = ANY ($2::text[]) AND "deletedAt" < $1 FOR UPDATE SKIP LOCKED'
    return Purging(
        cutoff=f"SELECT {now} - make_interval(days => $1) AS cutoff",
        # A moment travels as text: no driver's date holds them all. Ordered by the date alone, as the index has it.
        candidates=(
            'SELECT id::text AS id, "deletedAt"::text AS moment FROM environments'
            f' WHERE "deletedAt" < $1 AND "deletedAt" >= $2::text::{kind} AND id <> ALL ($3::text[])'
            ' ORDER BY "deletedAt" LIMIT $4'
        ),
        first="-infinity",
        # The date once more outside: whatever the plan does, a row restored meanwhile is kept. Written so that no index
        # can answer it: before ANALYZE has seen a large trash the planner would read all of it each time.
        delete=(
            f'DELETE FROM environments WHERE id = ANY (ARRAY(SELECT id {free})) AND ("deletedAt" < $1) IS TRUE'
            f" RETURNING {_PG_RETURNED}"
        ),
        left=f"SELECT id::text AS id {free}",
        there="SELECT id::text AS id FROM environments WHERE id = ANY ($1::text[])",
        settle=SETTLE,
        pack_ids=list,
        facts=(
            f"SELECT count(*) AS count, {_OLDEST} AS oldest, {_NEWEST} AS newest"
            ' FROM environments WHERE "deletedAt" < $1'
        ),
        months=(
            f"SELECT to_char({_DELETED}, 'YYYY-MM') AS month, count(*) AS count"
            ' FROM environments WHERE "deletedAt" < $1 GROUP BY 1 ORDER BY 1'
        ),
    )


_POSTGRESQL = _postgresql("now()", "timestamptz")
_POSTGRESQL_TIMESTAMP = _postgresql("(now() AT TIME ZONE 'UTC')", "timestamp")
_LITE_IDS = "id IN (SELECT value FROM json_each($2))"
_SQLITE = Purging(
    cutoff="SELECT strftime('%Y-%m-%d %H:%M:%f +00:00', 'now', '-' || $1 || ' days') AS cutoff",
    candidates=(
        f"SELECT id, deletedAt AS moment FROM environments WHERE {_LITE_OLD} AND deletedAt >= $2"
        " AND id NOT IN (SELECT value FROM json_each($3)) ORDER BY deletedAt LIMIT $4"
    ),
    first="",
    delete=f"DELETE FROM environments WHERE {_LITE_IDS} AND {_LITE_OLD} RETURNING {_LITE_RETURNED}",
    left=f"SELECT id FROM environments WHERE {_LITE_IDS} AND {_LITE_OLD}",
    there="SELECT id FROM environments WHERE id IN (SELECT value FROM json_each($1))",
    settle=None,
    pack_ids=lambda ids: msgspec.json.encode(ids).decode(),
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
