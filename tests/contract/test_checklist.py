"""What `migrate check` goes through, on both databases: a line for each thing, and what to do where all is not well."""

import sqlite3
from pathlib import Path

import pytest

from services.environments_store.defaults import OperationLimits
from services.environments_store.operations.checklist import Checklist, run_checklist
from services.environments_store.operations.planning import plan
from services.environments_store.schema.check import look
from services.environments_store.schema.migrator import migrate_once
from tests.support.migrations import old_transaction
from tests.support.operations import LOGGER
from tests.support.pgbouncer import POOLERS, pooled_url
from tests.support.postgres import PostgresDatabase, PostgresServer
from tests.support.shapes import make_sqlite, postgres_sql, until

pytestmark = pytest.mark.anyio


async def checklist(url: str, limits: OperationLimits | None = None) -> Checklist:
    return await run_checklist(await look(url), limits)


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


@pytest.mark.parametrize("shape", ["p_c", "p_dmig"])
async def test_a_publication_is_named_with_the_order_of_the_steps(
    shape: str, postgres_database: PostgresDatabase
) -> None:
    postgres_database.run_sql(postgres_sql(shape) + "CREATE PUBLICATION everything FOR TABLE environments")
    seen = await checklist(postgres_database.url)
    [message] = messages(seen, "replication")
    assert message.startswith('"public"."environments" is published by "everything" (logical replication): subscribers')
    assert states(seen)["replication"] == ("warning" if shape == "p_c" else "ok")
    assert message in [finding.message for finding in (await plan(postgres_database.url)).findings]


async def test_a_subscriber_is_no_standby_and_gets_the_column_before_its_publisher() -> None:
    with PostgresServer(wal_level="logical") as server:
        publisher, subscriber = PostgresDatabase(server), PostgresDatabase(server)
        publisher.run_sql(
            f"{postgres_sql('p_c')} CREATE PUBLICATION everything FOR TABLE environments;"
            " SELECT pg_create_logical_replication_slot('follower', 'pgoutput')"
        )
        subscriber.run_sql(f"{postgres_sql('p_c')} TRUNCATE environments")
        subscriber.run_sql(
            f"CREATE SUBSCRIPTION follower CONNECTION '{publisher.url}' PUBLICATION everything"
            " WITH (create_slot = false, slot_name = 'follower')"
        )
        await until(lambda: subscriber.run_sql("SELECT count(*) FROM environments") == "3")
        of_publisher = messages(await checklist(publisher.url), "replication")
        assert of_publisher[1:] == ["1 subscriber of logical replication is connected to this server."]
        [of_subscriber] = messages(await checklist(subscriber.url), "replication")[:1]
        assert 'is written by the subscription "follower"' in of_subscriber
        for database in (subscriber, publisher):
            await migrate_once(database.url, logger=LOGGER)
        publisher.run_sql("UPDATE environments SET \"deletedAt\" = now() WHERE id LIKE '%1'")
        await until(lambda: subscriber.run_sql('SELECT count("deletedAt") FROM environments') == "1")
        subscriber.run_sql("ALTER SUBSCRIPTION follower DISABLE")
        subscriber.run_sql("ALTER SUBSCRIPTION follower SET (slot_name = NONE); DROP SUBSCRIPTION follower")


async def test_a_table_that_was_never_analysed_is_estimated_from_the_size_of_its_file(
    postgres_database: PostgresDatabase,
) -> None:
    postgres_database.run_sql(
        f"{postgres_sql('p_c')} ALTER TABLE environments SET (autovacuum_enabled = false);"
        " INSERT INTO environments SELECT 'row-' || n, json_build_object('name', repeat('x', 150)), 'row-' || n, n,"
        " now(), now() FROM generate_series(1, 50000) AS n"
    )
    assert postgres_database.run_sql("SELECT reltuples FROM pg_class WHERE relname = 'environments'") == "-1"
    planned = await plan(postgres_database.url)
    assert 25_000 < planned.rows_estimate < 100_000
    [index] = [step for step in planned.steps if step.name == "index"]
    assert "kB of disk" in index.duration
    assert "about 8 kB" not in index.duration


async def test_tables_that_share_rows_by_inheritance_are_told_of(postgres_database: PostgresDatabase) -> None:
    postgres_database.run_sql(postgres_sql("p_dmig") + "CREATE TABLE archive () INHERITS (environments)")
    seen = await checklist(postgres_database.url)
    assert states(seen)["table"] == "warning"
    assert 'by inheritance with "archive"' in messages(seen, "inheritance")[0]
