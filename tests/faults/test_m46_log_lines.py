"""Scenario 46: the guide's four log lines, as they stand there, each in its case and not twice.

People look for them, and alerts do: 🔄 once, before the first attempt; ✅ added after the column was seen to be there;
✅ exists at every start that finds it; ❌ when the start goes on without it, and again only for another reason.
"""

import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import asyncpg
import pytest

from services.environments_store.defaults import DatabaseSettings, MigrationBudgets
from services.environments_store.schema.inspection import Inspection
from services.environments_store.schema.reporter import StatusReporter
from tests.support.postgres import PostgresDatabase
from tests.support.processes import start_python
from tests.support.served import Serving, serving
from tests.support.shapes import make_sqlite, postgres_sql
from tests.support.sqlite_files import query, url
from tests.support.starters import starters
from tests.support.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])]

ADDING = "🔄 Adding deletedAt column to environments table"
ADDED = "✅ deletedAt column added successfully"
EXISTS = "✅ deletedAt column already exists"
FAILED = "❌ Failed to add deletedAt column"
SHAPES = {"sqlite": ("s_b2", "s_d2", "s_none"), "postgresql": ("p_c", "p_dmig", "p_none")}
BUDGETS = MigrationBudgets(
    start_s=0.5, reinspect_s=0.1, sleep_patient_s=0.1, sleep_max_s=0.1, lock_timeouts_ms=(20,), sqlite_busy_ms=20
)
AS_VIEW = "CREATE VIEW environments AS SELECT * FROM kept"
IMPATIENT = DatabaseSettings(sqlite_busy_timeout_s=0.1, sqlite_wal_timeout_s=0.1)


class Holder(Protocol):
    """Somebody in a transaction that keeps the column from being added."""

    async def run(self, statement: str) -> None: ...
    async def end(self) -> None: ...


@dataclass
class Place:
    """A database of one dialect. `read_only_url` leads to it with the right to read alone; `person` is its owner."""

    url: str
    read_only_url: str
    person: Callable[[str], object]
    hold: Callable[[], Awaitable[Holder]]


@pytest.fixture
def place(dialect: str, request: pytest.FixtureRequest, path: Path) -> Place:
    if dialect == "sqlite":
        return Place(url(path), f"{url(path)}?mode=ro", lambda text: query(path, text), lambda: FileHolder.begin(path))
    database: PostgresDatabase = request.getfixturevalue("postgres_database")
    reader = database.create_role("reader", options="SUPERUSER")
    database.run_sql(f'ALTER ROLE "{database.role_name(reader)}" SET default_transaction_read_only = on')
    return Place(database.url, reader, database.run_sql, lambda: TableHolder.begin(database.url))


class Looks:
    """Counts how often the schema was looked at."""

    def __init__(self) -> None:
        self.count = 0

    async def more(self) -> None:
        """Until there were some more: an attempt is made at each when there is something to try."""
        seen = self.count + 5
        await eventually(lambda: self.count >= seen, "more looks at the schema")


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    counter, found = Looks(), StatusReporter.found

    def counted(reporter: StatusReporter, inspection: Inspection) -> None:
        counter.count += 1
        found(reporter, inspection)

    monkeypatch.setattr(StatusReporter, "found", counted)
    return counter


class FileHolder:
    """Writes, without an end."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    async def begin(cls, path: Path) -> Holder:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        return cls(connection)

    async def run(self, statement: str) -> None:
        self._connection.execute(statement)

    async def end(self) -> None:
        self._connection.close()


class TableHolder:
    """Has read the table in a transaction that is still open."""

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        self._connection = connection

    @classmethod
    async def begin(cls, address: str) -> Holder:
        connection = await asyncpg.connect(address)
        await connection.execute("BEGIN; SELECT count(*) FROM environments")
        return cls(connection)

    async def run(self, statement: str) -> None:
        await self._connection.execute(statement)

    async def end(self) -> None:
        await self._connection.close()


def lay(dialect: str, place: Place, path: Path, which: int = 0) -> None:
    """One of the shapes: without the column, with it, and an empty database."""
    shape = SHAPES[dialect][which]
    if dialect == "sqlite":
        make_sqlite(shape, path)
    else:
        place.person(postgres_sql(shape))


@asynccontextmanager
async def started(place: Place, lines: list[str], address: str = "") -> AsyncIterator[Serving]:
    """The service, which has said these lines by the time it serves."""
    async with serving(address or place.url, budgets=BUDGETS, settings=IMPATIENT) as service:
        assert service.guide_lines() == lines
        yield service


async def test_m46_the_first_start_adds_the_column_and_each_later_one_finds_it(
    dialect: str, place: Place, path: Path
) -> None:
    lay(dialect, place, path)
    for lines in ([ADDING, ADDED], [EXISTS], [EXISTS]):
        async with started(place, lines) as service:
            await service.until_state("ready", steps=True)
            await service.ask("listDeleted")
            assert service.guide_lines() == lines


@pytest.mark.parametrize("which", [1, 2])
async def test_m46_a_column_that_was_there_or_comes_with_a_new_table_exists(
    dialect: str, which: int, place: Place, path: Path
) -> None:
    lay(dialect, place, path, which)
    async with started(place, [EXISTS]) as service:
        await service.until_state("ready", steps=True)
        assert service.guide_lines() == [EXISTS]


async def test_m46_of_many_starters_one_has_added_it_and_the_others_find_it(
    dialect: str, place: Place, path: Path
) -> None:
    lay(dialect, place, path)
    names = [f"node-{number}" for number in range(6)]
    async with starters() as crowd:
        for name in names:
            await crowd.start(name, place.url)
        said = [(await crowd.ended(name)).guide_lines for name in names]
    assert said.count([ADDING, ADDED]) == 1
    # On SQLite whoever waits for the file has begun his own attempt by then.
    others = [[EXISTS], [ADDING, EXISTS]] if dialect == "sqlite" else [[EXISTS]]
    assert all(lines in others for lines in said if lines != [ADDING, ADDED])


async def test_m46_many_attempts_are_announced_once_and_their_failure_is_told_once_for_each_reason(
    dialect: str, place: Place, path: Path, looks: Looks
) -> None:
    lay(dialect, place, path)
    holder = await place.hold()
    try:
        async with started(place, [ADDING, FAILED]) as service:
            # The reason follows, on a line of its own.
            reason = service.lines[service.lines.index(FAILED) + 1]
            assert ("is locked by another process" if dialect == "sqlite" else "AccessShareLock") in reason
            await looks.more()
            assert service.guide_lines() == [ADDING, FAILED]

            for statement in ("ALTER TABLE environments RENAME TO kept", AS_VIEW, "COMMIT"):
                await holder.run(statement)
            await service.until_state("degraded", "unsupported")
            await eventually(lambda: service.guide_lines() == [ADDING, FAILED, FAILED], "the second ❌")
            assert "a view" in service.lines[len(service.lines) - service.lines[::-1].index(FAILED)]
            await looks.more()

            for statement in ("DROP VIEW environments", "ALTER TABLE kept RENAME TO environments"):
                place.person(statement)
            await service.until_state("ready", steps=True)
            assert service.guide_lines() == [ADDING, FAILED, FAILED, ADDED]
            assert not any("completed" in line for line in service.lines)
    finally:
        await holder.end()


async def test_m46_without_the_right_there_is_no_attempt_and_a_column_that_a_person_adds_exists(
    dialect: str, place: Place, path: Path, looks: Looks
) -> None:
    lay(dialect, place, path)
    async with started(place, [FAILED], place.read_only_url) as service:
        await looks.more()
        assert service.guide_lines() == [FAILED]
        kind = "DATETIME" if dialect == "sqlite" else "TIMESTAMP"
        place.person(f'ALTER TABLE environments ADD COLUMN "deletedAt" {kind} NULL DEFAULT NULL')
        await eventually(lambda: service.guide_lines() == [FAILED, EXISTS], "the column")
        await looks.more()
        assert service.guide_lines() == [FAILED, EXISTS]


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_m46_each_line_stands_alone_at_the_end_of_a_line_of_the_log(
    dialect: str, log_format: str, place: Place, path: Path
) -> None:
    lay(dialect, place, path)
    for expected in ([ADDING, ADDED], [EXISTS]):
        environment = {"DATABASE_URL": place.url, "LOG_FORMAT": log_format}
        async with start_python(
            "-m", "services.environments_store", "migrate", "run", environment=environment
        ) as process:
            assert await process.wait() == 0
        if log_format == "json":
            logged = [json.loads(line)["message"] for line in process.stderr]
            assert [line for line in logged if "deletedAt column" in line and "index" not in line] == expected
        else:
            logged = [line for line in process.stderr if "deletedAt column" in line and "index" not in line]
            assert len(logged) == len(expected)
            assert all(line.endswith(f": {text}") for line, text in zip(logged, expected, strict=True))
