"""The index for pages of live environments: built when asked for, safely, and in nobody's way."""

from pathlib import Path

import asyncpg
import pytest

from services.environments_store.defaults import OperationLimits
from services.environments_store.errors import OperationError
from services.environments_store.operations.checklist import run_checklist
from services.environments_store.operations.list_index import build_list_index
from services.environments_store.operations.rollback import roll_back
from services.environments_store.queries import choose
from services.environments_store.schema.check import look
from services.environments_store.schema.migrator import migrate_once
from services.environments_store.schema.names import LIST_INDEX
from tests.support.operations import LOGGER, fill
from tests.support.pgbouncer import POOLERS, pooled_url
from tests.support.postgres import PostgresDatabase
from tests.support.shapes import postgres_sql
from tests.support.store import open_bench

pytestmark = pytest.mark.anyio

INVALID = f"""CREATE INDEX {LIST_INDEX} ON environments ("createdAt", id COLLATE "C");
UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{LIST_INDEX}'::regclass;"""
LOCK = "environments-store/migrate/public.environments"
VALID = f"SELECT indisvalid FROM pg_index WHERE indexrelid = '{LIST_INDEX}'::regclass"


@pytest.mark.parametrize("shape", ["sqlite", "postgresql"])
async def test_pages_are_read_by_it_and_a_rollback_leaves_it(
    shape: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'environments.sqlite'}" if shape == "sqlite" else ""
    url = url or request.getfixturevalue("postgres_database").url
    async with open_bench(shape, url) as bench:
        await fill(bench, 5_000)
        await bench.run("ANALYZE environments")
        assert await build_list_index(url, LOGGER) == "built"
        assert await build_list_index(url, LOGGER) == "there already"
        await bench.run("DELETE FROM environments WHERE FALSE")  # SQLite's EXPLAIN alone would not see a new schema
        if not bench.is_sqlite:  # the planner answers for a date that is NULL without a look otherwise
            await bench.run('ALTER TABLE environments ALTER COLUMN "createdAt" DROP NOT NULL')
        queries = choose(bench.status)
        explain = "EXPLAIN QUERY PLAN" if bench.is_sqlite else "EXPLAIN"
        after = (*queries.listing.after, *queries.undated_listing.after)
        for query, arguments in ((queries.listing.first, (50,)), *((one, (50, "row-4000")) for one in after)):
            plan = await bench.database.fetch(f"{explain} {query}", *arguments)
            shown = "\n".join(str(row["detail"] if bench.is_sqlite else row[0]) for row in plan)
            assert LIST_INDEX in shown
            assert "Sort" not in shown
            assert "TEMP B-TREE" not in shown
        assert [record["id"] for record in await bench.list(limit=2, after="row-4000")] == ["row-4001", "row-4002"]
    await migrate_once(url, logger=LOGGER)
    await roll_back(url, "keep", force=True, logger=LOGGER)
    assert await build_list_index(url, LOGGER) == "there already"


@pytest.mark.parametrize("pooler", ["none", *POOLERS])
async def test_an_invalid_one_is_replaced(pooler: str, postgres_database: PostgresDatabase) -> None:
    postgres_database.run_sql(postgres_sql("p_dnew") + INVALID)
    if pooler == "none":
        assert await build_list_index(postgres_database.url, LOGGER) == "built"
    else:
        async with pooled_url(pooler, postgres_database.server, postgres_database.url) as url:
            assert await build_list_index(url, LOGGER) == "built"
    assert postgres_database.run_sql(VALID) == "t"


async def test_what_is_in_the_way_is_told_and_nothing_is_changed(postgres_database: PostgresDatabase) -> None:
    postgres_database.run_sql(postgres_sql("p_dnew"))
    role = postgres_database.create_role()
    with pytest.raises(OperationError, match="As the owner run: CREATE INDEX CONCURRENTLY"):
        await build_list_index(role, LOGGER)
    other = await asyncpg.connect(postgres_database.url)
    try:
        await other.execute("SELECT pg_advisory_lock(hashtextextended($1, 0))", LOCK)
        with pytest.raises(OperationError, match="Another node is migrating"):
            await build_list_index(postgres_database.url, LOGGER)
    finally:
        await other.close()
    assert postgres_database.run_sql(f"SELECT to_regclass('{LIST_INDEX}') IS NULL") == "t"


async def test_the_checklist_tells_of_it_where_the_table_is_large(postgres_database: PostgresDatabase) -> None:
    postgres_database.run_sql(postgres_sql("p_dnew") + "ANALYZE environments;")
    limits = OperationLimits(large_table_rows=1)

    async def subjects() -> list[str]:
        return [one.subject for one in (await run_checklist(await look(postgres_database.url), limits)).findings]

    assert await subjects() == ["list-index"]
    await build_list_index(postgres_database.url, LOGGER)
    assert await subjects() == []
