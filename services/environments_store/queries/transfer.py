"""The statements of export and import: whole rows, many at a time, in each dialect and shape of the table."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from services.environments_store.queries.postgresql import LISTED_DOCUMENT, readable
from services.environments_store.queries.sqlite import LITE_LISTED_DOCUMENT
from services.environments_store.schema.status import SchemaStatus

__all__ = ["StoredRow", "Transfer", "choose_transfer"]


_NO_DATE = ', NULL::timestamptz AS "deletedAt"'


class StoredRow(NamedTuple):
    """A row to store as it is. Dates are `YYYY-MM-DDTHH:MM:SS.mmmZ`; `deleted_at` is None for a live one."""

    id: str
    document: str
    environment_uuid: str
    timestamp: int
    created_at: str
    updated_at: str
    deleted_at: str | None


class Transfer(NamedTuple):
    """`insert` and `replace` take what `pack` makes of rows with different ids, and return the ids they stored:
    `insert` leaves out those that are there. `existing` takes what `pack_ids` makes of ids."""

    everything: str
    """All rows, live and deleted, as a listing has them; takes a limit."""
    existing: str
    insert: str
    replace: str
    pack: Callable[[Sequence[StoredRow]], tuple[object, ...]]
    pack_ids: Callable[[Sequence[str]], tuple[object, ...]]


def choose_transfer(status: SchemaStatus) -> Transfer:
    """The set that fits the table as it was last seen. Without `deletedAt`, `pack` ignores that of the rows."""
    if status.dialect == "sqlite":
        return _sqlite(with_date=status.soft_delete)
    if not status.soft_delete:
        return _postgresql(None)
    return _postgresql("::timestamptz" if status.deleted_at_zone else "::timestamptz AT TIME ZONE 'UTC'")


def _postgresql(deleted_cast: str | None) -> Transfer:
    columns = ["id", "environment", '"environmentUuid"', '"timestamp"', '"createdAt"', '"updatedAt"']
    values = ["r.id", "r.environment::json", "r.uuid", "r.stamp", "r.created::timestamptz", "r.updated::timestamptz"]
    if deleted_cast is not None:
        columns.append('"deletedAt"')
        values.append(f"r.deleted{deleted_cast}")
    insert = (
        f"INSERT INTO environments ({', '.join(columns)}) SELECT {', '.join(values)}"
        " FROM unnest($1::text[], $2::text[], $3::text[], $4::int8[], $5::text[], $6::text[], $7::text[])"
        " AS r (id, environment, uuid, stamp, created, updated, deleted) ON CONFLICT (id)"
    )
    dates = readable(*(column.strip('"') for column in columns[4:]))
    rest = f"{', '.join(columns[2:4])}, {dates}{'' if deleted_cast else _NO_DATE}"
    selected = f"id::text AS id, {LISTED_DOCUMENT}, {rest}"
    assignments = ", ".join(f"{column} = EXCLUDED.{column}" for column in columns[1:])
    return Transfer(
        everything=f'SELECT {selected} FROM environments ORDER BY environments."createdAt", id COLLATE "C" LIMIT $1',
        existing="SELECT id::text AS id FROM environments WHERE id = ANY ($1::text[])",
        insert=f"{insert} DO NOTHING RETURNING id::text AS id",
        replace=f"{insert} DO UPDATE SET {assignments} RETURNING id::text AS id",
        pack=lambda rows: tuple(list(column) for column in zip(*rows, strict=True)),
        pack_ids=lambda ids: (list(ids),),
    )


def _sqlite(with_date: bool) -> Transfer:
    columns = ["id", "environment", "environmentUuid", "timestamp", "createdAt", "updatedAt"]
    columns += ["deletedAt"] if with_date else []
    values = ", ".join(f"json_extract(value, '$[{position}]')" for position in range(len(columns)))
    # WHERE TRUE: without it SQLite would take ON for a join's.
    insert = (
        f"INSERT INTO environments ({', '.join(columns)}) SELECT {values} FROM json_each($1)"
        " WHERE TRUE ON CONFLICT (id)"
    )
    selected = ["id", LITE_LISTED_DOCUMENT, *columns[2:]]
    selected += [] if with_date else ["NULL AS deletedAt"]
    assignments = ", ".join(f"{column} = excluded.{column}" for column in columns[1:])
    return Transfer(
        everything=(
            f"SELECT {', '.join(selected)} FROM environments WHERE id IS NOT NULL ORDER BY createdAt, id LIMIT $1"
        ),
        existing="SELECT id FROM environments WHERE id IN (SELECT value FROM json_each($1))",
        insert=f"{insert} DO NOTHING RETURNING id",
        replace=f"{insert} DO UPDATE SET {assignments} RETURNING id",
        pack=lambda rows: (msgspec.json.encode([_as_sequelize_writes(row) for row in rows]).decode(),),
        pack_ids=lambda ids: (msgspec.json.encode(ids).decode(),),
    )


def _as_sequelize_writes(row: StoredRow) -> StoredRow:
    return row._replace(
        created_at=_date(row.created_at),
        updated_at=_date(row.updated_at),
        deleted_at=row.deleted_at and _date(row.deleted_at),
    )


def _date(iso: str) -> str:
    """The one form that sorts rightly beside the dates already in a file: `2025-05-27 08:54:47.123 +00:00`."""
    return f"{iso[:10]} {iso[11:23]} +00:00"
