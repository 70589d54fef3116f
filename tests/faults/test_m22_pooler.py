"""A transaction pooler stands before the database."""

import anyio
import anyio.to_thread
import pytest

from services.environments_store.schema.messages import ADDED
from services.environments_store.schema.migrator import Migrator
from tests.support.migrations import BUDGETS, INDEX_STATE, VALID_INDEX
from tests.support.postgres import PostgresDatabase
from tests.support.postgres_proxy import PostgresProxy
from tests.support.shapes import Lines, postgres_sql

pytestmark = pytest.mark.anyio


async def test_m22_through_a_pooler_two_starters_never_both_migrate_and_nothing_leaks_into_a_session(
    postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    postgres_database.run_sql(f"ALTER DATABASE \"{postgres_database.name}\" SET log_statement = 'all'")
    async with PostgresProxy(postgres_database.url, pooler=True).running() as proxy:
        starters = [
            Migrator(proxy.url, None, node_id=f"node-{number}", logger=lines.logger, budgets=BUDGETS)
            for number in range(4)
        ]

        async def start(one: Migrator) -> None:
            await one.prepare()
            await one.complete()

        async with anyio.create_task_group() as group:
            for one in starters:
                group.start_soon(start, one)

    assert {one.status.state for one in starters} == {"ready"}
    assert postgres_database.run_sql(INDEX_STATE) == VALID_INDEX
    log = [line for line in postgres_database.log().splitlines() if "environments-store migrate" in line]
    assert sum("CREATE INDEX CONCURRENTLY" in line for line in log) == 1
    assert not any("pg_try_advisory_lock(" in line for line in log)
    statements = [line.partition("statement: ")[2] for line in log if "statement: " in line]
    assert not any(statement.startswith("SET ") and not statement.startswith("SET LOCAL") for statement in statements)
    assert lines.guide_lines().count(ADDED) == 1
