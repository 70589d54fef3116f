"""A generation of the original without `deletedAt` starts after us: it drops the column, and the trash is live."""

from pathlib import Path

import pytest

from services.environments_store.schema.messages import ADDED, ADDING, EXISTS
from services.environments_store.schema.migrator import migrate_once
from tests.support.migrations import BUDGETS, alters
from tests.support.original import Generation, Originals
from tests.support.postgres import PostgresDatabase
from tests.support.served import Serving, serving
from tests.support.shapes import Lines, make_sqlite, postgres_sql

pytestmark = pytest.mark.anyio

PREFIX = "c0ffee00-0000-4000-8000-00000000000"
LIVE = {f"{PREFIX}{number}" for number in (1, 3, 4)}
DELETED = f"{PREFIX}2"
LOST = "has disappeared"
BACK = "The deletedAt column is back"


@pytest.mark.parametrize("generation", ["A", "B"])
async def test_m25_an_old_generation_drops_the_column_of_postgresql_and_calls_go_on(
    generation: Generation, postgres_database: PostgresDatabase, original_process: Originals
) -> None:
    postgres_database.run_sql(postgres_sql("p_dmig"))
    async with serving(postgres_database.url) as service:
        await assert_lost_and_healed(service, postgres_database.url, generation, original_process)
    assert alters(postgres_database) == 0


@pytest.mark.parametrize("generation", ["B", "C"])
async def test_m25_an_old_generation_rebuilds_the_file_without_the_column_and_calls_go_on(
    generation: Generation, path: Path, original_process: Originals
) -> None:
    make_sqlite("s_d2", path)
    url = f"sqlite:///{path}"
    async with serving(url) as service:
        await assert_lost_and_healed(service, url, generation, original_process)


async def test_m25_the_next_start_adds_the_column_again_and_says_so(
    postgres_database: PostgresDatabase, original_process: Originals, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_dmig"))
    await migrate_once(postgres_database.url, logger=lines.logger, budgets=BUDGETS)
    await (await original_process.open("B", postgres_database.url)).start()
    status = await migrate_once(postgres_database.url, logger=lines.logger, budgets=BUDGETS)
    assert status.state == "ready"
    assert lines.guide_lines() == [EXISTS, ADDING, ADDED]


async def assert_lost_and_healed(service: Serving, url: str, generation: Generation, process: Originals) -> None:
    await service.until_state("ready", steps=True)
    assert [record["id"] for record in await service.ask("listDeleted")] == [DELETED]
    old = await process.open(generation, url)
    await old.start()
    assert any("deletedAt" not in row for row in (await old.find_all()).values())

    # The first call that needs the column meets its loss, and is refused; the state follows without a restart.
    error = await service.failure("remove", uuid=f"{PREFIX}1")
    assert (error.code, error.type, error.retryable) == (503, "SOFT_DELETE_UNAVAILABLE", True)
    answer = await service.until_state("degraded", "lost")
    assert LOST in answer["error"]
    assert sum(LOST in line for line in service.lines) == 1

    # Degraded: every row counts as live, also those that were in the trash, and nothing is deleted instead.
    assert {record["id"] for record in await service.ask("list", fields=["id"])} == LIVE | {DELETED}
    await service.ask("create", environment={"uuid": "new", "name": "made in between"})
    await service.ask("update", uuid="new", environment={"uuid": "new", "name": "changed in between"})
    for action in ("remove", "restore", "permanentDelete"):
        assert (await service.failure(action, uuid=DELETED)).type == "SOFT_DELETE_UNAVAILABLE"
    assert (await service.failure("listDeleted")).type == "SOFT_DELETE_UNAVAILABLE"
    assert (await service.ask("stats"))["total"] == 5
    assert (await old.find_all())["new"]["environment"] == {"uuid": "new", "name": "changed in between"}
    assert not any(line in (ADDING, ADDED) for line in service.lines)
    assert (await service.ask("schema"))["reason"] == "lost"

    # The original of the newest generation is one of those who bring it back.
    newest = await process.open("D", url)
    await newest.start()
    await service.until_state("ready")
    assert sum(BACK in line for line in service.lines) == 1
    assert sum(LOST in line for line in service.lines) == 1
    assert service.guide_lines() == [EXISTS, EXISTS]
    await service.ask("remove", uuid="new")
    assert [record["id"] for record in await service.ask("listDeleted")] == ["new"]
    assert {record["id"] for record in await service.ask("list", fields=["id"])} == LIVE | {DELETED}
