"""The newest original starts on every SQLite file that we have migrated, and reads all of it."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from services.environments_store.defaults import MigrationBudgets
from services.environments_store.model import iso_date
from services.environments_store.schema.migrator import migrate_once
from tests.support.original import Originals
from tests.support.shapes import SQLITE_SHAPES, Lines, make_sqlite, rows_of_sqlite

pytestmark = pytest.mark.anyio

# Nobody works at a copy in these files: a look at them a moment later shows it.
BUDGETS = MigrationBudgets(start_s=30, rebuild_recheck_s=0.05)
COLUMNS = "id, environment, environmentUuid, timestamp, deletedAt, createdAt, updatedAt"


@pytest.mark.parametrize("shape", SQLITE_SHAPES)
async def test_m30_the_original_starts_on_what_we_migrated_and_reads_all_of_it(
    shape: str, path: Path, original_process: Originals, lines: Lines
) -> None:
    make_sqlite(shape, path)
    url = f"sqlite:///{path}"
    await migrate_once(url, logger=lines.logger, budgets=BUDGETS)
    before = rows_of_sqlite(path, columns=COLUMNS)
    metadata = rows_of_sqlite(path, "metadata", "key, value, createdAt, updatedAt")

    original = await original_process.open("D", url)
    for _ in range(2):  # its second start makes another table than its first
        assert "failed" not in (await original.start() or {})
        # Nothing of any row has changed, and no date its text or its type.
        assert rows_of_sqlite(path, columns=COLUMNS) == before
        assert rows_of_sqlite(path, "metadata", "key, value, createdAt, updatedAt") == metadata
        read = await original.find_all()
        assert {uuid: as_read(row) for uuid, row in read.items()} == {str(row[0]): as_stored(row) for row in before}
        assert await original.find_all(paranoid=True) == {
            uuid: row for uuid, row in read.items() if row["deletedAt"] is None
        }
        status = await migrate_once(url, logger=lines.logger, budgets=BUDGETS)
        assert status.state == "ready"
        assert {step.state for step in status.steps} == {"done"}
        assert rows_of_sqlite(path, columns=COLUMNS) == before
    assert kept(path) == (1 if "crash" in shape and shape != "s_crash_3" else 0)


def as_read(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"timestamp": int(row["timestamp"])}


def as_stored(row: tuple[Any, ...]) -> dict[str, Any]:
    stored = dict(zip(COLUMNS.split(", "), row, strict=False))
    dates = {name: iso_date(stored[name]) for name in ("createdAt", "updatedAt", "deletedAt")}
    return stored | dates | {"environment": json.loads(stored["environment"])}


def kept(path: Path) -> int:
    """Copies of killed starts, which the original leaves alone under the name that we gave them."""
    connection = sqlite3.connect(path)
    try:
        statement = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name LIKE '%backup%'"
        count: int = connection.execute(statement).fetchone()[0]
        return count
    finally:
        connection.close()
