"""What `migrate check` goes through, on both databases: a line for each thing, and what to do where all is not well."""

import sqlite3
from pathlib import Path

import pytest

from services.environments_store.defaults import OperationLimits
from services.environments_store.operations.checklist import Checklist, go_through
from services.environments_store.schema.check import look
from tests.support.migrations import old_transaction
from tests.support.pgbouncer import POOLERS, pooled_url
from tests.support.postgres import PostgresDatabase, PostgresServer
from tests.support.shapes import make_sqlite, postgres_sql

pytestmark = pytest.mark.anyio


async def checklist(url: str, limits: OperationLimits | None = None) -> Checklist:
    return await go_through(await look(url), limits)


def states(checklist: Checklist) -> dict[str, str]:
    return {check.name: check.state for check in checklist.checks}


def messages(checklist: Checklist, subject: str) -> list[str]:
    return [finding.message for finding in checklist.findings if finding.subject == subject]


async def test_where_all_is_well_each_line_says_so(postgres_database: PostgresDatabase) -> None:
    postgres_database.run_sql(postgres_sql("p_dnew") + "ANALYZE environments;")
    seen = await checklist(postgres_database.url)
    assert not seen.pending
    assert list(states(seen)) == [
        *("rights", "table", "blockers", "oldest transaction", "disk", "pooler", "row security", "replication"),
        *("old generations", "other programs"),
    ]
    assert set(states(seen).values()) == {"ok"}
    assert all(check.detail for check in seen.checks)
    assert seen.findings == ()


async def test_who_holds_the_table_and_for_how_long_is_told(postgres_database: PostgresDatabase) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    async with old_transaction(postgres_database.url):
        seen = await checklist(postgres_database.url, OperationLimits(old_transaction_s=0))
    assert seen.pending
    assert (states(seen)["blockers"], states(seen)["oldest transaction"]) == ("warning", "warning")
    assert "slow-report" in messages(seen, "old-transaction")[0]


async def test_a_role_that_may_not_see_the_age_of_a_transaction_is_told_so(postgres_database: PostgresDatabase) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    role = postgres_database.create_role()
    async with old_transaction(postgres_database.url, isolation="repeatable_read"):
        seen = await checklist(role)
        assert "may not see" in messages(seen, "old-transaction")[0]
        assert states(seen)["rights"] == "failed"
        postgres_database.run_sql(f'GRANT pg_read_all_stats TO "{postgres_database.role_name(role)}"')
        assert messages(await checklist(role), "old-transaction") == []


async def test_a_prepared_transaction_that_nobody_ends_is_named() -> None:
    with PostgresServer(max_prepared_transactions="2") as server:
        database = PostgresDatabase(server)
        database.run_sql(postgres_sql("p_c"))
        database.run_sql("BEGIN; SELECT count(*) FROM environments; PREPARE TRANSACTION 'forgotten'")
        seen = await checklist(database.url)
        assert states(seen)["blockers"] == "warning"
        assert "the prepared transaction 'forgotten' holds AccessShareLock" in messages(seen, "blocker")[0]
        database.run_sql("ROLLBACK PREPARED 'forgotten'")
        assert states(await checklist(database.url))["blockers"] == "ok"


async def test_the_disk_that_the_index_needs_is_estimated(postgres_database: PostgresDatabase) -> None:
    postgres_database.run_sql(postgres_sql("p_c") + "ANALYZE environments;")
    [check] = [check for check in (await checklist(postgres_database.url)).checks if check.name == "disk"]
    assert "about 8 kB" in check.detail


@pytest.mark.parametrize("pooler", POOLERS)
async def test_a_pooler_is_named(pooler: str, postgres_database: PostgresDatabase) -> None:
    postgres_database.run_sql(postgres_sql("p_dnew") + "ANALYZE environments;")
    async with pooled_url(pooler, postgres_database.server, postgres_database.url) as url:
        seen = await checklist(url)
    assert states(seen)["pooler"] == "warning"
    assert not seen.pending


async def test_an_owner_without_create_lacks_a_right_for_the_index(postgres_database: PostgresDatabase) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    role = postgres_database.create_role()
    postgres_database.run_sql(f'ALTER TABLE environments OWNER TO "{postgres_database.role_name(role)}"')
    seen = await checklist(role)
    assert states(seen)["rights"] == "warning"
    assert "GRANT CREATE ON SCHEMA" in messages(seen, "index")[0]


async def test_of_a_file_the_writer_and_the_room_on_the_disk_are_told(tmp_path: Path) -> None:
    path = tmp_path / "environments.sqlite"
    make_sqlite("s_b1", path)
    url = f"sqlite:///{path}"
    seen = await checklist(url)
    assert seen.pending
    assert states(seen) == dict.fromkeys(("rights", "table", "blockers", "disk", "old generations"), "ok")
    assert "MiB free" in messages(seen, "disk")[0]
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    assert states(await checklist(url))["blockers"] == "warning"
    writer.close()
    make_sqlite("s_crash_6", tmp_path / "crashed.sqlite")
    crashed = await checklist(f"sqlite:///{tmp_path / 'crashed.sqlite'}")
    assert states(crashed)["old generations"] == "warning"
    assert (await checklist(f"sqlite:///{tmp_path / 'none.sqlite'}")).pending
    assert not (tmp_path / "none.sqlite").exists()
