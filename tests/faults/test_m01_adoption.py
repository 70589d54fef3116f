"""Every database that production has, adopted by the whole service: its rows are records, and soft delete works."""

from pathlib import Path
from typing import Any

import pytest

from broker import MoleculerError, ServiceBroker
from services.environments_store.defaults import MigrationBudgets
from services.environments_store.service import EnvironmentsStore
from tests.support.postgres import PostgresDatabase
from tests.support.shapes import POSTGRES_SHAPES, SQLITE_SHAPES, make_sqlite, postgres_sql

pytestmark = pytest.mark.anyio

BUDGETS = MigrationBudgets(rebuild_recheck_s=0.05)
PREFIX = "c0ffee00-0000-4000-8000-00000000000"
# Made by Node of the documents in the fixtures. The same for every table: jsonb, too, holds an equal document.
HASHES = {
    f"{PREFIX}1": "7e20a71c986a8f22e6f651f1199e223f76eedbbc",
    f"{PREFIX}3": "88a22c0971e69dec13520f3c0d9395d77aa74cff",
    f"{PREFIX}4": "ead58e860fb608d85a7869bf6f0725e54749de79",
}
DELETED = f"{PREFIX}2"
WITH_DELETED = {"p_dmig", "p_dnew", "p_half", "p_inv", "p_inv_unready", "p_low_and_right", "p_man"} | {
    *("s_crash_6", "s_d1", "s_d2", "s_man", "s_noidx")
}
UNSUPPORTED = {"p_odd_view", "p_odd_partitioned"}
ONLY_IN_THE_COPY = {"s_crash_5": {f"{PREFIX}3"}}
"""Rows that a killed start of the original left in its copy alone: the migration keeps the copy and warns."""
EMPTY = {"p_none", "s_none"}
# Nobody works at a copy in these files: a look at them a moment later shows it.
BUDGETS = MigrationBudgets(rebuild_recheck_s=0.05)


@pytest.mark.parametrize("shape", sorted(set(POSTGRES_SHAPES) - UNSUPPORTED))
async def test_m01_tables_of_postgresql_are_adopted_by_the_service(
    shape: str, postgres_database: PostgresDatabase
) -> None:
    postgres_database.run_sql(postgres_sql(shape))
    await assert_adopted(postgres_database.url, shape)


async def test_m01_a_start_on_a_finished_database_costs_one_connection_and_the_catalog_queries(
    postgres_database: PostgresDatabase,
) -> None:
    postgres_database.run_sql(postgres_sql("p_dnew") + "ANALYZE environments;")
    postgres_database.run_sql(f"ALTER DATABASE \"{postgres_database.name}\" SET log_statement = 'all'")
    async with ServiceBroker("store", services=[EnvironmentsStore(postgres_database.url)]):
        log = postgres_database.log()
    ours = [line for line in log.splitlines() if "application=environments-store" in line]
    statements = [line for line in ours if "statement: " in line or "execute " in line]
    assert len({line.partition("[")[2].partition("]")[0] for line in ours}) == 1
    # Who answers (a pooler has another process id), the two settings of the session, what the catalog holds, and
    # whether the statements of the service are taken.
    assert len(statements) == 8
    assert not any(word in line for line in statements for word in (" LOCK", "advisory", "ALTER", "CREATE"))


@pytest.mark.parametrize("shape", SQLITE_SHAPES)
async def test_m30_files_of_sqlite_are_adopted_by_the_service(shape: str, tmp_path: Path) -> None:
    path = tmp_path / "environments.sqlite"
    make_sqlite(shape, path)
    await assert_adopted(f"sqlite:///{path}", shape)


@pytest.mark.parametrize("shape", sorted(UNSUPPORTED))
async def test_m16_what_is_no_plain_table_is_served_without_soft_delete(
    shape: str, postgres_database: PostgresDatabase
) -> None:
    postgres_database.run_sql(postgres_sql(shape))
    async with ServiceBroker("store", services=[EnvironmentsStore(postgres_database.url)]) as broker:
        assert (await ask(broker, "schema"))["state"] == "degraded"
        assert {record["id"]: record["hash"] for record in await ask(broker, "list")}.items() >= HASHES.items()
        for action in ("remove", "permanentDelete"):
            with pytest.raises(MoleculerError) as caught:
                await ask(broker, action, uuid=f"{PREFIX}1")
            assert caught.value.type == "SOFT_DELETE_UNAVAILABLE"
        assert {record["id"] for record in await ask(broker, "list")} >= HASHES.keys()


async def assert_adopted(url: str, shape: str) -> None:
    async with ServiceBroker("store", services=[EnvironmentsStore(url, budgets=BUDGETS)]) as broker:
        assert (await ask(broker, "schema"))["state"] == "ready"
        live, deleted = await ask(broker, "list"), await ask(broker, "listDeleted")
        expected = {uuid for uuid in HASHES if uuid not in ONLY_IN_THE_COPY.get(shape, ())} - set(
            HASHES if shape in EMPTY else ()
        )
        assert {record["id"]: record["hash"] for record in live} == {uuid: HASHES[uuid] for uuid in expected}
        for record in live:
            assert record["environment"]["uuid"] == record["environmentUuid"] == record["id"]
            assert record["timestamp"] == 1748340000123 + int(record["id"][-1])
            assert record["createdAt"].startswith("2026-11-22T12:44:")
            assert record["deletedAt"] is None
        assert [(record["id"], record["deletedAt"]) for record in deleted] == (
            [(DELETED, "2025-05-27T08:54:47.123Z")] if shape in WITH_DELETED else []
        )
        await assert_works(broker, [record["id"] for record in live])


async def assert_works(broker: ServiceBroker, live: list[str]) -> None:
    """The guide's steps, on a new environment and on those that were there."""
    uuid = (await ask(broker, "create", environment={"name": "new"}))["id"]
    for removed in [uuid, *live]:
        assert await ask(broker, "remove", uuid=removed) == {"success": True}
    assert await ask(broker, "list") == []
    for restored in [uuid, *live]:
        assert await ask(broker, "restore", uuid=restored) == {"success": True}
    assert {record["id"] for record in await ask(broker, "list")} == {*live, uuid}


def ask(broker: ServiceBroker, action: str, **params: Any) -> Any:
    return broker.call(f"environments-store.{action}", params)
