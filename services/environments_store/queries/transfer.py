"""The statements of export and import: whole rows, many at a time, in each dialect and shape of the table."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from services.environments_store.defaults import DatabaseSettings
from services.environments_store.queries.postgresql import DOCUMENT, LISTED_DOCUMENT, readable
from services.environments_store.queries.sqlite import LITE_DOCUMENT, LITE_LISTED_DOCUMENT
from services.environments_store.schema.status import SchemaStatus

__all__ = ["StagedRow", "Staging", "StoredRow", "Transfer", "choose_transfer"]


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


class StagedRow(NamedTuple):
    """Where a row waits to be stored: its number there, and the line that it came from."""

    n: int
    id: str
    line: int


class Staging(NamedTuple):
    """A table of the connection's own, in a file of its own: while rows are gathered there, others write the database.
    From there they are stored in a fraction of the time that it takes to read lines."""

    create: str
    add: str
    """Takes what `pack` makes of rows and of their lines."""
    rows: str
    """The staged rows after a number; takes that number, and a limit."""
    drop: str
    pack: Callable[[Sequence[StoredRow], Sequence[int]], tuple[object, ...]]


class Transfer(NamedTuple):
    """`insert` and `replace` take what `pack` makes of rows with different ids, and return the ids they stored, with
    `environment` and `deletedAt` where the table may undo it: `insert` leaves out those that are there. `existing`
    takes what `pack_ids` makes of ids."""

    everything: str
    """All rows, live and deleted, as a listing has them; takes a limit."""
    existing: str
    insert: str
    replace: str
    pack: Callable[[Sequence[Any]], tuple[object, ...]]
    pack_ids: Callable[[Sequence[str]], tuple[object, ...]]
    begin: str | None = None
    """The first statement of the transaction: reading a large line in it takes longer than transactions may be idle."""
    staging: Staging | None = None
    """Where there is one, `pack` takes staged rows."""


def choose_transfer(status: SchemaStatus, staging: str = "staging") -> Transfer:
    """The set that fits the table as it was last seen. Without `deletedAt`, `pack` ignores that of the rows. `staging`
    is the name of such a table, where one is needed."""
    if status.dialect == "sqlite":
        return _sqlite(f"temp.{staging}", with_date=status.soft_delete, whole=status.may_undo)
    if not status.soft_delete:
        return _postgresql(None, whole=status.may_undo)
    cast = "::timestamptz" if status.deleted_at_zone else "::timestamptz AT TIME ZONE 'UTC'"
    return _postgresql(cast, whole=status.may_undo)


def _postgresql(deleted_cast: str | None, *, whole: bool) -> Transfer:
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
    returned = "id::text AS id"
    if whole:
        returned += f", {DOCUMENT} AS environment{', ' + readable('deletedAt') if deleted_cast else _NO_DATE}"
    return Transfer(
        everything=f'SELECT {selected} FROM environments ORDER BY environments."createdAt", id COLLATE "C" LIMIT $1',
        existing="SELECT id::text AS id FROM environments WHERE id = ANY ($1::text[])",
        insert=f"{insert} DO NOTHING RETURNING {returned}",
        replace=f"{insert} DO UPDATE SET {assignments} RETURNING {returned}",
        pack=lambda rows: tuple(list(column) for column in zip(*rows, strict=True)),
        pack_ids=lambda ids: (list(ids),),
        begin=f"SET LOCAL idle_in_transaction_session_timeout = {int(DatabaseSettings().stream_idle_timeout_s * 1000)}",
    )


def _sqlite(staging: str, *, with_date: bool, whole: bool) -> Transfer:
    columns = ["id", "environment", "environmentUuid", "timestamp", "createdAt", "updatedAt"]
    columns += ["deletedAt"] if with_date else []
    insert = (
        f"INSERT INTO environments ({', '.join(columns)}) SELECT {', '.join(columns)} FROM {staging}"
        " WHERE n IN (SELECT value FROM json_each($1)) ON CONFLICT (id)"
    )
    selected = ["id", LITE_LISTED_DOCUMENT, *columns[2:]]
    selected += [] if with_date else ["NULL AS deletedAt"]
    assignments = ", ".join(f"{column} = excluded.{column}" for column in columns[1:])
    returned = "id"
    if whole:
        returned += f", {LITE_DOCUMENT}, {'deletedAt' if with_date else 'NULL AS deletedAt'}"
    return Transfer(
        everything=(
            f"SELECT {', '.join(selected)} FROM environments WHERE id IS NOT NULL ORDER BY createdAt, id LIMIT $1"
        ),
        existing="SELECT id FROM environments WHERE id IN (SELECT value FROM json_each($1))",
        insert=f"{insert} DO NOTHING RETURNING {returned}",
        replace=f"{insert} DO UPDATE SET {assignments} RETURNING {returned}",
        pack=lambda rows: _json([row.n for row in rows]),
        pack_ids=_json,
        staging=_staging(staging),
    )


def _staging(name: str) -> Staging:
    columns = "line, id, environment, environmentUuid, timestamp, createdAt, updatedAt, deletedAt"
    values = ", ".join(f"json_extract(value, '$[{position}]')" for position in range(columns.count(",") + 1))
    return Staging(
        create=f"CREATE TABLE {name} (n INTEGER PRIMARY KEY, {columns})",
        add=f"INSERT INTO {name} ({columns}) SELECT {values} FROM json_each($1)",
        rows=f"SELECT n, id, line FROM {name} WHERE n > $1 ORDER BY n LIMIT $2",
        drop=f"DROP TABLE {name}",
        pack=lambda rows, lines: _json(
            [(line, *_as_sequelize_writes(row)) for row, line in zip(rows, lines, strict=True)]
        ),
    )


def _json(values: Sequence[object]) -> tuple[object, ...]:
    return (msgspec.json.encode(values).decode(),)


def _as_sequelize_writes(row: StoredRow) -> StoredRow:
    return row._replace(
        created_at=_date(row.created_at),
        updated_at=_date(row.updated_at),
        deleted_at=row.deleted_at and _date(row.deleted_at),
    )


def _date(iso: str) -> str:
    """The one form that sorts rightly beside the dates already in a file: `2025-05-27 08:54:47.123 +00:00`."""
    return f"{iso[:10]} {iso[11:23]} +00:00"
