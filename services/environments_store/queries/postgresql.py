"""PostgreSQL: with `deletedAt` as TIMESTAMPTZ, with the guide's TIMESTAMP, and without the column.

Dates are written in whole milliseconds, so that a JavaScript reader sees the same instant. A TIMESTAMP column holds
UTC wall time: `now()` alone would be stored in the zone of the session.
"""

from services.environments_store.database.base import Documents
from services.environments_store.defaults import StoreLimits
from services.environments_store.queries.base import Listing, Queries, SoftDelete
from services.environments_store.schema.names import quoted

__all__ = [
    "DOCUMENT",
    "LISTED_DOCUMENT",
    "POSTGRESQL",
    "POSTGRESQL_TIMESTAMP",
    "POSTGRESQL_WITHOUT",
    "SETTLE",
    "nearest_date",
    "readable",
]

_FIRST, _LAST = "'0001-01-01 00:00:00+00'", "'9999-12-31 23:59:59.999+00'"


def nearest_date(date: str) -> str:
    """A date that drivers can read. PostgreSQL's range from 4713 BC to infinity, and one row beyond the years 1 to 9999
    would make a whole list fail: it gets the nearest date."""
    return f"CASE WHEN {date} < {_FIRST} THEN {_FIRST} WHEN {date} > {_LAST} THEN {_LAST} ELSE {date} END"


def readable(*dates: str) -> str:
    """Columns of dates, to be selected. An ORDER BY has to name the column with its table: without, it would order by
    the expression that bears its name here, which no index has."""
    return ", ".join(f"{nearest_date(name)} AS {name}" for name in map(quoted, dates))


# As bytes: in a database with the encoding SQL_ASCII, which checks nothing, a document that is not UTF-8 must not make
# a whole list fail. From other encodings it has to be converted.
DOCUMENT = "convert_to(environment::text, CASE getdatabaseencoding() WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END)"
_PG_DOCUMENT = f"{DOCUMENT} AS environment"
_PG_SIZE = f"octet_length(environment::text) > {StoreLimits().listed_bytes}"
LISTED_DOCUMENT = f"CASE WHEN {_PG_SIZE} THEN NULL ELSE {DOCUMENT} END AS environment, {_PG_SIZE} AS large"
"""Where many rows are fetched at once, a large document is left out: `look` gets it, one at a time."""
_PG_DATES_WITHOUT = readable("createdAt", "updatedAt")
_PG_DATES = readable("createdAt", "updatedAt", "deletedAt")
# Text of any type: one of fixed length would come back with the spaces that fill it.
_PG_ID = "id::text AS id"
_PG_COLUMNS = f'{_PG_ID}, {_PG_DOCUMENT}, "environmentUuid", "timestamp", {_PG_DATES}'
_PG_LIGHT = f'{_PG_ID}, NULL::text AS environment, "environmentUuid", "timestamp", {_PG_DATES}'
_PG_COLUMNS_WITHOUT = (
    f'{_PG_ID}, {_PG_DOCUMENT}, "environmentUuid", "timestamp", {_PG_DATES_WITHOUT}, NULL::timestamptz AS "deletedAt"'
)
_PG_LIGHT_WITHOUT = (
    f'{_PG_ID}, NULL::text AS environment, "environmentUuid", "timestamp", {_PG_DATES_WITHOUT},'
    ' NULL::timestamptz AS "deletedAt"'
)
_PG_TRANSACTION = "txid_current() AS transaction"
_PG_COMMITTED = "SELECT nullif(txid_status($1), 'in progress') = 'committed' AS committed"
SETTLE = "SET CONSTRAINTS ALL IMMEDIATE"
_PG_NOW = "date_trunc('milliseconds', now())"
_PG_NOW_MS = "floor(extract(epoch FROM now()) * 1000)"
# The same order as SQLite's, whatever the collation of the database.
_PG_ORDER = 'environments."createdAt", id COLLATE "C"'
_PG_AFTER = '("createdAt", id COLLATE "C") > (SELECT "createdAt", id FROM environments WHERE id = $2)'
_PG_UNDATED_AFTER = (
    '"createdAt" IS NULL AND id COLLATE "C" >'
    """ (SELECT CASE WHEN "createdAt" IS NULL THEN id ELSE '' END FROM environments WHERE id = $2)"""
)


def _pg_listing(columns: str, light: str, condition: str, *after: str) -> Listing:
    columns = columns.replace(_PG_DOCUMENT, LISTED_DOCUMENT)
    first = f"FROM environments WHERE {condition} ORDER BY {_PG_ORDER} LIMIT $1"
    rest = [f"FROM environments WHERE {condition} AND {one} ORDER BY {_PG_ORDER} LIMIT $1" for one in after]
    return Listing(
        f"SELECT {columns} {first}",
        tuple(f"SELECT {columns} {one}" for one in rest),
        f"SELECT {light} {first}",
        tuple(f"SELECT {light} {one}" for one in rest),
    )


def _pg_pieces(columns: str) -> str:
    # The LIMIT also keeps the planner from computing the document for each piece: it is, once, the outer row of a loop.
    names = '"environmentUuid", "timestamp", "createdAt", "updatedAt", "deletedAt"'
    size = StoreLimits().piece_bytes
    return (
        f"SELECT id, substring(environment FROM at FOR {size}) AS environment, {names}"
        f" FROM (SELECT {columns} FROM environments WHERE id = $1 LIMIT 1) AS whole,"
        f" generate_series(1, octet_length(environment), {size}) AS at"
    )


def _pg_create(columns: str, *, soft_delete: bool) -> str:
    # Live whatever default the column has. The uuid is cast because a DBA may have widened one of its two columns.
    date, live = (', "deletedAt"', ", NULL") if soft_delete else ("", "")
    return (
        f'INSERT INTO environments (id, environment, "environmentUuid", "timestamp", "createdAt", "updatedAt"{date})'
        f" VALUES ($1::text, $2::json, $1::text, {_PG_NOW_MS}, {_PG_NOW}, {_PG_NOW}{live})"
        f" ON CONFLICT (id) DO NOTHING RETURNING {columns}"
    )


def _pg_update(columns: str, condition: str) -> str:
    return (
        f'UPDATE environments SET environment = $2::json, "timestamp" = {_PG_NOW_MS}, "updatedAt" = {_PG_NOW}'
        f" WHERE id = $1{condition} RETURNING {columns}"
    )


def _pg_trash_listing() -> Listing:
    order = 'environments."deletedAt" DESC, id COLLATE "C"'
    anchor = '(SELECT "deletedAt" FROM environments WHERE id = $2)'
    first = f'FROM environments WHERE "deletedAt" IS NOT NULL ORDER BY {order} LIMIT $1'
    after = (
        f'FROM environments WHERE "deletedAt" <= {anchor} AND ("deletedAt" < {anchor} OR id COLLATE "C" > $2)'
        f" ORDER BY {order} LIMIT $1"
    )
    columns = _PG_COLUMNS.replace(_PG_DOCUMENT, LISTED_DOCUMENT)
    return Listing(
        f"SELECT {columns} {first}",
        (f"SELECT {columns} {after}",),
        f"SELECT {_PG_LIGHT} {first}",
        (f"SELECT {_PG_LIGHT} {after}",),
    )


def _pg(deleted_now: str, now: str) -> Queries:
    live = ' AND "deletedAt" IS NULL'
    return Queries(
        get=f'SELECT {_PG_COLUMNS} FROM environments WHERE id = $1 AND "deletedAt" IS NULL',
        get_by_environment_uuid=(
            f'SELECT {_PG_COLUMNS} FROM environments WHERE "environmentUuid" = $1 AND "deletedAt" IS NULL LIMIT 1'
        ),
        look=f"SELECT {_PG_COLUMNS} FROM environments WHERE id = $1",
        documents=Documents(_pg_pieces(_PG_COLUMNS)),
        look_light=f"SELECT {_PG_LIGHT} FROM environments WHERE id = $1",
        lock=f'SELECT {_PG_COLUMNS} FROM environments WHERE id = $1 AND "deletedAt" IS NULL FOR UPDATE',
        listing=_pg_listing(_PG_COLUMNS, _PG_LIGHT, '"deletedAt" IS NULL', _PG_AFTER),
        undated_listing=_pg_listing(_PG_COLUMNS, _PG_LIGHT, '"deletedAt" IS NULL', _PG_AFTER, _PG_UNDATED_AFTER),
        create=_pg_create(_PG_COLUMNS, soft_delete=True),
        update=_pg_update(_PG_COLUMNS, live),
        delete_any=f"DELETE FROM environments WHERE id = $1 RETURNING {_PG_COLUMNS}, {_PG_TRANSACTION}",
        stats=(
            'SELECT count(*) AS total, count(*) FILTER (WHERE "deletedAt" IS NULL) AS active,'
            ' count("deletedAt") AS deleted,'
            f' count(*) FILTER (WHERE "deletedAt" > {now} - make_interval(days => $1)) AS recently_deleted'
            " FROM environments"
        ),
        soft_delete=SoftDelete(
            listing=_pg_trash_listing(),
            remove=(
                f'UPDATE environments SET "deletedAt" = {deleted_now}, "updatedAt" = {_PG_NOW}'
                f' WHERE id = $1 AND "deletedAt" IS NULL RETURNING {_PG_COLUMNS}'
            ),
            restore=(
                f'UPDATE environments SET "deletedAt" = NULL, "updatedAt" = {_PG_NOW}'
                f' WHERE id = $1 AND "deletedAt" IS NOT NULL RETURNING {_PG_COLUMNS}'
            ),
            delete=(
                'DELETE FROM environments WHERE id = $1 AND "deletedAt" IS NOT NULL'
                f" RETURNING {_PG_COLUMNS}, {_PG_TRANSACTION}"
            ),
        ),
        committed=_PG_COMMITTED,
        settle=SETTLE,
        no_limit=None,
    )


POSTGRESQL = _pg(_PG_NOW, "now()")
POSTGRESQL_TIMESTAMP = _pg("date_trunc('milliseconds', now() AT TIME ZONE 'UTC')", "(now() AT TIME ZONE 'UTC')")
POSTGRESQL_WITHOUT = Queries(
    get=f"SELECT {_PG_COLUMNS_WITHOUT} FROM environments WHERE id = $1",
    get_by_environment_uuid=f'SELECT {_PG_COLUMNS_WITHOUT} FROM environments WHERE "environmentUuid" = $1 LIMIT 1',
    look=f"SELECT {_PG_COLUMNS_WITHOUT} FROM environments WHERE id = $1",
    documents=Documents(_pg_pieces(_PG_COLUMNS_WITHOUT)),
    look_light=f"SELECT {_PG_LIGHT_WITHOUT} FROM environments WHERE id = $1",
    lock=f"SELECT {_PG_COLUMNS_WITHOUT} FROM environments WHERE id = $1 FOR UPDATE",
    listing=_pg_listing(_PG_COLUMNS_WITHOUT, _PG_LIGHT_WITHOUT, "TRUE", _PG_AFTER),
    undated_listing=_pg_listing(_PG_COLUMNS_WITHOUT, _PG_LIGHT_WITHOUT, "TRUE", _PG_AFTER, _PG_UNDATED_AFTER),
    create=_pg_create(_PG_COLUMNS_WITHOUT, soft_delete=False),
    update=_pg_update(_PG_COLUMNS_WITHOUT, ""),
    delete_any=f"DELETE FROM environments WHERE id = $1 RETURNING {_PG_COLUMNS_WITHOUT}, {_PG_TRANSACTION}",
    stats=(
        "SELECT count(*) AS total, count(*) AS active, 0 AS deleted, 0 AS recently_deleted"
        " FROM environments WHERE $1::int IS NOT NULL"
    ),
    soft_delete=None,
    committed=_PG_COMMITTED,
    settle=SETTLE,
    no_limit=None,
)
