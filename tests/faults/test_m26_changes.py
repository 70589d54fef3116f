"""Somebody changes the table under a running service."""

import itertools
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import asyncpg
import pytest
from anyio.abc import TaskGroup

from broker import MoleculerError
from services.environments_store.database.connect import open_database
from services.environments_store.defaults import DatabaseSettings, MigrationBudgets
from services.environments_store.schema.inspect_postgres import inspect
from services.environments_store.schema.messages import EXISTS
from services.environments_store.schema.migrator import Migrator
from services.environments_store.schema.postgres_steps import explain, open_session
from services.environments_store.schema.status import SchemaStatus
from services.environments_store.schema.trial import try_statements
from tests.support.migrations import BUDGETS, INDEX_STATE, VALID_INDEX, alters, migrator
from tests.support.postgres import PostgresDatabase
from tests.support.served import Serving, serving
from tests.support.shapes import Lines, count_inspections, postgres_sql, until

pytestmark = pytest.mark.anyio


async def test_m26_a_column_that_vanishes_is_lost_and_comes_back_by_a_person_only(
    postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_dmig"))
    one = migrator(postgres_database.url, lines, MigrationBudgets(reinspect_s=0.05, poll_min_s=0.01))
    seen: list[SchemaStatus] = []
    one.on_change = seen.append
    await one.prepare()
    async with anyio.create_task_group() as group:
        group.start_soon(one.run)
        postgres_database.run_sql('ALTER TABLE environments DROP COLUMN "deletedAt"')
        one.report_mismatch()
        await until(lambda: one.status.reason == "lost")
        inspections = count_inspections(postgres_database)
        await until(lambda: inspections() >= 3)
        one.report_mismatch()
        one.report_mismatch()
        postgres_database.run_sql('ALTER TABLE environments ADD COLUMN "deletedAt" TIMESTAMPTZ')
        one.report_mismatch()
        await until(lambda: one.status.state == "ready")
        group.cancel_scope.cancel()

    assert alters(postgres_database) == 0
    assert sum("has disappeared" in message for message in lines.messages) == 1
    assert [status.reason for status in seen if status.reason] == ["lost"]
    assert lines.guide_lines() == [EXISTS, EXISTS]


async def test_m26_a_column_that_comes_back_gets_its_index_without_the_pause_after_a_failed_build(
    postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    one = migrator(postgres_database.url, lines, MigrationBudgets(reinspect_s=0.05, poll_min_s=0.01))
    await one.prepare()
    async with anyio.create_task_group() as group:
        group.start_soon(one.run)
        await until(lambda: all(step.state == "done" for step in one.status.steps))
        postgres_database.run_sql('ALTER TABLE environments DROP COLUMN "deletedAt"')
        await until(lambda: one.status.reason == "lost")
        postgres_database.run_sql('ALTER TABLE environments ADD COLUMN "deletedAt" TIMESTAMPTZ')
        await until(lambda: one.status.state == "ready" and all(step.state == "done" for step in one.status.steps))
        group.cancel_scope.cancel()
    assert postgres_database.run_sql(INDEX_STATE) == VALID_INDEX


async def test_m27_a_pool_learns_of_a_column_whose_type_a_person_changes(
    postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_man"))
    database = open_database(postgres_database.url, DatabaseSettings(pool_size=1))
    await database.open()
    one = Migrator(postgres_database.url, database, node_id="node-1", logger=lines.logger, budgets=BUDGETS)
    await one.prepare()
    trash = 'SELECT "deletedAt" FROM environments WHERE "deletedAt" IS NOT NULL'
    assert [row["deletedAt"].tzinfo for row in await database.fetch(trash)] == [None]
    async with anyio.create_task_group() as group:
        group.start_soon(one.run)
        postgres_database.run_sql(
            "SET TimeZone = 'UTC'; ALTER TABLE environments ALTER COLUMN \"deletedAt\" TYPE TIMESTAMPTZ"
        )
        await until(lambda: one.status.deleted_at_zone)
        inspections = count_inspections(postgres_database)
        await until(lambda: inspections() >= 1)
        group.cancel_scope.cancel()
    # In a transaction a plan from before would be refused.
    async with database.transaction() as transaction:
        assert [str(row["deletedAt"].tzinfo) for row in await transaction.fetch(trash)] == ["UTC"]
    await database.close()


@pytest.mark.parametrize(
    "meanwhile",
    ['ALTER TABLE environments DROP COLUMN "deletedAt"', "LOCK TABLE environments", "DROP TABLE environments"],
    ids=["column", "lock", "table"],
)
async def test_m26_a_change_between_a_look_and_the_trial_of_the_statements_is_not_taken_for_a_refusal(
    postgres_database: PostgresDatabase, meanwhile: str
) -> None:
    """Every call would be refused for it until the next look."""
    postgres_database.run_sql(f"{postgres_sql('p_dmig')} ALTER TABLE environments DROP CONSTRAINT environments_pkey")
    session = await open_session(postgres_database.url, "node-1", BUDGETS)
    other = await asyncpg.connect(postgres_database.url)
    tried = 0

    async def planned(statements: tuple[str, ...]) -> None:
        nonlocal tried
        if (tried := tried + 1) == 2:  # the first attempt takes all at once, and no INSERT without the key
            await other.execute(f"BEGIN; {meanwhile}; {'' if 'LOCK' in meanwhile else 'COMMIT'}")
        await explain(session, BUDGETS, statements)

    found = await try_statements(await inspect(session), planned)
    assert tried == 2
    assert not found.refusals
    await other.close()
    await session.close()


async def test_m26_requests_meet_503_while_the_column_is_away_and_nothing_else(
    postgres_database: PostgresDatabase,
) -> None:
    """A person drops it and adds it again while callers write and read all the time."""
    postgres_database.run_sql(postgres_sql("p_dmig"))
    async with serving(postgres_database.url) as service:
        await service.until_state("ready", steps=True)
        load = Load(service)
        async with anyio.create_task_group() as group:
            load.start(group)
            await load.more_answers()
            await change(postgres_database, 'ALTER TABLE environments DROP COLUMN "deletedAt"')
            await service.until_state("degraded", "lost")
            await load.more_answers()
            assert sum("has disappeared" in line for line in service.lines) == 1
            await change(postgres_database, 'ALTER TABLE environments ADD COLUMN "deletedAt" TIMESTAMPTZ')
            await service.until_state("ready")
            before = len(load.errors)
            await load.more_answers()
            assert len(load.errors) == before
            group.cancel_scope.cancel()
        await service.until_state("ready", steps=True)
    assert load.errors
    assert {(error.code, error.type, error.retryable) for error in load.errors} == {
        (503, "SOFT_DELETE_UNAVAILABLE", True)
    }
    assert alters(postgres_database) == 0


async def test_m27_a_timestamp_becomes_a_timestamptz_under_a_running_service_and_no_caller_notices(
    postgres_database: PostgresDatabase,
) -> None:
    postgres_database.run_sql(postgres_sql("p_man"))
    async with serving(postgres_database.url) as service:
        await service.until_state("ready", steps=True)
        [before] = await service.ask("listDeleted")
        load = Load(service)
        async with anyio.create_task_group() as group:
            load.start(group)
            await load.more_answers()
            for kind in ("TIMESTAMPTZ", "TIMESTAMP", "TIMESTAMPTZ"):
                await change(
                    postgres_database,
                    f"SET TimeZone = 'UTC'; ALTER TABLE environments ALTER COLUMN \"deletedAt\" TYPE {kind}",
                )
                await load.more_answers()
            group.cancel_scope.cancel()
        deleted = {record["id"]: record["deletedAt"] for record in await service.ask("listDeleted")}
        assert deleted[before["id"]] == before["deletedAt"]
        ages = """SELECT count(*) FROM environments WHERE "deletedAt" > now() + interval '1 minute'"""
        assert postgres_database.run_sql(ages) == "0"
    assert load.errors == []


async def test_m29_after_every_action_no_idle_connection_holds_a_lock_of_the_table(
    postgres_database: PostgresDatabase,
) -> None:
    """Such a lock, as a kept prepared statement has it, would stop everybody's migrations for ever."""
    postgres_database.run_sql(postgres_sql("p_dmig"))
    async with serving(postgres_database.url) as service:
        await service.until_state("ready", steps=True)
        load = Load(service)
        async with anyio.create_task_group() as group:
            load.start(group)
            await load.more_answers()
            group.cancel_scope.cancel()
        locks = """SELECT count(*) FROM pg_locks WHERE relation IN (SELECT oid FROM pg_class WHERE relname LIKE 'env%')
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
        # What the cancelled calls had begun is taken back first.
        busy = "SELECT count(*) FROM pg_stat_activity WHERE state <> 'idle' AND datname = current_database()"
        await until(lambda: postgres_database.run_sql(busy) == "1")
        assert postgres_database.run_sql(locks) == "0"
        # Whoever needs the whole table gets it at once.
        postgres_database.run_sql("SET lock_timeout = '2s'; ALTER TABLE environments ALTER COLUMN id SET NOT NULL")


async def change(database: PostgresDatabase, statement: str) -> None:
    """In a thread, since the callers have transactions that must go on for the statement to get its lock."""
    await anyio.to_thread.run_sync(database.run_sql, statement)


class Load:
    """Callers of every action, each with environments of its own, who go on whatever they are told."""

    def __init__(self, service: Serving) -> None:
        self._service = service
        self._answers = [0] * 6
        self.errors: list[MoleculerError] = []

    def start(self, group: TaskGroup) -> None:
        for number in range(len(self._answers)):
            group.start_soon(self._call, number)

    async def more_answers(self) -> None:
        """Return when each caller has had some more."""
        before = list(self._answers)
        await until(lambda: all(now > b + 20 for now, b in zip(self._answers, before, strict=True)))

    async def _call(self, number: int) -> None:
        for round_number in itertools.count():
            uuid = f"{number}-{round_number}"
            document = {"uuid": uuid, "changed": True}
            record = await self._ask(number, "create", environment={"uuid": uuid}) or {"hash": None}
            await self._ask(number, "update", uuid=uuid, environment=document, ifHash=record["hash"])
            for action in ("remove", "restore", "remove"):
                await self._ask(number, action, uuid=uuid)
            await self._ask(number, "listDeleted", limit=5)
            await self._ask(number, "list", limit=5)
            await self._ask(number, "stats")

    async def _ask(self, number: int, action: str, **params: Any) -> Any:
        await anyio.lowlevel.checkpoint()  # the one place where it may be cancelled
        try:
            # Cut off, a statement would be cancelled, and leave its lock for a moment.
            with anyio.CancelScope(shield=True):
                return await self._service.ask(action, **params)
        except MoleculerError as error:
            if error.code != 404:  # of an environment whose create was refused
                self.errors.append(error)
        finally:
            self._answers[number] += 1
