"""The newest original starts while we migrate and while we serve: both end well, and no answer of ours is untrue."""

import itertools
import sqlite3
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from broker import MoleculerError
from services.environments_store.schema.messages import ADDED, ADDING, EXISTS
from services.environments_store.schema.migrator import migrate_once
from tests.support.migrations import (
    ADVISORY_LOCKS,
    BUDGETS,
    INDEX_STATE,
    VALID_INDEX,
    child,
    migrator,
    old_transaction,
)
from tests.support.original import Original, OriginalError, Originals
from tests.support.postgres import PostgresDatabase
from tests.support.processes import DEADLINE_S
from tests.support.served import Serving, serving
from tests.support.shapes import Lines, make_sqlite, postgres_sql, rows_of_postgres, rows_of_sqlite, until

pytestmark = pytest.mark.anyio

STARTS = 4
each_time = pytest.mark.parametrize("rounds", [3, pytest.param(12, marks=pytest.mark.long)])
PATIENT = msgspec.structs.replace(BUDGETS, lock_timeouts_ms=(120_000,), statement_timeout_s=120)
"""Our ALTER waits in the server until it gets the table, and does not pause in between."""
WAITING = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    " AND application_name {} 'environments-store%'"
)
OURS_WAIT, ORIGINAL_WAITS = WAITING.format("LIKE"), WAITING.format("NOT LIKE")
TAKEN = ("already exists", "Validation error")
"""What Sequelize tells of a column or an index that somebody else made in the same moment."""
PREFIX = "c0ffee00-0000-4000-8000-00000000000"
COLUMNS = "id, environment, environmentUuid, timestamp, createdAt, updatedAt, deletedAt"
LIVE = {f"{PREFIX}{number}" for number in (1, 3, 4)}


@each_time
async def test_m24_originals_start_while_we_migrate(
    rounds: int, postgres_database: PostgresDatabase, original_process: Originals, lines: Lines
) -> None:
    for number in range(rounds):
        postgres_database.run_sql(f"DROP TABLE IF EXISTS environments, metadata; {postgres_sql('p_c')}")
        before = rows_of_postgres(postgres_database.run_sql)
        starts = [await original_process.open("D", postgres_database.url) for _ in range(2)]
        outcomes: list[dict[str, Any] | None] = []
        ours = [migrator(postgres_database.url, lines, node_id=f"node-{number}-{one}") for one in range(2)]

        async def begin(
            original: Original,
            delay_s: float = number * 0.01,
            outcomes: list[dict[str, Any] | None] = outcomes,
        ) -> None:
            await anyio.sleep(delay_s)  # another moment of our migration in each round
            outcomes.append(await original.start())

        async with anyio.create_task_group() as group:
            for one in ours:
                group.start_soon(one.prepare)
            for original in starts:
                group.start_soon(begin, original)
        for one in ours:
            await one.complete()

        # The original tells of a column or an index that came before its own, and goes on as with its own.
        failures = [outcome["failed"] for outcome in outcomes if outcome and "failed" in outcome]
        assert [failure for failure in failures if not any(text in failure for text in TAKEN)] == []
        assert [one.status.state for one in ours] == ["ready", "ready"]
        assert postgres_database.run_sql(INDEX_STATE) == VALID_INDEX
        assert rows_of_postgres(postgres_database.run_sql) == before
        assert postgres_database.run_sql(ADVISORY_LOCKS) == "0"
        for original in starts:
            assert await original.start() == {"added": False, "indexed": False}
            assert {uuid for uuid, row in (await original.find_all()).items() if row["deletedAt"] is None} >= LIVE
            await original.do("close")


async def test_m24_an_original_that_is_first_spares_us_the_column(
    postgres_database: PostgresDatabase, original_process: Originals, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    original = await original_process.open("D", postgres_database.url)
    outcomes = []

    async def start() -> None:
        outcomes.append(await original.start())

    async with old_transaction(postgres_database.url) as transaction, anyio.create_task_group() as group:
        group.start_soon(start)
        await until(lambda: postgres_database.run_sql(ORIGINAL_WAITS) == "1")
        one = migrator(postgres_database.url, lines, PATIENT)
        group.start_soon(one.prepare)
        await until(lambda: postgres_database.run_sql(OURS_WAIT) == "1")
        await transaction.rollback()
    assert outcomes == [{"added": True, "indexed": True}]
    await one.complete()
    assert one.status.state == "ready"
    # Whose ALTER it was does not show in ours, which is quiet about a column that is there by then.
    assert lines.guide_lines() == [ADDING, ADDED]
    assert postgres_database.run_sql(INDEX_STATE) == VALID_INDEX


async def test_m24_an_original_that_is_second_goes_on_with_our_column(
    postgres_database: PostgresDatabase, original_process: Originals
) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    original = await original_process.open("D", postgres_database.url)
    outcomes = []

    async def start() -> None:
        outcomes.append(await original.start())

    async with old_transaction(postgres_database.url) as transaction, anyio.create_task_group() as group:
        with child(postgres_database.url) as ours:
            await until(lambda: postgres_database.run_sql(OURS_WAIT) == "1")
            group.start_soon(start)
            await until(lambda: postgres_database.run_sql(ORIGINAL_WAITS) == "1")
            await transaction.rollback()
            assert await anyio.to_thread.run_sync(ours.wait) == 0
    assert [(outcome or {})["added"] for outcome in outcomes] == [False]
    assert postgres_database.run_sql(INDEX_STATE) == VALID_INDEX
    await original.save(id="U", environment={"uuid": "U"})
    assert await original.do("remove", id="U") == 1


@each_time
async def test_m24_an_original_rebuilds_a_file_while_we_migrate_it(
    rounds: int, tmp_path: Path, original_process: Originals, lines: Lines
) -> None:
    for number in range(rounds):
        path = tmp_path / f"{number}.sqlite"
        make_sqlite("s_b2", path)
        before = rows_of_sqlite(path)
        original = await original_process.open("D", f"sqlite:///{path}")
        failures: list[str] = []

        async def begin(original: Original = original, failures: list[str] = failures) -> None:
            try:
                await original.start()
            except OriginalError as error:
                failures.append(str(error))

        async with anyio.create_task_group() as group:
            group.start_soon(begin)
            await anyio.sleep(number * 0.02)  # another moment of its rebuild in each round
            status = await migrate_once(f"sqlite:///{path}", logger=lines.logger, budgets=BUDGETS)
        assert status.state == "ready"
        # It looks for the column and adds it in two steps: ours may come in between, and its next start finds it.
        assert all("duplicate column name" in failure for failure in failures)
        await original.start()
        assert rows_of_sqlite(path) == before
        assert set(await original.find_all(paranoid=True)) == LIVE
        assert tables(path) == {"environments", "metadata"}


async def test_m24_an_original_starts_while_we_serve(
    postgres_database: PostgresDatabase, original_process: Originals
) -> None:
    postgres_database.run_sql(postgres_sql("p_dmig"))
    async with serving(postgres_database.url) as service:
        callers = await beside_starts(service, postgres_database.url, original_process)
        assert [error for caller in callers for error in caller.errors] == []
        assert service.guide_lines() == [EXISTS]


async def test_m24_an_original_rebuilds_the_file_while_we_serve_and_no_answer_is_untrue(
    path: Path, original_process: Originals
) -> None:
    make_sqlite("s_d2", path)
    async with serving(f"sqlite:///{path}") as service:
        callers = await beside_starts(service, f"sqlite:///{path}", original_process)
        # While the table is away callers are told to try again, and nothing else.
        for error in (error for caller in callers for error in caller.errors):
            assert (error.code, error.retryable) == (503, True)
        await service.until_state("ready", steps=True)
        assert service.guide_lines() == [EXISTS]
        assert not any("has disappeared" in line for line in service.lines)
    assert tables(path) == {"environments", "metadata"}


async def test_m24_beside_a_copy_nothing_is_written_and_no_empty_answer_counts(path: Path) -> None:
    make_sqlite("s_d2", path)
    patient = msgspec.structs.replace(BUDGETS, rebuild_recheck_s=3600)  # we do not take it for a killed one
    async with serving(f"sqlite:///{path}", budgets=patient) as service:
        live, deleted = await service.ask("list"), await service.ask("listDeleted")
        definition = await begin_rebuild(path)
        await assert_refused(service, WRITES)
        assert (await service.ask("list"), await service.ask("listDeleted")) == (live, deleted)
        assert (await service.failure("get", uuid="nobody")).code == 404
        await script(path, "DROP TABLE environments")
        await assert_refused(service, WRITES + READS)
        await script(path, definition)
        await assert_refused(service, WRITES + READS)
        assert "environments_backup" not in str(await service.failure("get", uuid=f"{PREFIX}1"))
        assert any("environments_backup" in line for line in service.lines)
        await script(path, f"INSERT INTO environments SELECT {COLUMNS} FROM environments_backup")
        assert await service.ask("list") == live
        await script(path, "DROP TABLE environments_backup")
        assert (await service.ask("list"), await service.ask("listDeleted")) == (live, deleted)
        assert (await service.ask("create", environment={"uuid": "U"}))["id"] == "U"
        assert (await service.ask("schema"))["state"] == "ready"


async def test_m31_what_an_original_that_is_killed_beside_us_leaves_is_cleared_up_without_a_restart(path: Path) -> None:
    make_sqlite("s_d2", path)
    quick = msgspec.structs.replace(BUDGETS, rebuild_recheck_s=0.3)
    async with serving(f"sqlite:///{path}", budgets=quick) as service:
        live, deleted = await service.ask("list"), await service.ask("listDeleted")
        definition = await begin_rebuild(path)
        await script(path, f"DROP TABLE environments; {definition};")
        assert len(await service.insist("create", environment={"uuid": "U"})) > 0
        await service.ask("permanentDelete", uuid="U", force=True)
        assert (await service.ask("list"), await service.ask("listDeleted")) == (live, deleted)
        await service.until_logged("its rows were restored")
        assert service.guide_lines() == [EXISTS]
        await service.until_state("ready", steps=True)
    assert len(tables(path)) == 3


async def begin_rebuild(path: Path) -> str:
    """The first steps of the original's rebuild; returns the statement that makes the table anew."""
    connection = sqlite3.connect(path)
    try:
        definition = str(connection.execute("SELECT sql FROM sqlite_master WHERE name = 'environments'").fetchone()[0])
    finally:
        connection.close()
    copy = definition.replace("environments", "environments_backup", 1)
    await script(path, f"{copy}; INSERT INTO environments_backup SELECT {COLUMNS} FROM environments;")
    return definition


WRITES: list[tuple[str, dict[str, Any]]] = [
    ("create", {"environment": {"uuid": "U"}}),
    ("update", {"uuid": f"{PREFIX}1", "environment": {"uuid": f"{PREFIX}1"}}),
    ("update", {"uuid": f"{PREFIX}1", "environment": {"uuid": f"{PREFIX}1"}, "ifHash": "none"}),
    ("remove", {"uuid": f"{PREFIX}1"}),
    ("restore", {"uuid": f"{PREFIX}2"}),
    ("permanentDelete", {"uuid": f"{PREFIX}2"}),
    ("purge", {}),
]
READS: list[tuple[str, dict[str, Any]]] = [
    *(("get", {"uuid": uuid}) for uuid in (f"{PREFIX}1", "nobody")),
    *(("list", params) for params in ({}, {"limit": 1}, {"fields": ["id"]}, {"after": f"{PREFIX}1"})),
    *((action, {}) for action in ("listDeleted", "stats")),
]


async def assert_refused(service: Serving, calls: list[tuple[str, dict[str, Any]]]) -> None:
    for action, params in calls:
        error = await service.failure(action, **params)
        assert (error.code, error.retryable) == (503, True), (action, error)
    if calls != WRITES:
        with pytest.raises(MoleculerError) as caught:
            assert [chunk async for chunk in await service.ask("export")] == []
        assert (caught.value.code, caught.value.retryable) == (503, True)


async def script(path: Path, statements: str) -> None:
    """In a thread: the service, which may hold the file at this moment, lives in the loop of the test."""

    def run() -> None:
        connection = sqlite3.connect(path, timeout=DEADLINE_S)
        try:
            connection.executescript(statements)
        finally:
            connection.close()

    await anyio.to_thread.run_sync(run)


async def beside_starts(service: Serving, url: str, process: Originals) -> list["Caller"]:
    """Callers at work while an original starts several times; everything they were told has to be so at the end."""
    await service.until_state("ready", steps=True)
    callers = [Caller(service, number) for number in range(4)]
    async with anyio.create_task_group() as group:
        for caller in callers:
            group.start_soon(caller.run)
        for _ in range(STARTS):
            original = await process.open("D", url)
            outcome = await original.start() or {}
            assert not outcome.get("added")
            assert any(text in outcome.get("failed", text) for text in TAKEN)
            assert set(await original.find_all(paranoid=True)) >= LIVE
            await original.do("close")
            for caller in callers:
                await caller.until_answered(3)
        for caller in callers:
            caller.stopping = True
    for caller in callers:
        await caller.check()
    return callers


class Caller:
    """Creates, changes, removes, restores and reads environments of its own, and holds each answer against the last."""

    def __init__(self, service: Serving, number: int) -> None:
        self._service = service
        self._number = number
        self._known: dict[str, tuple[bool, int]] = {}
        self.stopping = False
        self.answers = 0
        self.errors: list[MoleculerError] = []

    async def run(self) -> None:
        for round_number in itertools.count():
            if self.stopping:
                return
            uuid = f"{self._number}-{round_number}"
            await self._insist("create", environment={"uuid": uuid, "version": 1})
            self._known[uuid] = (True, 1)
            await self._insist("update", uuid=uuid, environment={"uuid": uuid, "version": 2})
            self._known[uuid] = (True, 2)
            await self._insist("remove", uuid=uuid)
            self._known[uuid] = (False, 2)
            if round_number % 2:
                await self._insist("restore", uuid=uuid)
                self._known[uuid] = (True, 2)
            listed = {record["id"] for record in await self._insist("list", fields=["id"])}
            assert listed >= LIVE | {uuid for uuid, (live, _) in self._known.items() if live}
            assert not listed & {uuid for uuid, (live, _) in self._known.items() if not live}
            assert (await self._insist("stats"))["total"] >= len(LIVE) + len(self._known)

    async def until_answered(self, more: int) -> None:
        wanted = self.answers + more
        await until(lambda: self.answers >= wanted)

    async def check(self) -> None:
        """What was answered is what is there."""
        for action, wanted in (("list", True), ("listDeleted", False)):
            found = {record["id"]: record["environment"]["version"] for record in await self._own(action)}
            assert found == {uuid: version for uuid, (live, version) in self._known.items() if live == wanted}

    async def _own(self, action: str) -> list[dict[str, Any]]:
        start = f"{self._number}-"
        return [record for record in await self._service.ask(action) if record["id"].startswith(start)]

    async def _insist(self, action: str, **params: Any) -> Any:
        while True:
            try:
                answer = await self._service.ask(action, **params)
                self.answers += 1
                return answer
            except MoleculerError as error:
                self.errors.append(error)
                if not error.retryable:
                    raise
                await anyio.sleep(0.01)


def tables(path: Path) -> set[str]:
    connection = sqlite3.connect(path)
    try:
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        return {row[0] for row in rows}
    finally:
        connection.close()
