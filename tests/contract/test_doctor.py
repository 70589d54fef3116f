"""What `doctor` finds, in rows and around them, each with its remedy; and that it finds nothing where nothing is."""

from pathlib import Path

import pytest

from services.environments_store.database.connect import open_database
from services.environments_store.operations.doctor import examine
from services.environments_store.schema.migrator import migrate_once
from services.environments_store.schema.status import Finding
from tests.support.operations import LOGGER, fill
from tests.support.postgres import PostgresDatabase
from tests.support.shapes import make_sqlite, postgres_sql
from tests.support.store import Bench

pytestmark = pytest.mark.anyio


@pytest.fixture
def kept_tables() -> None:
    """The table is to be in the database of the test, which the doctor examines."""


def url_of(bench: Bench, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return (
        f"sqlite:///{tmp_path / 'environments.sqlite'}" if bench.is_sqlite else request.getfixturevalue("postgres_url")
    )


async def found(url: str) -> dict[str, Finding]:
    return {finding.subject: finding for finding in (await examine(url, LOGGER)).findings}


@pytest.mark.parametrize("shape", ["p_dmig", "s_d1"])
async def test_a_healthy_database_gets_no_warning(shape: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if shape == "s_d1":
        make_sqlite(shape, tmp_path / "environments.sqlite")
        url = f"sqlite:///{tmp_path / 'environments.sqlite'}"
    else:
        database: PostgresDatabase = request.getfixturevalue("postgres_database")
        database.run_sql(postgres_sql(shape))
        url = database.url
    await migrate_once(url, logger=LOGGER)
    diagnosis = await examine(url, LOGGER)
    assert diagnosis.healthy, diagnosis.findings
    assert diagnosis.documents
    assert "***" in diagnosis.database or diagnosis.database == url


@pytest.mark.usefixtures("postgres_url")  # the database of the bench, which `url_of` names
@pytest.mark.parametrize("bench", ["sqlite", "postgresql", "postgresql with jsonb"], indirect=True)
async def test_rows_that_need_a_person_are_counted_and_named(
    bench: Bench, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    await fill(bench, 200)
    quoted = '"environmentUuid"'
    await bench.run("UPDATE environments SET environment = NULL WHERE id IN ('row-1', 'row-2')")
    await bench.run(f"UPDATE environments SET {quoted} = 'another' WHERE id IN ('row-3', 'row-4')")
    await bench.run("UPDATE environments SET environment = '{\"uuid\":\"row-6\"}' WHERE id = 'row-5'")
    await bench.run("UPDATE environments SET \"timestamp\" = NULL WHERE id = 'row-7'")
    await bench.create("row-future")
    await bench.set_date("row-future", "deletedAt", "2999-01-01 00:00:00.000")
    diagnosis = await examine(url_of(bench, request, tmp_path), LOGGER)
    messages = [finding.message for finding in diagnosis.findings]
    assert "2 environments have no document: they are listed and exported with null: row-1, row-2." in messages
    assert any(message.startswith("2 environments have an environmentUuid that differs") for message in messages)
    assert any(message.startswith("1 uuid has several rows") and "another" in message for message in messages)
    assert "1 environment has a uuid in its document that differs from its id: row-5." in messages
    assert any(message.startswith("1 environment has no timestamp") for message in messages)
    assert any(message.startswith("1 environment has a deletedAt in the future") for message in messages)
    assert all(finding.remedy for finding in diagnosis.findings if finding.level != "info")
    assert not diagnosis.healthy
    quick = await examine(url_of(bench, request, tmp_path), LOGGER, documents=False)
    assert not any("in their document" in finding.message for finding in quick.findings)
    assert len(quick.findings) == len(diagnosis.findings) - 1


@pytest.mark.parametrize("bench", ["sqlite"], indirect=True)
async def test_what_only_a_file_can_hold_is_found(bench: Bench, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    await bench.run(
        "INSERT INTO environments (id, environment, createdAt, updatedAt)"
        " VALUES (NULL, '{}', '2025-01-01', '2025-01-01')"
    )
    for uuid, document in (("broken", "'{no json'"), ("list", "'[1]'"), ("bytes", "X'7BFF7D'"), ("dated", "'{}'")):
        await bench.create(uuid)
        await bench.run(f"UPDATE environments SET environment = {document} WHERE id = $1", uuid)
    await bench.run("UPDATE environments SET deletedAt = 1748336087123 WHERE id = 'dated'")
    by_subject = await found(url_of(bench, request, tmp_path))
    assert by_subject["null-id"].message == "1 environment has no id: no call can reach them."
    assert by_subject["damaged"].message.startswith("3 environments have a document that cannot be read")
    for uuid in ("broken", "list", "bytes"):
        assert f"{uuid} (" in by_subject["damaged"].message
    assert "dated" in by_subject["unreadable-date"].message


@pytest.mark.parametrize("shape", ["p_c", "p_man", "p_low", "p_a"])
async def test_the_schema_is_looked_at_too(shape: str, postgres_database: PostgresDatabase) -> None:
    postgres_database.run_sql(postgres_sql(shape))
    by_subject = await found(postgres_database.url)
    expected = {
        "p_c": {"column", "index"},
        "p_man": {"timestamp"},
        "p_low": {"twin", "column"},
        "p_a": {"jsonb", "column"},
    }
    assert expected[shape] <= by_subject.keys()


async def test_other_programs_long_transactions_and_dumps_are_named(postgres_database: PostgresDatabase) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    other = open_database(f"{postgres_database.url}?application_name=pg_dump")
    await other.open()
    try:
        async with other.transaction() as connection:
            await connection.execute("SET LOCAL application_name = 'pg_dump'")
            await connection.fetch("SELECT 1 FROM environments LIMIT 1")
            by_subject = await found(postgres_database.url)
    finally:
        await other.close()
    assert by_subject["dump"].level == "error"
    assert "pg_dump" in by_subject["other-program"].message
    assert "about 8 kB" in by_subject["disk"].message


async def test_without_a_database_the_diagnosis_is_the_missing_table(tmp_path: Path) -> None:
    diagnosis = await examine(f"sqlite:///{tmp_path / 'none.sqlite'}", LOGGER)
    assert {finding.subject for finding in diagnosis.findings} >= {"table", "column"}
    assert not diagnosis.healthy


async def test_a_role_that_may_not_migrate_is_not_advised_to(postgres_database: PostgresDatabase) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    url = postgres_database.create_role()
    role = postgres_database.role_name(url)
    postgres_database.run_sql(f'GRANT ALL ON environments TO "{role}"')
    findings = (await examine(url, LOGGER)).findings
    assert not any("migrate run" in (finding.remedy or "") for finding in findings)
    [forbidden] = [finding for finding in findings if finding.subject == "forbidden"]
    assert (forbidden.remedy or "").startswith("As its owner run: ")
    postgres_database.run_sql(f'ALTER TABLE environments OWNER TO "{role}"; GRANT CREATE ON SCHEMA public TO "{role}"')
    assert "migrate run" in ((await found(url))["column"].remedy or "")
