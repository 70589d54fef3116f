"""SQLite: with `deletedAt` and without.

Names are unquoted, because SQLite reads an unknown quoted name as text. Dates are written in Sequelize's form,
`YYYY-MM-DD HH:MM:SS.mmm +00:00`, which alone sorts correctly with existing ones.
"""

from services.environments_store.database.base import Documents
from services.environments_store.defaults import StoreLimits
from services.environments_store.queries.base import Listing, Queries, SoftDelete

__all__ = ["LITE_DOCUMENT", "LITE_LISTED_DOCUMENT", "SQLITE", "SQLITE_WITHOUT"]

# As bytes: a document that is not UTF-8 must not make a whole list fail.
LITE_DOCUMENT = "CAST(environment AS BLOB) AS environment"
_LITE_SIZE = f"length(CAST(environment AS BLOB)) > {StoreLimits().listed_bytes}"
LITE_LISTED_DOCUMENT = (
    f"CASE WHEN {_LITE_SIZE} THEN NULL ELSE CAST(environment AS BLOB) END AS environment, {_LITE_SIZE} AS large"
)
"""Where many rows are fetched at once, a large document is left out: `look` gets it, one at a time."""
_LITE_COLUMNS = f"id, {LITE_DOCUMENT}, environmentUuid, timestamp, createdAt, updatedAt, deletedAt"
_LITE_LIGHT = "id, NULL AS environment, environmentUuid, timestamp, createdAt, updatedAt, deletedAt"
_LITE_COLUMNS_WITHOUT = f"id, {LITE_DOCUMENT}, environmentUuid, timestamp, createdAt, updatedAt, NULL AS deletedAt"
_LITE_LIGHT_WITHOUT = "id, NULL AS environment, environmentUuid, timestamp, createdAt, updatedAt, NULL AS deletedAt"
_LITE_NOW = "strftime('%Y-%m-%d %H:%M:%f +00:00', 'now')"
_LITE_NOW_MS = "CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER)"
# No row instead of zeros: an empty answer is looked at twice, since the original empties its table for a moment.
_LITE_SOME = " HAVING count(*) > 0"
_LITE_LIVE = "deletedAt IS NULL AND id IS NOT NULL"
_LITE_AFTER = "(createdAt, id) > (SELECT createdAt, id FROM environments WHERE id = $2)"
_LITE_UNDATED_AFTER = (
    "createdAt IS NULL AND id > (SELECT id FROM environments WHERE id = $2 AND createdAt IS NULL)",
    # Less than every number, text and blob: all that have a date come after one that has none.
    "(createdAt, id) > (SELECT coalesce(createdAt, -9e999), id FROM environments WHERE id = $2)",
)


def _lite_listing(columns: str, light: str, condition: str, *after: str) -> Listing:
    columns = columns.replace(LITE_DOCUMENT, LITE_LISTED_DOCUMENT)
    first = f"FROM environments WHERE {condition} ORDER BY createdAt, id LIMIT $1"
    rest = [f"FROM environments WHERE {condition} AND {one} ORDER BY createdAt, id LIMIT $1" for one in after]
    return Listing(
        f"SELECT {columns} {first}",
        tuple(f"SELECT {columns} {one}" for one in rest),
        f"SELECT {light} {first}",
        tuple(f"SELECT {light} {one}" for one in rest),
    )


def _lite_documents(columns: str) -> Documents:
    listed = columns.replace(LITE_DOCUMENT, LITE_LISTED_DOCUMENT)
    return Documents(
        alone=f"SELECT {columns} FROM environments WHERE id = $1",
        together=f"SELECT {listed} FROM environments WHERE id IN ({{}})",
    )


def _lite_trash_listing() -> Listing:
    anchor = "(SELECT deletedAt FROM environments WHERE id = $2)"
    first = "FROM environments WHERE deletedAt IS NOT NULL AND id IS NOT NULL ORDER BY deletedAt DESC, id LIMIT $1"
    after = (
        f"FROM environments WHERE deletedAt IS NOT NULL AND deletedAt <= {anchor}"
        f" AND (deletedAt < {anchor} OR id > $2) ORDER BY deletedAt DESC, id LIMIT $1"
    )
    columns = _LITE_COLUMNS.replace(LITE_DOCUMENT, LITE_LISTED_DOCUMENT)
    return Listing(
        f"SELECT {columns} {first}",
        (f"SELECT {columns} {after}",),
        f"SELECT {_LITE_LIGHT} {first}",
        (f"SELECT {_LITE_LIGHT} {after}",),
    )


def _lite_create(columns: str, *, soft_delete: bool) -> str:
    date, live = (", deletedAt", ", NULL") if soft_delete else ("", "")  # live whatever default the column has
    return (
        f"INSERT INTO environments (id, environment, environmentUuid, timestamp, createdAt, updatedAt{date})"
        f" VALUES ($1, $2, $1, {_LITE_NOW_MS}, {_LITE_NOW}, {_LITE_NOW}{live})"
        f" ON CONFLICT (id) DO NOTHING RETURNING {columns}"
    )


def _lite_update(columns: str, condition: str) -> str:
    return (
        f"UPDATE environments SET environment = $2, timestamp = {_LITE_NOW_MS}, updatedAt = {_LITE_NOW}"
        f" WHERE id = $1{condition} RETURNING {columns}"
    )


SQLITE = Queries(
    get=f"SELECT {_LITE_COLUMNS} FROM environments WHERE id = $1 AND deletedAt IS NULL",
    get_by_environment_uuid=(
        f"SELECT {_LITE_COLUMNS} FROM environments"
        " WHERE environmentUuid = $1 AND id IS NOT NULL AND deletedAt IS NULL LIMIT 1"
    ),
    look=f"SELECT {_LITE_COLUMNS} FROM environments WHERE id = $1",
    documents=_lite_documents(_LITE_COLUMNS),
    look_light=f"SELECT {_LITE_LIGHT} FROM environments WHERE id = $1",
    lock=f"SELECT {_LITE_COLUMNS} FROM environments WHERE id = $1 AND deletedAt IS NULL",
    listing=_lite_listing(_LITE_COLUMNS, _LITE_LIGHT, _LITE_LIVE, _LITE_AFTER),
    undated_listing=_lite_listing(_LITE_COLUMNS, _LITE_LIGHT, _LITE_LIVE, *_LITE_UNDATED_AFTER),
    create=_lite_create(_LITE_COLUMNS, soft_delete=True),
    update=_lite_update(_LITE_COLUMNS, " AND deletedAt IS NULL"),
    delete_any=f"DELETE FROM environments WHERE id = $1 RETURNING {_LITE_COLUMNS}",
    stats=(
        "SELECT count(*) AS total, count(*) FILTER (WHERE deletedAt IS NULL) AS active, count(deletedAt) AS deleted,"
        # julianday of a number is NULL or far away: a date written as epoch milliseconds is never "recent" by accident.
        " count(*) FILTER (WHERE julianday(deletedAt) > julianday('now', '-' || $1 || ' days')) AS recently_deleted"
        f" FROM environments{_LITE_SOME}"
    ),
    soft_delete=SoftDelete(
        listing=_lite_trash_listing(),
        remove=(
            f"UPDATE environments SET deletedAt = {_LITE_NOW}, updatedAt = {_LITE_NOW}"
            f" WHERE id = $1 AND deletedAt IS NULL RETURNING {_LITE_COLUMNS}"
        ),
        restore=(
            f"UPDATE environments SET deletedAt = NULL, updatedAt = {_LITE_NOW}"
            f" WHERE id = $1 AND deletedAt IS NOT NULL RETURNING {_LITE_COLUMNS}"
        ),
        delete=f"DELETE FROM environments WHERE id = $1 AND deletedAt IS NOT NULL RETURNING {_LITE_COLUMNS}",
    ),
    committed=None,
    settle=None,
    no_limit=-1,
)
SQLITE_WITHOUT = Queries(
    get=f"SELECT {_LITE_COLUMNS_WITHOUT} FROM environments WHERE id = $1",
    get_by_environment_uuid=(
        f"SELECT {_LITE_COLUMNS_WITHOUT} FROM environments WHERE environmentUuid = $1 AND id IS NOT NULL LIMIT 1"
    ),
    look=f"SELECT {_LITE_COLUMNS_WITHOUT} FROM environments WHERE id = $1",
    documents=_lite_documents(_LITE_COLUMNS_WITHOUT),
    look_light=f"SELECT {_LITE_LIGHT_WITHOUT} FROM environments WHERE id = $1",
    lock=f"SELECT {_LITE_COLUMNS_WITHOUT} FROM environments WHERE id = $1",
    listing=_lite_listing(_LITE_COLUMNS_WITHOUT, _LITE_LIGHT_WITHOUT, "id IS NOT NULL", _LITE_AFTER),
    undated_listing=_lite_listing(_LITE_COLUMNS_WITHOUT, _LITE_LIGHT_WITHOUT, "id IS NOT NULL", *_LITE_UNDATED_AFTER),
    create=_lite_create(_LITE_COLUMNS_WITHOUT, soft_delete=False),
    update=_lite_update(_LITE_COLUMNS_WITHOUT, ""),
    delete_any=f"DELETE FROM environments WHERE id = $1 RETURNING {_LITE_COLUMNS_WITHOUT}",
    stats=(
        "SELECT count(*) AS total, count(*) AS active, 0 AS deleted, 0 AS recently_deleted"
        f" FROM environments WHERE $1 IS NOT NULL{_LITE_SOME}"
    ),
    soft_delete=None,
    committed=None,
    settle=None,
    no_limit=-1,
)
