"""Tables that somebody has changed by hand, and rows that no program of ours would write."""

import itertools
from functools import partial
from pathlib import Path

import anyio
import asyncpg
import msgspec
import pytest

from services.environments_store.database.connect import open_database
from services.environments_store.errors import DatabaseError
from services.environments_store.operations.doctor import examine
from services.environments_store.operations.exporting import Export
from services.environments_store.operations.opening import count
from services.environments_store.operations.presence import APPLICATION
from services.environments_store.operations.purge import Purge
from services.environments_store.schema.messages import FAILED
from services.environments_store.shape import TableShape
from tests.support.migrations import BUDGETS
from tests.support.operations import LOGGER
from tests.support.postgres import PostgresDatabase
from tests.support.served import serving
from tests.support.shapes import postgres_sql, until
from tests.support.store import Bench

pytestmark = pytest.mark.anyio

with_column = pytest.mark.parametrize(
    "bench", ["postgresql", "postgresql with the guide's TIMESTAMP"], indirect=True, ids=["TIMESTAMPTZ", "TIMESTAMP"]
)
FIRST, LAST = "0001-01-01T00:00:00.000Z", "9999-12-31T23:59:59.999Z"
FAR = {"a": "-infinity", "b": "0044-03-15 BC", "c": "2026-01-01", "d": "294275-01-01", "e": "infinity"}
SHOWN = {"a": FIRST, "b": FIRST, "c": "2026-01-01T00:00:00.000Z", "d": LAST, "e": LAST}


async def set_far_dates(bench: Bench, *columns: str) -> None:
    for uuid, date in FAR.items():
        await bench.create(uuid)
        for column in columns:
            await bench.run(f"UPDATE environments SET \"{column}\" = '{date}' WHERE id = $1", uuid)


@pytest.mark.parametrize("bench", ["postgresql", "postgresql without deletedAt"], indirect=True)
async def test_dates_that_no_driver_can_give_are_shown_as_the_nearest_and_spoil_no_list(bench: Bench) -> None:
    await set_far_dates(bench, "createdAt", "updatedAt")
    listed = await bench.list(limit=10)
    assert {record["id"]: record["createdAt"] for record in listed} == SHOWN
    assert [record["id"] for record in listed] == list(FAR)  # by their real dates
    assert [record["id"] for record in await bench.list(after="b")] == ["c", "d", "e"]
    assert b'"updatedAt":"%s"' % LAST.encode() in await bench.store.get("e")
    written = await bench.store.update("a", b'{"uuid":"a","n":1}')
    assert b'"createdAt":"%s"' % FIRST.encode() in written.record


@with_column
async def test_a_trash_with_such_dates_is_listed_exported_and_purged(bench: Bench) -> None:
    await set_far_dates(bench, "deletedAt")
    shape = TableShape(lambda: bench.status, lambda: None)
    deleted = await bench.list_deleted(fields=["id", "deletedAt"])
    assert [record["id"] for record in deleted] == ["e", "d", "c", "b", "a"]
    assert {record["id"]: record["deletedAt"] for record in deleted} == SHOWN
    export = Export(bench.database, shape, LOGGER)
    assert len(b"".join([chunk async for chunk in export.chunks("deleted")]).splitlines()) == 5
    purge = await Purge.older_than(1, bench.database, shape)
    forecast = await purge.forecast()
    assert (forecast.candidates, forecast.oldest) == (3, FIRST)
    assert forecast.months == {"0001-01": 2, "2026-01": 1}
    assert sorted([change.uuid async for batch in purge.batches() for change in batch]) == ["a", "b", "c"]


@pytest.mark.parametrize("bench", ["sqlite", "postgresql"], indirect=True)
async def test_a_new_environment_is_live_whatever_default_the_column_has(bench: Bench) -> None:
    await bench.run("DROP TABLE environments")
    moment = "DATETIME DEFAULT CURRENT_TIMESTAMP" if bench.is_sqlite else "TIMESTAMPTZ DEFAULT now()"
    await bench.run(
        'CREATE TABLE environments (id VARCHAR(255) PRIMARY KEY, environment JSON, "environmentUuid" VARCHAR(255),'
        f' "timestamp" DECIMAL, "createdAt" TIMESTAMP, "updatedAt" TIMESTAMP, "deletedAt" {moment})'
    )
    assert (await bench.create("a"))["deletedAt"] is None
    assert [record["id"] for record in await bench.list()] == ["a"]


UNDATED = """CREATE TABLE environments (id VARCHAR(255) PRIMARY KEY, environment JSON, "environmentUuid" VARCHAR(255),
"timestamp" DECIMAL, "createdAt" {moment}, "updatedAt" {moment}, "deletedAt" {moment});"""
ROW = """INSERT INTO environments VALUES ('{id}', '{{"uuid":"{id}"}}', '{id}', 0, {created}, {created}, {deleted});"""
SAME = "'2026-01-01 00:00:00.000 +00:00'"
ODD = {
    "sqlite": ["'2026-01-02'", "1767312000000", "'soon'", "1e9", "X'00'", "''"],
    "postgresql": ["'infinity'", "'-infinity'"],
}


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
async def test_every_row_is_in_the_pages_once_whatever_its_dates(
    dialect: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'environments.sqlite'}"
    if dialect == "postgresql":
        url = request.getfixturevalue("postgres_url")
    database = open_database(url)
    await database.open()
    await database.execute(UNDATED.format(moment="DATETIME" if dialect == "sqlite" else "timestamptz"))
    dates = ["NULL", "NULL", "NULL", SAME, SAME, *ODD[dialect]]
    for number, date in enumerate(dates * 2):
        await database.execute(ROW.format(id=f"live-{number:02}", created=date, deleted="NULL"))
        await database.execute(
            ROW.format(id=f"dead-{number:02}", created=date, deleted=SAME if date == "NULL" else date)
        )
    await database.close()
    async with serving(url, budgets=BUDGETS) as service:
        await service.until_state("ready")
        for action, fields in itertools.product(("list", "listDeleted"), (["id"], ["id", "environment"])):
            whole = [record["id"] for record in await service.ask(action, fields=fields)]
            assert len(set(whole)) == len(whole) == len(dates) * 2
            for size in (1, 3, len(dates) * 2 - 1):
                walked: list[str] = []
                while page := await service.ask(
                    action, fields=fields, limit=size, **({"after": walked[-1]} if walked else {})
                ):
                    walked += [record["id"] for record in page]
                assert walked == whole
            assert [record["id"] for record in await service.ask(action, fields=fields, after=whole[3])] == whole[4:]
        assert (await service.failure("list", after="nothing")).code == 404


@pytest.mark.parametrize("bench", ["postgresql", "postgresql without deletedAt"], indirect=True)
async def test_a_widened_id_takes_new_environments(bench: Bench) -> None:
    await bench.run("ALTER TABLE environments ALTER COLUMN id TYPE text")
    assert (await bench.create("a"))["environmentUuid"] == "a"


async def test_a_column_that_knows_no_live_rows_is_told_of_and_not_used_until_it_is_mended(
    postgres_database: PostgresDatabase,
) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    postgres_database.run_sql('ALTER TABLE environments ADD COLUMN "deletedAt" timestamptz NOT NULL DEFAULT now()')
    async with serving(postgres_database.url, budgets=BUDGETS) as service:
        schema = await service.until_state("degraded", "unsupported")
        remedy = 'ALTER TABLE "public"."environments" ALTER COLUMN "deletedAt" DROP NOT NULL;'
        assert schema["error"].endswith(remedy)
        assert len(await service.ask("list", fields=["id"])) == 3
        assert (await service.ask("create", environment={"uuid": "new"}))["id"] == "new"
        assert (await service.failure("remove", uuid="new")).type == "SOFT_DELETE_UNAVAILABLE"
        postgres_database.run_sql(f'{remedy} UPDATE environments SET "deletedAt" = NULL')
        await service.until_state("ready")
        assert await service.ask("remove", uuid="new") == {"success": True}
        assert service.guide_lines()[0] == FAILED


async def test_without_a_table_and_the_right_to_make_it_callers_learn_that_it_is_not_there(
    postgres_database: PostgresDatabase,
) -> None:
    url = postgres_database.create_role("guest")
    async with serving(url, budgets=BUDGETS) as service:
        schema = await service.until_state("degraded", "forbidden")
        assert "GRANT CREATE ON SCHEMA" in schema["error"]
        for action, params in (("list", {}), ("get", {"uuid": "a"}), ("create", {"environment": {}}), ("stats", {})):
            error = await service.failure(action, **params)
            assert (error.type, error.code) == ("DATABASE_UNAVAILABLE", 503)
            assert str(error).startswith("There is no table of environments now. The service lacks a right")
            assert "GRANT" not in str(error)


async def test_a_table_that_goes_away_is_called_so_and_not_made_again_while_its_rows_may_come_back(
    postgres_database: PostgresDatabase,
) -> None:
    postgres_database.run_sql(postgres_sql("p_dmig"))
    async with serving(postgres_database.url, budgets=BUDGETS) as service:
        await service.until_state("ready")
        postgres_database.run_sql("ALTER TABLE environments RENAME TO elsewhere")
        schema = await service.until_state("degraded", "lost")
        assert schema["error"].startswith('The table "environments" was there and is gone')
        error = await service.failure("list")
        assert (error.type, "It was changed while" in str(error)) == ("DATABASE_UNAVAILABLE", True)
        postgres_database.run_sql("ALTER TABLE elsewhere RENAME TO environments")
        await service.until_state("ready")
        assert len(await service.ask("list", fields=["id"])) == 3


async def test_a_role_without_rights_on_the_rows_is_told_of_and_heals_when_it_gets_them(
    postgres_database: PostgresDatabase,
) -> None:
    postgres_database.run_sql(postgres_sql("p_dmig"))
    url = postgres_database.create_role("guest")
    postgres_database.run_sql(f'GRANT SELECT, DELETE ON environments TO "{postgres_database.role_name(url)}"')
    async with serving(url, budgets=BUDGETS) as service:
        schema = await service.until_state("degraded", "forbidden")
        remedy = f'GRANT INSERT, UPDATE ON "public"."environments" TO "{postgres_database.role_name(url)}";'
        assert schema["error"].endswith(remedy)
        assert await service.until_logged(remedy)
        assert len(await service.ask("list", fields=["id"])) == 3
        postgres_database.run_sql(remedy)
        await service.until_state("ready")
        assert (await service.ask("create", environment={"uuid": "new"}))["id"] == "new"


async def test_a_table_in_a_schema_that_the_role_may_not_use_is_not_taken_for_none(
    postgres_database: PostgresDatabase,
) -> None:
    postgres_database.run_sql(postgres_sql("p_dmig"))
    postgres_database.run_sql("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    url = postgres_database.create_role("guest")
    async with serving(url, budgets=BUDGETS) as service:
        schema = await service.until_state("degraded", "forbidden")
        assert "GRANT USAGE ON SCHEMA" in schema["error"]
        assert "There is no table" not in schema["error"]


@pytest.mark.parametrize("path", ["nowhere", "''"])
async def test_a_search_path_that_leads_nowhere_is_named_instead_of_a_right_that_would_not_help(
    postgres_database: PostgresDatabase, path: str
) -> None:
    postgres_database.run_sql(postgres_sql("p_dmig"))
    url = postgres_database.create_role("guest")
    role = postgres_database.role_name(url)
    postgres_database.run_sql(f'GRANT ALL ON environments TO "{role}"; ALTER ROLE "{role}" SET search_path = {path}')
    async with serving(url, budgets=BUDGETS) as service:
        schema = await service.until_state("degraded", "forbidden")
        assert f'ALTER ROLE "{role}" SET search_path = "public";' in schema["error"]
        assert role not in str(await service.failure("list"))
        with pytest.raises(DatabaseError, match="search_path of role"):
            await count(url, 7, LOGGER)
        postgres_database.run_sql(f'ALTER ROLE "{role}" SET search_path = "public"')
        await service.until_state("ready")
        await service.insist("list", fields=["id"])


async def test_the_setting_that_makes_a_database_only_read_is_named(postgres_database: PostgresDatabase) -> None:
    postgres_database.run_sql(postgres_sql("p_dmig"))
    url = postgres_database.create_role("guest")
    role = postgres_database.role_name(url)
    postgres_database.run_sql(f'GRANT ALL ON environments TO "{role}"')
    postgres_database.run_sql(f'ALTER ROLE "{role}" SET default_transaction_read_only = on')
    async with serving(url, budgets=BUDGETS) as service:
        schema = await service.until_state("degraded", "read-only")
        assert "default_transaction_read_only" in schema["error"]
        assert role in schema["error"]


async def test_the_doctor_names_invalid_indexes_of_others_and_dates_that_nobody_can_show(
    postgres_database: PostgresDatabase,
) -> None:
    postgres_database.run_sql(postgres_sql("p_dmig"))
    postgres_database.run_sql(
        'CREATE INDEX of_a_dba ON environments ("updatedAt");'
        " UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'of_a_dba'::regclass;"
        " UPDATE environments SET \"createdAt\" = 'infinity' WHERE id LIKE '%1'"
    )
    findings = {finding.subject: finding for finding in (await examine(postgres_database.url, LOGGER)).findings}
    assert findings["index"].message.startswith('"of_a_dba" is INVALID')
    assert findings["index"].remedy is not None
    assert 'DROP INDEX CONCURRENTLY IF EXISTS "public"."of_a_dba"' in findings["index"].remedy
    assert "c0ffee00-0000-4000-8000-000000000001" in findings["far-date"].message


def owned_by(database: PostgresDatabase, options: str) -> str:
    """The URL of a role that owns a migrated table."""
    url = database.create_role(options=options)
    role = database.role_name(url)
    database.run_sql(postgres_sql("p_dmig") + f'ALTER TABLE environments OWNER TO "{role}"')
    return url


async def test_a_role_with_one_connection_gets_answers_and_the_state_stays_that_of_the_last_look(
    postgres_database: PostgresDatabase,
) -> None:
    url = owned_by(postgres_database, "CONNECTION LIMIT 1")
    async with serving(url, budgets=BUDGETS) as service:
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(partial(service.ask, "list", fields=["id"]))
        await service.until_logged("The schema was not looked at")
        assert (await service.ask("schema"))["state"] == "ready"
        assert await service.until_logged("none is left to say that this node serves")


async def test_the_connection_that_says_that_a_node_serves_is_given_up_for_a_call(
    postgres_database: PostgresDatabase,
) -> None:
    url = owned_by(postgres_database, "CONNECTION LIMIT 3")
    role = postgres_database.role_name(url)
    connections = f"SELECT application_name FROM pg_stat_activity WHERE usename = '{role}'"
    present = f"{APPLICATION} store"
    budgets = msgspec.structs.replace(BUDGETS, reinspect_s=600)
    async with serving(url, budgets=budgets) as service:
        await service.until_state("ready", steps=True)
        await until(lambda: postgres_database.run_sql(connections) == present)
        others = [await asyncpg.connect(url, server_settings={"application_name": "other"}) for _ in range(2)]
        try:
            assert len(await service.ask("list", fields=["id"])) == 3
            assert present not in postgres_database.run_sql(connections)
        finally:
            for other in others:
                await other.close()
