"""A hot standby, and what becomes of it when it is promoted."""

from collections.abc import Iterator

import anyio
import anyio.to_thread
import msgspec
import pytest

from services.environments_store.schema.messages import ADDED, ADDING, FAILED
from tests.support.migrations import ADVISORY_LOCKS, BUDGETS, INDEX_STATE, VALID_INDEX
from tests.support.postgres import PostgresServer
from tests.support.served import serving
from tests.support.shapes import postgres_sql, until

pytestmark = pytest.mark.anyio

LIVE = "c0ffee00-0000-4000-8000-000000000001"


@pytest.fixture
def primary() -> Iterator[PostgresServer]:
    with PostgresServer(synchronous_commit="on") as server:
        yield server


async def test_m15_a_hot_standby_is_served_to_readers_and_heals_when_it_is_promoted(primary: PostgresServer) -> None:
    primary.run_sql(postgres_sql("p_c"))
    with PostgresServer(primary=primary) as standby:
        async with serving(standby.admin_url) as service:
            schema = await service.ask("schema")
            assert (schema["state"], schema["reason"]) == ("degraded", "read-only")
            assert service.guide_lines() == [FAILED]
            assert {record["id"] for record in await service.ask("list", fields=["id"])} >= {LIVE}
            error = await service.failure("create", environment={"name": "on a standby"})
            assert (error.code, error.type, error.retryable) == (503, "DATABASE_READ_ONLY", True)
            assert (await service.failure("remove", uuid=LIVE)).code == 503
            # Its advisory locks would be the standby's own: none is taken, and nothing is changed.
            assert standby.run_sql(ADVISORY_LOCKS) == "0"
            assert "ALTER TABLE" not in standby.log()

            await anyio.to_thread.run_sync(standby.promote)
            await service.until_state("ready", steps=True)
            uuid = (await service.ask("create", environment={"name": "after the promotion"}))["id"]
            assert await service.ask("remove", uuid=uuid) == {"success": True}
            assert [record["id"] for record in await service.ask("listDeleted")] == [uuid]
            assert service.guide_lines() == [FAILED, ADDING, ADDED]
        assert standby.run_sql(INDEX_STATE) == VALID_INDEX
    assert "deletedAt" not in primary.dump_schema("postgres")


async def test_m15_of_a_primary_and_its_standby_the_one_that_takes_writes_is_used_and_followed(
    primary: PostgresServer,
) -> None:
    """The URL names the standby first; then the primary dies and the standby takes its place."""
    primary.run_sql(postgres_sql("p_c"))
    with PostgresServer(primary=primary) as standby:
        both = primary.admin_url.replace("@127.0.0.1:", f"@127.0.0.1:{standby.port},127.0.0.1:")
        async with serving(both) as service:
            await service.until_state("ready", steps=True)
            made = await service.ask("create", environment={"name": "on the primary"})
            assert await service.ask("remove", uuid=LIVE) == {"success": True}
            deleted = await service.ask("listDeleted")
            replayed = f"SELECT count(*) FROM environments WHERE id = '{made['id']}' OR \"deletedAt\" IS NOT NULL"
            await until(lambda: standby.run_sql(replayed) == "2")

            await anyio.to_thread.run_sync(primary.kill)
            await anyio.to_thread.run_sync(standby.promote)
            errors = await service.insist("create", environment={"uuid": "after the failover"})
            # Nobody is told a lie meanwhile: each of them can be tried again.
            assert {(error.code, error.retryable) for error in errors} <= {(503, True)}
            await service.until_state("ready", steps=True)
            assert await service.ask("listDeleted") == deleted
            assert {**await service.ask("get", uuid=made["id"]), "type": made["type"]} == made
    assert service.guide_lines() == [ADDING, ADDED]


async def test_m15_a_primary_that_is_there_still_and_only_reads_is_left_for_the_one_that_takes_writes(
    primary: PostgresServer,
) -> None:
    """Fenced off instead of killed: no connection is lost, so nothing but a refused write tells of the failover."""
    primary.run_sql(postgres_sql("p_dmig"))
    with PostgresServer(primary=primary) as standby:
        both = primary.admin_url.replace("@127.0.0.1:", f"@127.0.0.1:{standby.port},127.0.0.1:")
        # Not by the look that comes on a timer.
        async with serving(both, budgets=msgspec.structs.replace(BUDGETS, reinspect_s=3_600)) as service:
            await service.until_state("ready", steps=True)
            made = await service.ask("create", environment={"name": "on the primary"})
            replayed = f"SELECT count(*) FROM environments WHERE id = '{made['id']}'"
            await until(lambda: standby.run_sql(replayed) == "1")
            primary.run_sql("ALTER SYSTEM SET default_transaction_read_only = on")
            primary.run_sql("SELECT pg_reload_conf()")
            await anyio.to_thread.run_sync(standby.promote)
            errors = await service.insist("create", environment={"uuid": "after the failover"})
            assert {(error.type, error.retryable) for error in errors} <= {("DATABASE_READ_ONLY", True)}
            await service.until_state("ready", steps=True)
            assert {**await service.ask("get", uuid=made["id"]), "type": made["type"]} == made
        assert standby.run_sql("SELECT count(*) FROM environments WHERE id = 'after the failover'") == "1"
