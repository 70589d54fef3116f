"""`migrate plan` and `migrate verify`, on every shape of production: what they say is true, and they change nothing."""

import sqlite3
from pathlib import Path

import anyio
import pytest

from services.environments_store.database.connect import open_database
from services.environments_store.errors import DatabaseError
from services.environments_store.operations.checklist import all_hold
from services.environments_store.operations.planning import plan
from services.environments_store.operations.progress import BuildProgress, watch_index_build
from services.environments_store.operations.verify import verify
from services.environments_store.schema.migrator import migrate_once
from tests.support.operations import LOGGER
from tests.support.postgres import PostgresDatabase
from tests.support.shapes import POSTGRES_SHAPES, SQLITE_SHAPES, make_sqlite, postgres_sql, rows_of_sqlite

pytestmark = pytest.mark.anyio

FINISHED = ["p_dmig", "p_dnew", "p_man", "s_d1", "s_d2", "s_man"]
FUNCTION = ["create", "remove", "list", "listDeleted", "restore", "list again", "clean up"]
ODD = ["p_odd_partitioned", "p_odd_view", "p_low_and_right", "p_odd_search_path"]
MIGRATED = [shape for shape in (*POSTGRES_SHAPES, *SQLITE_SHAPES) if shape not in ODD]


@pytest.fixture
def url(shape: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if shape.startswith("s_"):
        make_sqlite(shape, tmp_path / "environments.sqlite")
        return f"sqlite:///{tmp_path / 'environments.sqlite'}"
    database: PostgresDatabase = request.getfixturevalue("postgres_database")
    database.run_sql(postgres_sql(shape))
    return database.url


@pytest.mark.parametrize("shape", MIGRATED)
async def test_a_plan_says_what_a_run_then_does(shape: str, url: str) -> None:
    before = await plan(url)
    pending = [step.name for step in before.steps if step.state != "done"]
    assert before.pending == bool(pending)
    assert "***" in before.database or before.dialect == "sqlite"
    for step in before.steps:
        assert (step.lock == "none") == (step.state == "done" or not step.statement)
    assert await plan(url) == before, "looking changes nothing"
    await migrate_once(url, logger=LOGGER)
    after = await plan(url)
    assert not after.pending
    assert {step.state for step in after.steps} == {"done"}
    assert any("terminate a session" in line for line in after.will_not) == (after.dialect == "postgresql")


@pytest.mark.parametrize("shape", ["p_odd_partitioned", "p_odd_view"])
async def test_a_plan_says_what_needs_a_person(shape: str, url: str) -> None:
    planned = await plan(url)
    assert planned.pending
    assert {step.name: step.state for step in planned.steps}["column"] == "blocked"
    assert [finding.subject for finding in planned.findings if finding.level == "error"] == ["unsupported"]


@pytest.mark.parametrize("shape", ["p_c"])
async def test_a_plan_names_who_holds_the_table_now(shape: str, url: str) -> None:
    reader = open_database(url)
    await reader.open()
    try:
        async with reader.transaction() as connection:
            await connection.fetch("SELECT 1 FROM environments LIMIT 1")
            planned = await plan(url)
    finally:
        await reader.close()
    assert "AccessShareLock" in planned.blockers[0]
    assert (await plan(url)).blockers == ()


@pytest.mark.parametrize("shape", FINISHED)
async def test_a_finished_database_is_verified_and_left_as_it_was(shape: str, url: str, tmp_path: Path) -> None:
    await migrate_once(url, logger=LOGGER)
    checks = await verify(url, LOGGER)
    assert [check.name for check in checks] == ["column", "index", "speed", *FUNCTION]
    assert all_hold(checks), checks
    assert {check.state for check in checks} == ({"ok", "warning"} if shape == "p_man" else {"ok"})
    database = open_database(url)
    await database.open()
    try:
        assert await database.fetch("SELECT id FROM environments WHERE id LIKE 'verify-%'") == []
    finally:
        await database.close()


@pytest.mark.parametrize("shape", ["p_dmig"])
async def test_a_table_with_room_for_a_uuid_alone_is_verified(
    shape: str, url: str, postgres_database: PostgresDatabase
) -> None:
    postgres_database.run_sql("ALTER TABLE environments ALTER COLUMN id TYPE char(36)")
    assert all_hold(await verify(url, LOGGER))


@pytest.mark.parametrize("shape", ["p_dmig"])
async def test_of_a_view_is_told_where_its_index_belongs(
    shape: str, url: str, postgres_database: PostgresDatabase
) -> None:
    postgres_database.run_sql(
        "ALTER TABLE environments RENAME TO kept; CREATE VIEW environments AS SELECT * FROM kept;"
        " DROP INDEX environments_deleted_at_idx"
    )
    details = {check.name: check.detail for check in await verify(url, LOGGER) if check.state == "failed"}
    assert set(details) == {"index", "speed"}
    assert "by hand on the tables that hold its rows" in details["index"]
    assert "there is no index" in details["speed"]


@pytest.mark.parametrize("shape", ["p_c", "p_half", "p_inv", "s_b2", "s_noidx"])
async def test_what_is_missing_does_not_hold(shape: str, url: str, tmp_path: Path) -> None:
    rows = rows_of_sqlite(tmp_path / "environments.sqlite") if shape.startswith("s_") else None
    states = {check.name: check.state for check in await verify(url, LOGGER)}
    assert states["index"] == "failed"
    assert states["column"] == ("failed" if shape in ("p_c", "s_b2") else "ok")
    assert states.get("create") == (None if shape in ("p_c", "s_b2") else "ok"), "nothing is written without the column"
    if rows is not None:
        assert rows_of_sqlite(tmp_path / "environments.sqlite") == rows


@pytest.mark.parametrize("shape", ["p_dmig"])
async def test_a_large_table_has_to_use_the_index(shape: str, url: str, postgres_database: PostgresDatabase) -> None:
    postgres_database.run_sql(
        'INSERT INTO environments (id, environment, "environmentUuid", "createdAt", "updatedAt", "deletedAt")'
        " SELECT 'n' || n, json_build_object('uuid', 'n' || n), 'n' || n, now(), now(),"
        " CASE WHEN n % 100 = 0 THEN now() - n * interval '1 second' END FROM generate_series(1, 20000) n; ANALYZE"
    )
    speed = {check.name: check for check in await verify(url, LOGGER)}["speed"]
    assert (speed.state, "is read by environments_deleted_at_idx" in speed.detail) == ("ok", True)
    postgres_database.run_sql("DROP INDEX environments_deleted_at_idx")
    checks = await verify(url, LOGGER)
    assert {check.name: check.state for check in checks}["speed"] == "failed"
    assert not all_hold(checks)


@pytest.mark.parametrize("shape", ["p_none", "s_b1"])
async def test_without_a_table_there_is_nothing_to_verify(shape: str, url: str, tmp_path: Path) -> None:
    if shape == "s_b1":
        connection = sqlite3.connect(tmp_path / "environments.sqlite")
        connection.execute("DROP TABLE environments")
        connection.close()
    with pytest.raises(DatabaseError, match="There is no table"):
        await verify(url, LOGGER)


async def test_the_build_of_an_index_is_watched(postgres_database: PostgresDatabase) -> None:
    postgres_database.run_sql(postgres_sql("p_half"))
    seen: list[BuildProgress] = []
    writer = open_database(postgres_database.url)
    await writer.open()
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch_index_build, postgres_database.url, "migrate", seen.append)
            async with writer.transaction() as connection:  # the build waits for it
                await connection.execute('UPDATE environments SET "updatedAt" = now()')
                await connection.execute("SELECT 1")
                tasks.start_soon(lambda: migrate_once(postgres_database.url, logger=LOGGER))
                with anyio.fail_after(30):
                    while not any(progress.waits_for for progress in seen):  # noqa: ASYNC110 - the server tells of it
                        await anyio.sleep(0.01)
            with anyio.fail_after(30):
                while (await plan(postgres_database.url)).pending:  # noqa: ASYNC110 - the server tells of it
                    await anyio.sleep(0.05)
            tasks.cancel_scope.cancel()
    finally:
        await writer.close()
    assert "waiting for" in seen[-1].phase or seen[0].waits_for
