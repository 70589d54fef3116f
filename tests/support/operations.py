"""What the tests of the operations share: tables with many rows, lines of an import, and what is in a table."""

import io
import logging
from typing import IO, Any

import msgspec

from services.environments_store.operations.exporting import Export, Selection
from services.environments_store.operations.importing import Import, Imported, OnConflict
from services.environments_store.operations.purge import Purge
from services.environments_store.shape import TableShape
from tests.support.store import Bench

__all__ = ["LOGGER", "TRASHABLE", "exported", "fill", "imported", "ndjson", "purge", "shape_of"]

LOGGER = logging.getLogger("tests.operations")
TRASHABLE = ["sqlite", "postgresql", "postgresql with the guide's TIMESTAMP", "postgresql with jsonb"]
"""The shapes with the column."""

_POSTGRESQL = """INSERT INTO environments
(id, environment, "environmentUuid", "timestamp", "createdAt", "updatedAt"{deleted_name})
SELECT '{prefix}' || n, json_build_object('uuid', '{prefix}' || n), '{prefix}' || n, 1748340000000 + n,
       '2025-01-01Z'::timestamptz + n * interval '1 ms', '2025-01-01Z'{deleted}
FROM generate_series(1, {count}) AS n"""
_SQLITE = """WITH RECURSIVE s (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {count})
INSERT INTO environments (id, environment, environmentUuid, timestamp, createdAt, updatedAt{deleted_name})
SELECT '{prefix}' || n, '{{"uuid":"{prefix}' || n || '"}}', '{prefix}' || n, 1748340000000 + n,
       strftime('%Y-%m-%d %H:%M:%f +00:00', 1735689600.0 + n / 1000.0, 'unixepoch'), '2025-01-01 00:00:00.000 +00:00'
       {deleted} FROM s"""


async def fill(bench: Bench, count: int, *, deleted_days: float | None = None, prefix: str = "row-") -> None:
    """So many rows by one statement, in the trash since `deleted_days` days when given."""
    days = deleted_days
    if bench.is_sqlite:
        moment = f", strftime('%Y-%m-%d %H:%M:%f +00:00', 'now', '-{days} days', '-' || (n / 1000.0) || ' seconds')"
        name, statement = ", deletedAt", _SQLITE
    else:
        now = "now()" if bench.status.deleted_at_zone else "(now() AT TIME ZONE 'UTC')"
        moment = f", date_trunc('milliseconds', {now} - interval '{days} days') - n * interval '1 ms'"
        name, statement = ', "deletedAt"', _POSTGRESQL
    parts = {"deleted": "", "deleted_name": ""} if days is None else {"deleted": moment, "deleted_name": name}
    await bench.run(statement.format(prefix=prefix, count=count, **parts))


def shape_of(bench: Bench) -> TableShape:
    return TableShape(lambda: bench.status, lambda: None)


async def purge(bench: Bench, days: int) -> Purge:
    return await Purge.older_than(days, bench.database, shape_of(bench))


async def exported(bench: Bench, selection: Selection = "all") -> list[bytes]:
    """The lines of an export, without their ends."""
    export = Export(bench.database, shape_of(bench), LOGGER)
    text = b"".join([chunk async for chunk in export.chunks(selection)])
    assert text == b"" or text.endswith(b"\n")
    assert text.count(b"\n") == export.exported
    return text.splitlines()


def ndjson(*records: Any) -> io.BytesIO:
    """Records, or lines as they are, as a file."""
    return io.BytesIO(b"".join(one if isinstance(one, bytes) else msgspec.json.encode(one) + b"\n" for one in records))


async def imported(bench: Bench, lines: IO[bytes], on_conflict: OnConflict = "skip") -> Imported:
    return await Import(bench.database, shape_of(bench), on_conflict=on_conflict).run(lines)
