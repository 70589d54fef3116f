"""Tables that somebody has changed by hand, and rows that no program of ours would write."""

import itertools
import re
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import asyncpg
import msgspec
import pytest

from broker import MoleculerError
from services.environments_store.database.connect import open_database
from services.environments_store.errors import DatabaseError
from services.environments_store.operations.doctor import examine
from services.environments_store.operations.exporting import Export
from services.environments_store.operations.opening import count
from services.environments_store.operations.purge import Purge
from services.environments_store.operations.serving_lock import APPLICATION
from services.environments_store.schema.check import check
from services.environments_store.schema.messages import EXISTS, FAILED
from services.environments_store.schema.sql import script
from services.environments_store.schema.status import Finding
from services.environments_store.shape import TableShape
from tests.support.migrations import BUDGETS
from tests.support.operations import LOGGER
from tests.support.postgres import PostgresDatabase
from tests.support.served import Serving, serving
from tests.support.shapes import postgres_sql, until
from tests.support.store import Bench

pytestmark = pytest.mark.anyio

with_column = pytest.mark.parametrize(
    "bench", ["postgresql", "postgresql with the guide's TIMESTAMP"], indirect=True, ids=["TIMESTAMPTZ", "TIMESTAMP"]
)
FIRST_LIVE = "c0ffee00-0000-4000-8000-000000000001"
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
        assert "no environment could be live" in schema["error"]
        assert await service.until_logged(remedy)
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
        for action, params in (("list", {}), ("get", {"uuid": "a"}), ("create", {"environment": {}}), ("stats", {})):
            error = await service.failure(action, **params)
            assert (error.type, error.code) == ("DATABASE_UNAVAILABLE", 503)
            assert str(error) == schema["error"]
        assert schema["error"] == "There is no table of environments, and the service may not create it."
        assert await service.until_logged("GRANT CREATE ON SCHEMA")


async def test_a_table_that_goes_away_is_called_so_and_not_made_again_while_its_rows_may_come_back(
    postgres_database: PostgresDatabase,
) -> None:
    postgres_database.run_sql(postgres_sql("p_dmig"))
    async with serving(postgres_database.url, budgets=BUDGETS) as service:
        await service.until_state("ready")
        postgres_database.run_sql("ALTER TABLE environments RENAME TO elsewhere")
        schema = await service.until_state("degraded", "lost")
        assert schema["error"].startswith('The table "environments" has disappeared')
        error = await service.failure("list")
        assert (error.type, str(error)) == ("DATABASE_UNAVAILABLE", schema["error"])
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
        assert schema["error"].startswith("The service lacks privileges on the table, which affects `create`, `import`")
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
        assert schema["error"] == "The service may not use the schema of the table."
        assert await service.until_logged("GRANT USAGE ON SCHEMA")


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
        assert await service.until_logged(f'ALTER ROLE "{role}" SET search_path = "public";')
        assert str(await service.failure("list")) == schema["error"]
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
        assert schema["error"] == "The database is read-only."
        assert role in await service.until_logged("default_transaction_read_only")


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
        await service.until_logged("The schema could not be inspected")
        assert (await service.ask("schema"))["state"] == "ready"


async def test_the_connection_that_says_that_a_node_serves_is_given_up_for_a_call(
    postgres_database: PostgresDatabase,
) -> None:
    url = owned_by(postgres_database, "CONNECTION LIMIT 3")
    sessions = f"FROM pg_stat_activity WHERE usename = '{postgres_database.role_name(url)}' AND application_name"
    present = f"SELECT count(*) {sessions} = '{APPLICATION} store'"
    of_calls = f"{sessions} = 'environments-store'"
    async with serving(url, budgets=msgspec.structs.replace(BUDGETS, reinspect_s=600)) as service:
        await service.until_state("ready", steps=True)
        await until(lambda: postgres_database.run_sql(present) == "1")
        others = [await asyncpg.connect(url)]
        try:
            postgres_database.run_sql(f"SELECT pg_terminate_backend(pid) {of_calls}")
            await until(lambda: postgres_database.run_sql(f"SELECT count(*) {of_calls}") == "0")
            others.append(await asyncpg.connect(url))
            assert len(await service.ask("list", fields=["id"])) == 3
            assert postgres_database.run_sql(present) == "0"
        finally:
            for other in others:
                await other.close()


ALL_CALLS: dict[str, dict[str, Any]] = {
    "list": {"fields": ["id"]},
    "get": {"uuid": FIRST_LIVE},
    "stats": {},
    "create": {"environment": {"uuid": "d3b54cfc-8dd7-4974-af6d-dc489df26ced"}},
    "update": {"uuid": FIRST_LIVE, "environment": {"uuid": FIRST_LIVE}},
    "listDeleted": {"fields": ["id"]},
    "remove": {"uuid": FIRST_LIVE},
    "restore": {"uuid": FIRST_LIVE},
    "permanentDelete": {"uuid": FIRST_LIVE, "force": True},
    "purge": {},
}
CHANGES = {"update", "remove", "restore", "permanentDelete", "purge"}


class Fault(NamedTuple):
    """A change of a whole table that keeps actions from their work. `{role}` is the role of the service, which owns the
    table where it is not `granted` all on it."""

    sql: str
    reason: str
    refused: set[str]
    granted: bool = False


FAULTS = {
    "no key": Fault("ALTER TABLE environments DROP CONSTRAINT environments_pkey", "no-key", {"create"}),
    "a key that holds at the end alone": Fault(
        "ALTER TABLE environments DROP CONSTRAINT environments_pkey;"
        " ALTER TABLE environments ADD PRIMARY KEY (id) DEFERRABLE",
        "no-key",
        {"create"},
    ),
    "an id of type uuid": Fault(
        "ALTER TABLE environments ALTER id TYPE uuid USING id::uuid",
        "unsupported",
        {"list", "listDeleted", "purge", "create"},
    ),
    "a generated column": Fault(
        'ALTER TABLE environments DROP "environmentUuid";'
        ' ALTER TABLE environments ADD "environmentUuid" text GENERATED ALWAYS AS (id) STORED',
        "unsupported",
        {"create"},
    ),
    "a generated column that changes": Fault(
        "ALTER TABLE environments DROP timestamp;"
        " ALTER TABLE environments ADD timestamp numeric GENERATED ALWAYS AS (1) STORED",
        "unsupported",
        {"create", "update"},
    ),
    "a column that needs a value": Fault(
        "ALTER TABLE environments ADD owner text NOT NULL DEFAULT 'x';"
        " ALTER TABLE environments ALTER owner DROP DEFAULT",
        "unsupported",
        {"create"},
    ),
    "a rule instead of updates": Fault(
        "CREATE RULE quiet AS ON UPDATE TO environments DO INSTEAD NOTHING",
        "unsupported",
        CHANGES - {"permanentDelete"} | {"create"},
    ),
    "a rule beside updates": Fault(
        "CREATE TABLE log (id text); GRANT ALL ON log TO PUBLIC;"
        " CREATE RULE noted AS ON UPDATE TO environments DO ALSO INSERT INTO log VALUES (NEW.id)",
        "unsupported",
        {"create"},
    ),
    "published without a replica identity": Fault(
        "ALTER TABLE environments REPLICA IDENTITY NOTHING; CREATE PUBLICATION everything FOR TABLE environments",
        "replica-identity",
        CHANGES,
    ),
    "policies for reading alone": Fault(
        "ALTER TABLE environments ENABLE ROW LEVEL SECURITY;"
        " CREATE POLICY readers ON environments FOR SELECT USING (true)",
        "row-security",
        CHANGES | {"create"},
        granted=True,
    ),
    "row security switched off": Fault(
        "ALTER TABLE environments ENABLE ROW LEVEL SECURITY; CREATE POLICY everyone ON environments USING (true);"
        ' ALTER ROLE "{role}" SET row_security = off',
        "row-security",
        set(ALL_CALLS),
        granted=True,
    ),
    "no right to insert into one column": Fault(
        'REVOKE INSERT ON environments FROM "{role}"; GRANT INSERT (id, environment, timestamp, "createdAt",'
        ' "updatedAt", "deletedAt") ON environments TO "{role}"',
        "forbidden",
        {"create"},
        granted=True,
    ),
    "no right to update": Fault(
        'REVOKE UPDATE ON environments FROM "{role}"', "forbidden", CHANGES - {"permanentDelete"}, granted=True
    ),
    "no right to delete": Fault(
        'REVOKE DELETE ON environments FROM "{role}"', "forbidden", {"permanentDelete", "purge"}, granted=True
    ),
    "a column of another type": Fault(
        "ALTER TABLE environments ALTER timestamp TYPE boolean USING true", "unsupported", {"create", "update"}
    ),
}


async def errors_of_all_calls(service: Serving) -> dict[str, MoleculerError]:
    errors = {}
    for action, params in ALL_CALLS.items():
        try:
            await service.ask(action, **params)
        except MoleculerError as error:
            errors[action] = error
    return errors


def sql_of(finding: Finding) -> str:
    """The statements in a remedy, without the words around them."""
    statements = (finding.remedy or "").partition("run: ")[2] or finding.remedy or ""
    return re.split(r"; (?=[a-z])", statements)[0]


@pytest.mark.parametrize("name", FAULTS)
async def test_what_keeps_actions_from_their_work_is_a_state_and_mended_by_the_sql_that_is_printed(
    name: str, postgres_database: PostgresDatabase
) -> None:
    fault = FAULTS[name]
    url = postgres_database.create_role("guest")
    role = postgres_database.role_name(url)
    right = f'GRANT ALL ON environments TO "{role}"' if fault.granted else f'ALTER TABLE environments OWNER TO "{role}"'
    postgres_database.run_sql(f"{postgres_sql('p_dmig')}; {right}; {fault.sql.format(role=role)}")
    async with serving(url, budgets=BUDGETS) as service:
        schema = await service.until_state("degraded", fault.reason)
        errors = await errors_of_all_calls(service)
        assert set(errors) == fault.refused
        assert {(error.code, error.retryable) for error in errors.values()} == {(503, True)}
        said = " ".join([str(schema), *map(str, errors.values())])
        assert not any(word in said for word in (role, "ALTER", "GRANT", "public", "boolean"))
        finding = next(one for one in (await check(url)).findings if one.takes)
        assert finding.reason == fault.reason
        assert await service.until_logged(finding.text)
        if name != "a column of another type":
            postgres_database.run_sql(sql_of(finding))
            await service.until_state("ready")
            await service.insist("create", environment={"uuid": "d3b54cfc-8dd7-4974-af6d-dc489df26ce0"})
            assert not any(one.level == "error" for one in (await examine(url, LOGGER)).findings)


async def test_a_uuid_that_no_id_can_be_is_not_found_and_cannot_be_created(postgres_database: PostgresDatabase) -> None:
    postgres_database.run_sql(f"{postgres_sql('p_dmig')}; {FAULTS['an id of type uuid'].sql}")
    async with serving(postgres_database.url, budgets=BUDGETS) as service:
        await service.until_state("degraded", "unsupported")
        for action in ("get", "update", "remove", "restore", "permanentDelete"):
            params = {**ALL_CALLS[action], "uuid": "no-uuid"}
            params |= {"environment": {"uuid": "no-uuid"}} if action == "update" else {}
            error = await service.failure(action, **params)
            assert (error.code, error.type, error.data) == (404, "ENVIRONMENT_NOT_FOUND", {"uuid": "no-uuid"}), action
        error = await service.failure("update", uuid="no-uuid", environment={"uuid": "no-uuid"}, ifHash="0" * 40)
        assert error.code == 404
        error = await service.failure("create", environment={"uuid": "no-uuid"})
        assert (error.code, error.data[0]["field"]) == (422, "environment")


OF_FILES = {
    "no key": ("id VARCHAR(255)", "no-key", {"create"}),
    "a column that needs a value": ("id VARCHAR(255) PRIMARY KEY, owner TEXT NOT NULL", "unsupported", {"create"}),
    "a generated column": (
        "id VARCHAR(255) PRIMARY KEY, timestamp DECIMAL GENERATED ALWAYS AS (1) STORED",
        "unsupported",
        {"create", "update"},
    ),
    "a key of numbers": ("id INTEGER PRIMARY KEY", "unsupported", {"create"}),
    "a view": ("id VARCHAR(255) PRIMARY KEY", "unsupported", {"create", "update", "remove"}),
}


@pytest.mark.parametrize("name", OF_FILES)
async def test_the_same_is_seen_in_a_file(name: str, tmp_path: Path) -> None:
    first, reason, refused = OF_FILES[name]
    columns = ["environment JSON", "environmentUuid VARCHAR(255)", "timestamp DECIMAL", "createdAt DATETIME"]
    columns = [one for one in columns if one.split()[0] not in first]
    file = sqlite3.connect(tmp_path / "environments.sqlite")
    file.execute(f"CREATE TABLE environments ({', '.join([first, *columns])}, updatedAt DATETIME, deletedAt DATETIME)")
    if name == "a view":
        file.executescript("ALTER TABLE environments RENAME TO e; CREATE VIEW environments AS SELECT * FROM e")
    file.close()
    async with serving(f"sqlite:///{tmp_path / 'environments.sqlite'}", budgets=BUDGETS) as service:
        await service.until_state("degraded", reason)
        assert await service.ask("list") == []
        for action in sorted(refused):
            assert (await service.failure(action, **ALL_CALLS[action])).code == 503
        report = await check(f"sqlite:///{tmp_path / 'environments.sqlite'}")
        assert [one.reason for one in report.findings if one.takes] == [reason]


async def test_a_table_that_a_crash_would_empty_is_told_of_while_it_is_served(
    postgres_database: PostgresDatabase,
) -> None:
    postgres_database.run_sql(postgres_sql("p_dmig") + "ALTER TABLE environments SET UNLOGGED")
    async with serving(postgres_database.url, budgets=BUDGETS) as service:
        schema = await service.until_state("ready")
        assert [(one["reason"], one["takes"]) for one in schema["findings"]] == [("unlogged", [])]
        assert "SET LOGGED" in await service.until_logged("is UNLOGGED")


async def test_ids_that_stand_in_several_rows_are_named(postgres_database: PostgresDatabase) -> None:
    postgres_database.run_sql(
        postgres_sql("p_dmig")
        + "ALTER TABLE environments DROP CONSTRAINT environments_pkey;"
        + " INSERT INTO environments SELECT * FROM environments WHERE id LIKE '%1'"
    )
    findings = {one.subject: one for one in (await examine(postgres_database.url, LOGGER)).findings}
    assert findings["duplicate-id"].message.endswith(f"a write changes all of them: {FIRST_LIVE}.")
    assert "delete all rows but one" in (findings["no-key"].remedy or "")


async def test_ids_of_a_fixed_length_are_those_that_were_given(postgres_database: PostgresDatabase) -> None:
    postgres_database.run_sql(postgres_sql("p_dmig") + "ALTER TABLE environments ALTER id TYPE char(40)")
    async with serving(postgres_database.url, budgets=BUDGETS) as service:
        await service.until_state("ready", steps=True)
        assert (await service.ask("create", environment={"uuid": "short"}))["id"] == "short"
        assert "short" in [record["id"] for record in await service.ask("list", fields=["id"])]
        assert await service.ask("remove", uuid="short") == {"success": True}
        assert [record["id"] for record in await service.ask("listDeleted", limit=1, fields=["id"])] == ["short"]
        purged = await service.ask("purge", olderThanDays=0, force=True)
        assert (purged["deleted"], purged["remaining"]) == (2, 0)
    assert (await examine(postgres_database.url, LOGGER)).healthy


@pytest.mark.parametrize("lies_in", ["a schema of its own", "a schema that cannot be used"])
async def test_no_second_table_is_made_where_one_lies_in_another_schema_that_can_be_seen(
    lies_in: str, postgres_database: PostgresDatabase
) -> None:
    url = postgres_database.create_role("guest")
    role = postgres_database.role_name(url)
    postgres_database.run_sql(
        f"CREATE SCHEMA mockoon; SET search_path = mockoon; {postgres_sql('p_c')}; RESET search_path;"
        f' ALTER TABLE mockoon.environments OWNER TO "{role}"; GRANT CREATE ON SCHEMA public TO "{role}"'
    )
    tables = "SELECT schemaname FROM pg_tables WHERE tablename = 'environments' ORDER BY 1"
    if lies_in == "a schema that cannot be used":
        async with serving(url, budgets=BUDGETS) as service:
            await service.until_state("ready")  # another tenant's, say
        assert postgres_database.run_sql(tables).splitlines() == ["mockoon", "public"]
        return
    postgres_database.run_sql(f'ALTER SCHEMA mockoon OWNER TO "{role}"')
    async with serving(url, budgets=BUDGETS) as service:
        schema = await service.until_state("degraded", "elsewhere")
        assert "mockoon" not in str(schema)
        remedy = f'ALTER ROLE "{role}" SET search_path = "mockoon"'
        assert await service.until_logged(remedy)
        assert (await service.failure("list")).type == "DATABASE_UNAVAILABLE"
        with pytest.raises(DatabaseError, match=re.escape(remedy)):
            await count(url, 7, LOGGER)
        assert postgres_database.run_sql(tables) == "mockoon"
        postgres_database.run_sql(remedy)
        await service.until_state("ready")
        await service.insist("list")
        assert len(await service.ask("list", fields=["id"])) == 3
    postgres_database.run_sql(f'ALTER ROLE "{role}" RESET search_path')
    assert [one.subject for one in (await check(f"{url}?search_path=mockoon")).findings] == []
    async with serving(url, budgets=BUDGETS, create_table=True) as service:
        await service.until_state("ready")
        assert await service.ask("list") == []
    assert postgres_database.run_sql(tables).splitlines() == ["mockoon", "public"]
    # The twin that an older version has made is told apart by the rows that it has not.
    [twin] = [one for one in (await check(url)).findings if one.subject == "elsewhere"]
    assert (twin.level, '"mockoon"' in twin.message) == ("warning", True)


async def test_a_table_of_that_name_with_other_columns_is_no_reason_not_to_make_one(
    postgres_database: PostgresDatabase,
) -> None:
    postgres_database.run_sql("CREATE SCHEMA flags; CREATE TABLE flags.environments (name text PRIMARY KEY)")
    async with serving(postgres_database.url, budgets=BUDGETS) as service:
        await service.until_state("ready", steps=True)


async def test_rights_by_column_do_not_take_the_service_down_when_the_owner_adds_the_column(
    postgres_database: PostgresDatabase,
) -> None:
    six = 'id, environment, "environmentUuid", "timestamp", "createdAt", "updatedAt"'
    url = postgres_database.create_role("guest")
    role = postgres_database.role_name(url)
    postgres_database.run_sql(
        f'{postgres_sql("p_c")} GRANT SELECT ({six}), INSERT ({six}), UPDATE (environment, "timestamp", "updatedAt"),'
        f' DELETE ON environments TO "{role}"'
    )
    grant = f'GRANT INSERT ("deletedAt"), SELECT ("deletedAt"), UPDATE ("deletedAt") ON environments TO {role};'
    [foretold] = [one for one in (await check(url)).findings if one.subject == "column-grants"]
    assert grant in (foretold.remedy or "")
    async with serving(url, budgets=BUDGETS) as service:
        await service.until_state("degraded", "forbidden")
        printed = postgres_database.run_sql(script("postgresql"))
        assert grant in printed
        await service.until_logged('UPDATE ("deletedAt")')
        for action in ("list", "get", "create", "update", "stats"):
            assert await service.ask(action, **ALL_CALLS[action])
        assert (await service.failure("remove", uuid=FIRST_LIVE)).type == "SOFT_DELETE_UNAVAILABLE"
        postgres_database.run_sql(grant)
        await service.until_state("ready")
        assert await service.ask("remove", uuid=FIRST_LIVE) == {"success": True}
        assert service.guide_lines() == [FAILED, EXISTS]
    assert [one.subject for one in (await check(url)).findings] == []
