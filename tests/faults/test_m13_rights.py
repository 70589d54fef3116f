"""What the role may not do, and tables that are not what they seem."""

from typing import Any

import anyio
import anyio.to_thread
import pytest

from services.environments_store.schema.messages import ADDED, ADDING, EXISTS, FAILED
from services.environments_store.schema.migrator import migrate_once
from tests.support.migrations import BUDGETS, INDEX_STATE, VALID_INDEX, alters, migrator
from tests.support.postgres import PostgresDatabase
from tests.support.served import serving
from tests.support.shapes import Lines, postgres_sql, rows_of_postgres, until

pytestmark = pytest.mark.anyio


UNSUPPORTED = ["p_odd_view", "p_odd_partitioned"]


CALLS: dict[str, dict[str, Any]] = {
    "list": {},
    "listDeleted": {},
    "stats": {},
    "get": {"uuid": "c0ffee00-0000-4000-8000-000000000001"},
    "create": {"environment": {"name": "hidden at once"}},
    "update": {"uuid": "U", "environment": {"uuid": "U"}},
    "remove": {"uuid": "U"},
    "restore": {"uuid": "U"},
    "permanentDelete": {"uuid": "U", "force": True},
}
LIVE = "c0ffee00-0000-4000-8000-000000000001"


async def test_m13_a_role_that_does_not_own_the_table_waits_for_the_guides_manual_sql(
    postgres_database: PostgresDatabase,
) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    url = postgres_database.create_role()
    postgres_database.run_sql(f'GRANT ALL ON ALL TABLES IN SCHEMA public TO "{postgres_database.role_name(url)}"')
    before = rows_of_postgres(postgres_database.run_sql)

    async with serving(url) as service:
        schema = await service.ask("schema")
        assert (schema["state"], schema["reason"]) == ("degraded", "forbidden")
        assert "OWNER TO" in await service.until_logged("does not own")
        assert service.guide_lines() == [FAILED]
        rows = {record["id"] for record in await service.ask("list", fields=["id"])}
        made = await service.ask("create", environment={"name": "made in degraded mode"})
        error = await service.failure("remove", uuid=LIVE)
        assert (error.code, error.type, error.retryable) == (503, "SOFT_DELETE_UNAVAILABLE", True)

        postgres_database.run_sql('ALTER TABLE environments ADD COLUMN "deletedAt" TIMESTAMP NULL DEFAULT NULL')
        await service.until_state("ready")
        postgres_database.run_sql(
            'CREATE INDEX CONCURRENTLY IF NOT EXISTS environments_deleted_at_idx ON environments ("deletedAt")'
        )
        await service.until_state("ready", steps=True)

        # The original would have put every row into the trash by now.
        assert await service.ask("listDeleted") == []
        assert {record["id"] for record in await service.ask("list", fields=["id"])} == rows | {made["id"]}
        assert await service.ask("permanentDelete", uuid=made["id"], force=True) == {"success": True}
        assert rows_of_postgres(postgres_database.run_sql) == before
        # The guide's TIMESTAMP holds UTC.
        assert await service.ask("remove", uuid=LIVE) == {"success": True}
        [deleted] = await service.ask("listDeleted")
        kept = 'SELECT to_char("deletedAt", \'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"\') FROM environments WHERE id LIKE \'%1\''
        assert deleted["deletedAt"] == postgres_database.run_sql(kept)
        age = (
            "SELECT (now() AT TIME ZONE 'UTC') - \"deletedAt\" < interval '1 hour' FROM environments WHERE id LIKE '%1'"
        )
        assert postgres_database.run_sql(age) == "t"
        assert service.guide_lines() == [FAILED, EXISTS]
    assert alters(postgres_database) == 0


async def test_m14_an_owner_without_create_on_the_schema_gets_the_column_and_later_the_index(
    postgres_database: PostgresDatabase,
) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    url = postgres_database.create_role()
    role = postgres_database.role_name(url)
    postgres_database.run_sql(f'ALTER TABLE environments OWNER TO "{role}"')
    async with serving(url) as service:
        assert service.guide_lines() == [ADDING, ADDED]
        await service.until_logged("GRANT CREATE ON SCHEMA")
        assert (await service.ask("schema"))["state"] == "ready"
        assert await service.ask("remove", uuid=LIVE) == {"success": True}
        assert [record["id"] for record in await service.ask("listDeleted")] == [LIVE]
        assert postgres_database.run_sql(INDEX_STATE) == ""
        postgres_database.run_sql(f'GRANT CREATE ON SCHEMA public TO "{role}"')
        await service.until_state("ready", steps=True)
        assert sum("GRANT CREATE ON SCHEMA" in line for line in service.lines) == 1
    assert postgres_database.run_sql(INDEX_STATE) == VALID_INDEX


async def test_m15_a_database_that_only_reads_is_served_and_heals(
    postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    url = postgres_database.create_role()
    role = postgres_database.role_name(url)
    postgres_database.run_sql(f'ALTER TABLE environments OWNER TO "{role}"; GRANT CREATE ON SCHEMA public TO "{role}"')
    postgres_database.run_sql(f'ALTER ROLE "{role}" SET default_transaction_read_only = on')
    one = migrator(url, lines)

    status = await one.prepare()
    assert (status.state, status.reason, status.writable) == ("degraded", "read-only", False)
    assert lines.guide_lines() == [FAILED]
    async with anyio.create_task_group() as group:
        group.start_soon(one.run)
        postgres_database.run_sql(f'ALTER ROLE "{role}" RESET default_transaction_read_only')
        await until(lambda: one.status.state == "ready" and one.status.writable)
        group.cancel_scope.cancel()
    assert lines.guide_lines() == [FAILED, ADDING, ADDED]


async def test_m16_the_table_that_queries_find_by_the_search_path_is_the_one_that_is_migrated(
    postgres_database: PostgresDatabase,
) -> None:
    """The column is in `public` alone; a check that ignores the schema would call that finished."""
    postgres_database.run_sql(postgres_sql("p_dmig"))
    postgres_database.run_sql(
        "CREATE SCHEMA app; CREATE TABLE app.environments (LIKE public.environments INCLUDING ALL)"
    )
    postgres_database.run_sql('ALTER TABLE app.environments DROP COLUMN "deletedAt"')
    postgres_database.run_sql(f'ALTER DATABASE "{postgres_database.name}" SET search_path = app, public')
    public = 'SELECT count(*), count("deletedAt") FROM public.environments'
    before = postgres_database.run_sql(public)

    async with serving(postgres_database.url) as service:
        await service.until_state("ready", steps=True)
        assert await service.ask("list") == []
        uuid = (await service.ask("create", environment={"name": "in app"}))["id"]
        assert await service.ask("remove", uuid=uuid) == {"success": True}

    where = 'SELECT id FROM app.environments WHERE "deletedAt" IS NOT NULL'
    assert postgres_database.run_sql(where) == uuid
    assert postgres_database.run_sql(public) == before
    indexes = "SELECT schemaname FROM pg_indexes WHERE indexdef LIKE '%deletedAt%' ORDER BY 1"
    assert postgres_database.run_sql(indexes).splitlines() == ["app", "public"]


@pytest.mark.parametrize("shape", ["p_low", "p_low_and_right"])
async def test_m16_a_column_without_capitals_is_named_and_not_used(
    shape: str, postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql(shape))
    postgres_database.run_sql("UPDATE environments SET deletedat = now()")
    async with serving(postgres_database.url) as service:
        await service.until_state("ready", steps=True)
        assert {record["id"] for record in await service.ask("list")} >= {LIVE}
        assert "deletedat" in await service.until_logged("without quotes")
    assert postgres_database.run_sql("SELECT count(*) FROM environments WHERE deletedat IS NULL") == "0"


@pytest.mark.parametrize("shape", UNSUPPORTED)
async def test_m16_what_is_no_ordinary_table_is_left_alone(
    shape: str, postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql(shape))
    statements = postgres_database.log()

    status = await migrate_once(postgres_database.url, logger=lines.logger, budgets=BUDGETS)

    assert (status.state, status.reason, status.soft_delete) == ("degraded", "unsupported", False)
    assert lines.guide_lines() == [FAILED]
    assert postgres_database.log() == statements


async def test_m16_a_table_of_somebody_else_is_left_alone(postgres_database: PostgresDatabase, lines: Lines) -> None:
    postgres_database.run_sql("CREATE TABLE environments (id int PRIMARY KEY, title text)")

    status = await migrate_once(postgres_database.url, logger=lines.logger, budgets=BUDGETS)

    assert status.reason == "unsupported"
    assert '"environmentUuid"' in (status.error or "")
    assert "deletedAt" not in postgres_database.server.dump_schema(postgres_database.name)


async def test_m17_rows_that_row_level_security_hides_are_not_taken_for_an_empty_store(
    postgres_database: PostgresDatabase,
) -> None:
    postgres_database.run_sql(postgres_sql("p_dnew"))
    url = postgres_database.create_role()
    role = postgres_database.role_name(url)
    postgres_database.run_sql(
        f'GRANT ALL ON environments TO "{role}"; ALTER TABLE environments ENABLE ROW LEVEL SECURITY'
    )

    async with serving(url) as service:
        schema = await service.ask("schema")
        assert (schema["state"], schema["reason"]) == ("degraded", "row-security")
        assert "BYPASSRLS" in await service.until_logged("hides all rows")
        assert sum("Row level security hides" in line for line in service.lines) == 1
        for action, params in CALLS.items():
            error = await service.failure(action, **params)
            assert (error.code, error.type, error.retryable) == (503, "DATABASE_UNAVAILABLE", True), action
            assert "Row level security" in str(error)

        postgres_database.run_sql("CREATE POLICY all_rows ON environments USING (true)")
        await service.until_state("ready")
        assert {record["id"] for record in await service.ask("list")} >= {LIVE}
        assert await service.ask("remove", uuid=LIVE) == {"success": True}


async def test_m23_a_table_of_1600_columns_needs_a_person(postgres_database: PostgresDatabase, lines: Lines) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    more = ", ".join(f"ADD COLUMN c{number} bool" for number in range(1594))
    postgres_database.run_sql(f"ALTER TABLE environments {more}")

    status = await migrate_once(postgres_database.url, logger=lines.logger, budgets=BUDGETS)

    assert (status.state, status.reason) == ("degraded", "unsupported")
    assert "1600 columns" in (status.error or "")
    assert lines.guide_lines() == [ADDING, FAILED]
