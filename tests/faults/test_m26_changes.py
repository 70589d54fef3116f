"""Somebody changes the table under a running service."""

import anyio
import anyio.to_thread
import pytest

from services.environments_store.database.connect import open_database
from services.environments_store.defaults import DatabaseSettings, MigrationBudgets
from services.environments_store.schema.messages import EXISTS
from services.environments_store.schema.migrator import Migrator
from services.environments_store.schema.status import SchemaStatus
from tests.support.migrations import BUDGETS, alters, migrator
from tests.support.postgres import PostgresDatabase
from tests.support.shapes import Lines, count_inspections, postgres_sql, until

pytestmark = pytest.mark.anyio


async def test_m26_a_column_that_vanishes_is_lost_and_comes_back_by_a_person_only(
    postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_dmig"))
    one = migrator(postgres_database.url, lines, MigrationBudgets(reinspect_s=0.05, poll_min_s=0.01))
    seen: list[SchemaStatus] = []
    one.on_change = seen.append
    await one.prepare()
    async with anyio.create_task_group() as group:
        group.start_soon(one.run)
        postgres_database.run_sql('ALTER TABLE environments DROP COLUMN "deletedAt"')
        one.report_missing_column()
        await until(lambda: one.status.reason == "lost")
        inspections = count_inspections(postgres_database)
        await until(lambda: inspections() >= 3)
        one.report_missing_column()
        one.report_missing_column()
        postgres_database.run_sql('ALTER TABLE environments ADD COLUMN "deletedAt" TIMESTAMPTZ')
        one.report_missing_column()
        await until(lambda: one.status.state == "ready")
        group.cancel_scope.cancel()

    assert alters(postgres_database) == 0
    assert sum("is gone" in message for message in lines.messages) == 1
    assert [status.reason for status in seen if status.reason] == ["lost"]
    assert lines.guide_lines() == [EXISTS, EXISTS]


async def test_m27_a_pool_learns_of_a_column_whose_type_a_person_changes(
    postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_man"))
    database = open_database(postgres_database.url, DatabaseSettings(pool_size=1))
    await database.open()
    one = Migrator(postgres_database.url, database, node_id="node-1", logger=lines.logger, budgets=BUDGETS)
    await one.prepare()
    trash = 'SELECT "deletedAt" FROM environments WHERE "deletedAt" IS NOT NULL'
    assert [row["deletedAt"].tzinfo for row in await database.fetch(trash)] == [None]
    async with anyio.create_task_group() as group:
        group.start_soon(one.run)
        postgres_database.run_sql(
            "SET TimeZone = 'UTC'; ALTER TABLE environments ALTER COLUMN \"deletedAt\" TYPE TIMESTAMPTZ"
        )
        await until(lambda: one.status.deleted_at_zone)
        inspections = count_inspections(postgres_database)
        await until(lambda: inspections() >= 1)
        group.cancel_scope.cancel()
    # In a transaction a plan from before would be refused.
    async with database.transaction() as transaction:
        assert [str(row["deletedAt"].tzinfo) for row in await transaction.fetch(trash)] == ["UTC"]
    await database.close()
