"""Scenario 36: the guide's plain index on a SQLite file that has no statistics: the planner takes it for the live rows,
looks up every one of them, and sorts them all for a page. What is asserted is its plan, which tells of any size."""

import sqlite3
from pathlib import Path

import pytest

from services.environments_store.database.sqlite import SqliteDatabase
from services.environments_store.defaults import DatabaseSettings, MigrationBudgets
from services.environments_store.operations.list_index import build_list_index
from services.environments_store.queries.sqlite import SQLITE
from services.environments_store.schema.migrator import migrate_once
from services.environments_store.schema.names import LIST_INDEX
from tests.support.served import serving
from tests.support.shapes import Lines, make_sqlite, until
from tests.support.sqlite_files import query, url

pytestmark = pytest.mark.anyio

BUDGETS = MigrationBudgets(start_s=20, reinspect_s=0.1, sqlite_busy_ms=20)
BY_KEY = "SELECT id FROM environments WHERE deletedAt IS NULL ORDER BY id LIMIT 50"
ANALYSED = "SELECT count(*) FROM sqlite_master WHERE name = 'sqlite_stat1'"
MISTAKEN = "USING INDEX environments_deleted_at_idx"
LIVE = [
    SQLITE.listing.first,
    *SQLITE.listing.after,
    SQLITE.listing.first_light,
    *SQLITE.listing.after_light,
    *SQLITE.undated_listing.after,
    SQLITE.stats,
]
TRASH = [SQLITE.soft_delete.listing.first, SQLITE.soft_delete.listing.first_light] if SQLITE.soft_delete else []


def fill(path: Path, rows: int) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(
            """WITH RECURSIVE n(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n + 1 < ?)
            INSERT INTO environments (id, environment, createdAt, updatedAt) SELECT 'bulk-' || n, '{}', n, n FROM n""",
            (rows,),
        )
    connection.close()


async def plan_of(path: Path, text: str) -> str:
    """How this process's SQLite would run it, as the service prepares it."""
    database = SqliteDatabase(path, DatabaseSettings())
    await database.open()
    try:
        arguments = [value for place, value in (("$1", 50), ("$2", "bulk-7")) if place in text]
        return " ".join(row["detail"] for row in await database.fetch(f"EXPLAIN QUERY PLAN {text}", *arguments))
    finally:
        await database.close()


@pytest.mark.parametrize("shape", ["s_d1", "s_d2", "s_man"])
@pytest.mark.parametrize("rows", [5_000, pytest.param(1_000_000, marks=pytest.mark.long)])
async def test_m36_with_the_guides_plain_index_a_page_of_live_rows_is_read_by_the_key_after_the_start(
    rows: int, shape: str, path: Path, lines: Lines
) -> None:
    make_sqlite(shape, path)
    fill(path, rows)
    before = await plan_of(path, BY_KEY)
    assert MISTAKEN in before
    assert "TEMP B-TREE" in before
    assert MISTAKEN in await plan_of(path, SQLITE.listing.first)

    await migrate_once(url(path), logger=lines.logger, budgets=BUDGETS)

    assert "TEMP B-TREE" not in await plan_of(path, BY_KEY)
    for text in LIVE:
        assert f"{MISTAKEN} (deletedAt=?)" not in await plan_of(path, text), text
    for text in TRASH:
        assert MISTAKEN in await plan_of(path, text), text

    # The service's own order, by creation, is not sorted either once a person has asked for its index.
    await build_list_index(url(path), lines.logger)
    page = await plan_of(path, SQLITE.listing.first)
    assert f"USING INDEX {LIST_INDEX}" in page
    assert "TEMP B-TREE" not in page


async def test_m36_a_table_that_grows_or_gets_the_plain_index_later_is_analysed_while_the_service_runs(
    path: Path,
) -> None:
    make_sqlite("s_none", path)
    async with serving(url(path), budgets=BUDGETS) as service:
        await service.until_state("ready", steps=True)
        query(path, "DROP INDEX environments_deleted_at_idx")
        query(path, "CREATE INDEX environments_deleted_at_idx ON environments (deletedAt)")
        fill(path, 5_000)
        await until(lambda: query(path, ANALYSED) == [(1,)])
        await service.until_state("ready", steps=True)
    assert "TEMP B-TREE" not in await plan_of(path, BY_KEY)
