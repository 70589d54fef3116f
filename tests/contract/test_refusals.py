"""What a database does to a write besides storing it: it refuses it with an error, or swallows it without one."""

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from broker.errors import MoleculerError, ValidationError, error_to_wire
from services.environments_store.database import sqlite
from services.environments_store.database.sqlite_connection import connect
from services.environments_store.database.sqlite_guarded import GuardedConnection
from services.environments_store.defaults import DatabaseSettings
from services.environments_store.errors import DatabaseRefusedError
from tests.support.migrations import BUDGETS
from tests.support.operations import imported, ndjson, purge
from tests.support.postgres import PostgresDatabase
from tests.support.served import Serving, serving
from tests.support.shapes import make_sqlite, postgres_sql
from tests.support.store import Bench, open_bench, read

pytestmark = pytest.mark.anyio

on_both = pytest.mark.parametrize("bench", ["sqlite", "postgresql"], indirect=True)
on_postgresql = pytest.mark.parametrize("bench", ["postgresql"], indirect=True)


@pytest.fixture
def kept_tables() -> None:
    """Most tests put triggers on their table."""


Write = Callable[[Bench], Awaitable[Any]]
DOCUMENT = b'{"uuid":"live","name":"new"}'
WRITES: dict[str, tuple[str, Write]] = {
    "create": ("INSERT", lambda bench: bench.store.create(b'{"uuid":"new"}')),
    "update": ("UPDATE", lambda bench: bench.store.update("live", DOCUMENT)),
    "update if hash": ("UPDATE", lambda bench: update_if_hash(bench)),
    "remove": ("UPDATE", lambda bench: bench.store.remove("live")),
    "restore": ("UPDATE", lambda bench: bench.store.restore("trash")),
    "permanentDelete": ("DELETE", lambda bench: bench.store.permanent_delete("trash")),
    "permanentDelete by force": ("DELETE", lambda bench: bench.store.permanent_delete("live", force=True)),
    "import": ("INSERT", lambda bench: imported(bench, ndjson({"environment": {"uuid": "new"}}))),
    "import that replaces": (
        "UPDATE",
        lambda bench: imported(bench, ndjson({"environment": {"uuid": "live", "name": "new"}}), "replace"),
    ),
}


async def update_if_hash(bench: Bench) -> None:
    [record] = await bench.list()
    await bench.store.update("live", DOCUMENT, record["hash"])


async def fill(bench: Bench) -> None:
    await bench.create("live")
    await bench.create("trash")
    await bench.store.remove("trash")


async def everything(bench: Bench) -> list[Any]:
    return [await bench.list(), await bench.list_deleted()]


async def add_trigger(bench: Bench, event: str, body: dict[bool, str]) -> None:
    """A trigger 'keep' before each row; `body` is its text for SQLite (True) and for PL/pgSQL."""
    if bench.is_sqlite:
        await bench.run(f"CREATE TRIGGER keep BEFORE {event} ON environments BEGIN {body[True]}; END")
        return
    await bench.run(f"CREATE FUNCTION guard() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {body[False]}; END$$")
    await bench.run(f"CREATE TRIGGER keep BEFORE {event} ON environments FOR EACH ROW EXECUTE FUNCTION guard()")


async def drop_trigger(bench: Bench) -> None:
    await bench.run("DROP TRIGGER keep" if bench.is_sqlite else "DROP FUNCTION guard() CASCADE")


async def refusals(
    bench: Bench, add: Callable[[str], Awaitable[None]]
) -> AsyncIterator[tuple[str, DatabaseRefusedError]]:
    """How each write is refused with the trigger that `add` puts before it; none changes anything."""
    await fill(bench)
    before = await everything(bench)
    for name, (event, write) in WRITES.items():
        await add(event)
        with pytest.raises(DatabaseRefusedError) as caught:
            await write(bench)
        assert await everything(bench) == before, name
        await drop_trigger(bench)
        yield name, caught.value


@on_both
async def test_a_write_that_the_database_swallows_is_refused_and_names_the_trigger(bench: Bench) -> None:
    body = {True: "SELECT RAISE(IGNORE)", False: "RETURN NULL"}
    async for name, error in refusals(bench, lambda event: add_trigger(bench, event, body)):
        assert (error.code, error.type, error.retryable) == (409, "DATABASE_REFUSED", False), name
        assert "trigger keep" in str(error), name


@on_both
async def test_what_a_trigger_raises_is_what_the_caller_reads(bench: Bench) -> None:
    body = {True: "SELECT RAISE(ABORT, 'not today')", False: "RAISE EXCEPTION 'not today'"}
    async for name, error in refusals(bench, lambda event: add_trigger(bench, event, body)):
        assert "The database refused it: not today." in (error.public or ""), name
        assert not error.retryable, name


ALL_COLUMNS = 'id, environment, "environmentUuid", "timestamp", "createdAt", "updatedAt", "deletedAt"'
OLD = ", ".join(f"OLD.{name}" for name in ALL_COLUMNS.split(", "))
UNDO = {
    "INSERT": "DELETE FROM environments WHERE id = NEW.id",
    "UPDATE": 'UPDATE environments SET environment = OLD.environment, "deletedAt" = OLD."deletedAt" WHERE id = NEW.id',
    "DELETE": f"INSERT INTO environments ({ALL_COLUMNS}) VALUES ({OLD})",
}
AFTERWARDS = [("sqlite", ""), ("postgresql", ""), ("postgresql", "DEFERRABLE INITIALLY DEFERRED")]
afterwards = pytest.mark.parametrize(
    ("bench", "deferred"), AFTERWARDS, indirect=["bench"], ids=["sqlite", "postgresql", "postgresql, at the commit"]
)


async def add_trigger_afterwards(bench: Bench, event: str, body: str, deferred: str = "") -> None:
    """The same after each row, as an inspection of the table would see it."""
    bench.status = msgspec.structs.replace(bench.status, may_undo=True)
    if bench.is_sqlite:
        await bench.run(f"CREATE TRIGGER keep AFTER {event} ON environments BEGIN {body}; END")
        return
    await bench.run(f"CREATE FUNCTION guard() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {body}; RETURN NULL; END$$")
    constraint = "CONSTRAINT" if deferred else ""
    await bench.run(
        f"CREATE {constraint} TRIGGER keep AFTER {event} ON environments {deferred} FOR EACH ROW"
        " WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION guard()"
    )


@afterwards
async def test_a_write_that_a_trigger_undoes_afterwards_is_refused_and_names_the_trigger(
    bench: Bench, deferred: str
) -> None:
    async for name, error in refusals(bench, lambda event: add_trigger_afterwards(bench, event, UNDO[event], deferred)):
        assert (error.code, error.type, error.retryable) == (409, "DATABASE_REFUSED", False), name
        assert "trigger keep" in str(error), name


@afterwards
async def test_what_a_purge_deletes_and_a_trigger_puts_back_is_kept(bench: Bench, deferred: str) -> None:
    await fill(bench)
    await bench.create("other")
    await bench.store.remove("other")
    await bench.run("UPDATE environments SET \"deletedAt\" = '2020-01-01 00:00:00.000 +00:00' WHERE id <> 'live'")
    unless = "FROM (SELECT 1) AS x WHERE OLD.id = 'trash'"
    await add_trigger_afterwards(
        bench, "DELETE", f"INSERT INTO environments ({ALL_COLUMNS}) SELECT {OLD} {unless}", deferred
    )
    work = await purge(bench, 1)
    deleted = [change.uuid async for changes in work.batches() for change in changes]
    assert (deleted, work.examples) == (["other"], [("trash", "trigger keep")])
    assert [record["id"] for record in await bench.list_deleted()] == ["trash"]


@on_both
async def test_what_a_trigger_does_besides_is_in_the_answer(bench: Bench) -> None:
    await fill(bench)
    await bench.run("CREATE TABLE log (id TEXT)")
    stamp = "INSERT INTO log VALUES (NEW.id); UPDATE environments SET timestamp = 1 WHERE id = NEW.id"
    await add_trigger_afterwards(bench, "UPDATE", stamp)
    [record] = await bench.list()
    written = await bench.store.update("live", DOCUMENT, record["hash"])
    assert read(written.record)["timestamp"] == 1
    for write in ("import that replaces", "restore", "import", "update", "remove", "permanentDelete by force"):
        await WRITES[write][1](bench)
    assert len(await bench.database.fetch("SELECT id FROM log")) == 5


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
async def test_a_service_sees_that_a_table_may_undo_its_writes(
    dialect: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'environments.sqlite'}"
    if dialect == "postgresql":
        url = str(request.getfixturevalue("postgres_url"))
    async with open_bench(dialect, url) as bench:
        await fill(bench)
        await add_trigger_afterwards(bench, "UPDATE", UNDO["UPDATE"])
        async with serving(url, budgets=BUDGETS) as service:
            assert await refused(service, "remove", uuid="live") == "DATABASE_REFUSED"


@on_both
async def test_a_constraint_is_named(bench: Bench) -> None:
    name = "json_extract(environment, '$.name')" if bench.is_sqlite else "(environment->>'name')"
    await bench.run(f"CREATE UNIQUE INDEX one_name ON environments ({name})")
    await bench.create("first", name="x")
    await bench.create("second", name="y")
    for write in (bench.create("third", name="x"), bench.store.update("second", b'{"uuid":"second","name":"x"}')):
        with pytest.raises(DatabaseRefusedError, match="one_name") as caught:
            await write
        assert caught.value.data["constraint"] == "one_name"
        assert caught.value.public == "The database refused it: the constraint 'one_name' does not allow it."
    with pytest.raises(DatabaseRefusedError, match=r"Line 2: .*one_name") as caught:
        await imported(bench, ndjson(*({"environment": {"uuid": uuid, "name": uuid[:1]}} for uuid in ("a", "x"))))
    assert (caught.value.data["line"], caught.value.data["uuid"]) == (2, "x")
    assert len(await bench.list()) == 2


@on_postgresql
async def test_a_constraint_that_is_checked_at_the_commit_refuses_too(bench: Bench) -> None:
    await fill(bench)
    await bench.run(
        "CREATE TABLE shares (env varchar CONSTRAINT held REFERENCES environments (id) DEFERRABLE INITIALLY DEFERRED)"
    )
    await bench.run("INSERT INTO shares VALUES ('live'), ('trash')")
    before = await everything(bench)
    for uuid in ("live", "trash"):
        with pytest.raises(DatabaseRefusedError) as caught:
            await bench.store.permanent_delete(uuid, force=True)
        assert caught.value.data["constraint"] == "held"
    await bench.run(
        "CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'too late'; END$$"
    )
    await bench.run(
        "CREATE CONSTRAINT TRIGGER late AFTER UPDATE ON environments DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION late()"
    )
    for write in ("update", "update if hash", "remove"):
        with pytest.raises(DatabaseRefusedError, match="too late"):
            await WRITES[write][1](bench)
    assert await everything(bench) == before


@on_postgresql
async def test_a_value_of_the_document_that_does_not_fit_is_the_fault_of_the_document(bench: Bench) -> None:
    await bench.run("CREATE INDEX by_port ON environments (((environment->>'port')::int))")
    with pytest.raises(ValidationError) as caught:
        await bench.create("U", port="no number")
    assert caught.value.code == 422
    assert "no number" not in str(caught.value.data)
    await add_trigger(bench, "INSERT", {False: "PERFORM 1 / 0; RETURN NEW"})
    with pytest.raises(DatabaseRefusedError) as refused:
        await bench.create("U", port=1)
    assert refused.value.public == "The database refused it: the function 'guard' of a trigger failed."


@on_postgresql
@pytest.mark.parametrize(("action", "value"), [("remove", "NULL"), ("restore", "now()")])
async def test_a_trigger_that_takes_the_mark_off_again_refuses_it(bench: Bench, action: str, value: str) -> None:
    await fill(bench)
    await add_trigger(bench, "UPDATE", {False: f'NEW."deletedAt" = {value}; RETURN NEW'})
    with pytest.raises(DatabaseRefusedError, match="trigger keep"):
        await WRITES[action][1](bench)


@on_postgresql
async def test_a_rule_that_does_something_else_refuses(bench: Bench) -> None:
    await fill(bench)
    await bench.run("CREATE RULE keep AS ON DELETE TO environments DO INSTEAD NOTHING")
    with pytest.raises(DatabaseRefusedError, match="RETURNING"):
        await bench.store.permanent_delete("trash")


POLICIES = """ALTER TABLE environments ENABLE ROW LEVEL SECURITY;
CREATE POLICY reading ON environments FOR SELECT USING (true);
CREATE POLICY adding ON environments FOR INSERT WITH CHECK (id <> 'theirs');
CREATE POLICY changing ON environments FOR UPDATE USING (id = 'mine');
CREATE POLICY deleting ON environments FOR DELETE USING (id = 'mine');
GRANT ALL ON environments TO "{role}";"""


async def test_a_policy_for_one_command_refuses_it_and_nothing_else(postgres_database: PostgresDatabase) -> None:
    url = postgres_database.create_role("guest")
    postgres_database.run_sql(postgres_sql("p_dmig") + POLICIES.format(role=postgres_database.role_name(url)))
    live, trash = (f"c0ffee00-0000-4000-8000-00000000000{number}" for number in (1, 2))
    async with serving(url, budgets=BUDGETS) as service:
        assert (await service.ask("create", environment={"uuid": "mine"}))["id"] == "mine"
        assert await service.ask("remove", uuid="mine") == {"success": True}
        assert await service.ask("restore", uuid="mine") == {"success": True}
        assert (await service.ask("get", uuid=live))["id"] == live
        for action, params, name in (
            ("create", {"environment": {"uuid": "theirs"}}, "policy"),
            ("update", {"uuid": live, "environment": {"uuid": live}}, "policy changing"),
            ("remove", {"uuid": live}, "policy changing"),
            ("restore", {"uuid": trash}, "policy changing"),
            ("permanentDelete", {"uuid": trash}, "policy deleting"),
        ):
            error = await service.failure(action, **params)
            assert (error.code, error.type, error.retryable) == (409, "DATABASE_REFUSED", False)
            assert name in str(error)


async def test_a_row_that_security_hides_ends_the_create_of_its_uuid(postgres_database: PostgresDatabase) -> None:
    url = postgres_database.create_role("guest")
    postgres_database.run_sql(
        postgres_sql("p_dmig")
        + "ALTER TABLE environments ENABLE ROW LEVEL SECURITY;"
        + "CREATE POLICY visible ON environments USING (id LIKE 'c0ffee00%');"
        + f'GRANT ALL ON environments TO "{postgres_database.role_name(url)}";'
        + "UPDATE environments SET id = 'hidden' WHERE id LIKE '%1'"
    )
    async with serving(url, budgets=BUDGETS) as service:
        assert await refused(service, "create", environment={"uuid": "hidden"}) == "DATABASE_REFUSED"


async def refused(service: Serving, action: str, **params: Any) -> str | None:
    error: MoleculerError = await service.failure(action, **params)
    assert not error.retryable
    return error.type


async def test_a_right_that_is_taken_away_is_an_error_that_another_attempt_does_not_mend(
    postgres_database: PostgresDatabase,
) -> None:
    url = postgres_database.create_role("guest")
    role = postgres_database.role_name(url)
    postgres_database.run_sql(f'{postgres_sql("p_dmig")} GRANT ALL ON environments TO "{role}"')
    live = "c0ffee00-0000-4000-8000-000000000001"
    async with serving(url, budgets=BUDGETS) as service:
        await service.until_state("ready", steps=True)
        postgres_database.run_sql(f'REVOKE UPDATE ON environments FROM "{role}"')
        error = await service.failure("update", uuid=live, environment={"uuid": live})
        assert (error.code, error.type, error.retryable) == (500, "DATABASE_FORBIDDEN", False)
        assert error.data == {"sqlstate": "42501", "reason": "forbidden"}
        schema = await service.until_state("degraded", "forbidden")
        assert not [word for word in (role, "UPDATE", "GRANT") if word in f"{error} {schema}"]
        assert await service.until_logged(f'GRANT UPDATE ON "public"."environments" TO "{role}"')
        # What no plan shows: the function of an index is called when a row is stored.
        postgres_database.run_sql(
            f'GRANT UPDATE ON environments TO "{role}"; CREATE FUNCTION key(text) RETURNS text IMMUTABLE LANGUAGE sql'
            " AS 'SELECT $1 LIMIT 1'; CREATE INDEX by_key ON environments (key(id));"
            " REVOKE ALL ON FUNCTION key FROM PUBLIC"
        )
        await service.until_state("ready")
        error = await service.failure("create", environment={"uuid": "new"})
        assert (error.type, error.retryable) == ("DATABASE_FORBIDDEN", False)
        assert await service.until_logged("permission denied for function key")


LIVE = "c0ffee00-0000-4000-8000-000000000001"
CALLS: dict[str, dict[str, Any]] = {
    "list": {},
    "listDeleted": {"limit": 1},
    "get": {"uuid": LIVE},
    "stats": {},
    "create": {"environment": {"uuid": "new", "text": "x" * 200_000}},
    "update": {"uuid": LIVE, "environment": {"uuid": LIVE, "text": "x" * 200_000}},
    "remove": {"uuid": LIVE},
    "restore": {"uuid": "c0ffee00-0000-4000-8000-000000000002"},
    "permanentDelete": {"uuid": "c0ffee00-0000-4000-8000-000000000003", "force": True},
    "purge": {},
    "import": {},
    "export": {},
}
IMPATIENT = DatabaseSettings(connect_timeout_s=2, acquire_timeout_s=2, sqlite_busy_timeout_s=0.05, lock_timeout_s=0.2)


async def said_of_all_calls(service: Serving) -> tuple[int, str]:
    """How many calls have failed, and everything that callers were given for it, as it goes over the wire."""
    failed, said = 0, []
    for action, params in CALLS.items():
        try:
            stream = one_line() if action == "import" else None
            answer = await service.broker.call(f"environments-store.{action}", params, timeout=30, stream=stream)
            if action == "export":
                [_ async for _ in answer]
        except MoleculerError as error:
            failed += 1
            said.append(str(error_to_wire(error, "store")))
        said.append(str(await service.ask("schema")))
    return failed, "\n".join(said)


async def one_line() -> AsyncIterator[bytes]:
    yield b'{"environment":{"uuid":"imported"}}\n'


def delete(path: Path) -> None:
    path.unlink()


def put_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def damage(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(b"\xff" * size)


FILES: dict[str, Callable[[Path], Any]] = {
    "no file": delete,
    "a folder": put_a_folder,
    "a damaged file": damage,
    "a locked file": lambda path: sqlite3.connect(path, isolation_level=None).execute("BEGIN IMMEDIATE"),
    "a full disk": lambda path: None,
    "a file to be read only": lambda path: None,
}


@pytest.mark.parametrize("name", FILES)
async def test_callers_read_no_path_whatever_is_wrong_with_a_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "precious.sqlite"
    make_sqlite("s_d1", path)
    if name == "a full disk":
        monkeypatch.setattr(sqlite, "connect", connect_to_a_full_disk)
    read_only = "?mode=ro" if name == "a file to be read only" else ""
    async with serving(f"sqlite:///{path}{read_only}", budgets=BUDGETS, settings=IMPATIENT) as service:
        harm = FILES[name](path)
        failed, said = await said_of_all_calls(service)
        assert failed
        assert not [word for word in (tmp_path.name, path.name, "SELECT", "INSERT") if word in said], said
        assert await service.until_logged(str(path))
        del harm


async def connect_to_a_full_disk(path: Path, **options: Any) -> GuardedConnection:
    connection = await connect(path, **options)
    await connection.execute_fetchall("PRAGMA max_page_count = 1")  # as many as there are
    return connection


SERVERS = {
    "another password": "ALTER ROLE \"{role}\" PASSWORD 'changed'",
    "no right to connect": 'REVOKE CONNECT ON DATABASE "{database}" FROM PUBLIC',
    "no such database": 'REVOKE CONNECT ON DATABASE "{database}" FROM PUBLIC',
    "no right to anything": 'REVOKE ALL ON environments FROM "{role}"',
    "a locked table": "",
    "a failing trigger": "CREATE FUNCTION harm() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN EXECUTE ''SELECT 1 FROM"
    " {role}''; RETURN NEW; END'; CREATE TRIGGER harm BEFORE INSERT OR UPDATE OR DELETE ON environments FOR EACH ROW"
    " EXECUTE FUNCTION harm()",
}


@pytest.mark.parametrize("name", SERVERS)
async def test_callers_read_no_role_password_host_or_sql_whatever_is_wrong_with_a_server(
    name: str, postgres_database: PostgresDatabase
) -> None:
    url = postgres_database.create_role("guest")
    role, database, admin = postgres_database.role_name(url), postgres_database.name, postgres_database.server.run_sql
    postgres_database.run_sql(f'{postgres_sql("p_dmig")} GRANT ALL ON environments TO "{role}"')
    async with serving(url, budgets=BUDGETS, settings=IMPATIENT) as service:
        await service.until_state("ready", steps=True)
        other = await asyncpg.connect(postgres_database.url)
        postgres_database.run_sql(SERVERS[name].format(role=role, database=database))
        if name == "a locked table":
            await other.execute("BEGIN; LOCK TABLE environments")
        elif name != "a failing trigger":
            await other.close()
            admin(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'")
        if name == "no such database":
            admin(f'ALTER DATABASE "{database}" RENAME TO "{database}_away"')
        try:
            failed, said = await said_of_all_calls(service)
        finally:
            if name == "no such database":
                admin(f'ALTER DATABASE "{database}_away" RENAME TO "{database}"')
            await other.close()
        assert failed
        secrets = (role, database, "127.0.0.1", "role-password", "SELECT", "INSERT", "permission denied")
        assert not [word for word in secrets if word in said], said
        if name in ("another password", "no right to anything"):
            assert await service.until_logged(role)
