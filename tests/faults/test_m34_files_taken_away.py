"""Scenario 34: a SQLite file that is moved, deleted or replaced under a running service, which SQLite itself would go
on writing to: nothing is acknowledged that is gone, and the new file stays as it is."""

import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from services.environments_store.database.sqlite import SqliteDatabase
from services.environments_store.database.sqlite_place import FilePlace
from services.environments_store.defaults import DatabaseSettings, MigrationBudgets
from services.environments_store.errors import DatabaseUnavailableError
from tests.support.served import Serving, serving
from tests.support.shapes import make_sqlite
from tests.support.sqlite_files import dump, query, url

pytestmark = pytest.mark.anyio

BUDGETS = MigrationBudgets(reinspect_s=0.1, reconnect_min_s=0.05, reconnect_max_s=0.1)
CALLS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("create", {"environment": {"uuid": "late"}}),
    ("remove", {"uuid": "early"}),
    ("get", {"uuid": "early"}),
    ("list", {}),
    ("listDeleted", {}),
    ("stats", {}),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "environments.sqlite"


@pytest.fixture
async def service(path: Path) -> AsyncIterator[Serving]:
    async with serving(url(path), budgets=BUDGETS) as service:
        await service.ask("create", environment={"uuid": "early"})
        yield service


def delete(path: Path) -> None:
    path.unlink()


def move(path: Path) -> None:
    path.rename(path.with_name("moved.sqlite"))


def replace(path: Path) -> None:
    other = path.with_name("other.sqlite")
    make_sqlite("s_d2", other)
    other.rename(path)


def is_there(path: Path) -> bool:
    return path.exists()


def content(path: Path) -> bytes:
    return path.read_bytes()


@pytest.mark.parametrize("take_away", [delete, move, replace])
async def test_m34_a_file_that_is_taken_away_is_told_at_once_and_nothing_is_acknowledged(
    take_away: Callable[[Path], None], service: Serving, path: Path
) -> None:
    take_away(path)
    for action, params in CALLS:
        error = await service.failure(action, **params)
        assert (error.code, error.type, error.retryable) == (503, "DATABASE_UNAVAILABLE", True), action
        assert str(path) not in str(error)
    why = "replaced by another file" if take_away is replace else "is gone"
    assert any(f"'{path}'" in line and why in line for line in service.lines)
    answer = await service.until_state("degraded", "unavailable")
    assert str(path) not in answer["error"]


async def test_m34_no_empty_file_is_made_in_the_place_of_one_that_is_gone(service: Serving, path: Path) -> None:
    move(path)
    await service.until_state("degraded", "unavailable")
    assert not is_there(path)
    assert (await service.failure("list")).code == 503  # not the empty list of a new file


async def test_m34_a_file_that_is_put_back_is_served_on(service: Serving, path: Path) -> None:
    move(path)
    await service.until_state("degraded", "unavailable")
    path.with_name("moved.sqlite").rename(path)
    assert [record["id"] for record in await service.ask("list")] == ["early"]
    await service.ask("create", environment={"uuid": "late"})
    await service.until_state("ready")
    assert query(path, "SELECT id FROM environments ORDER BY id") == [("early",), ("late",)]


def test_m34_a_folder_that_nobody_can_look_into_tells_nothing_of_the_file(path: Path) -> None:
    path.touch()
    folder = path.parent / "link"
    folder.symlink_to(path.parent)
    place = FilePlace(folder / path.name)
    folder.unlink()
    folder.symlink_to(folder)  # unlike missing rights, a loop keeps everybody out
    place.check()
    with pytest.raises(OSError, match="symbolic links"):
        FilePlace(folder / path.name)


async def test_m34_the_new_file_stays_as_it_is_though_the_log_of_the_old_one_lies_beside_it(path: Path) -> None:
    async with serving(url(path), budgets=BUDGETS) as service:
        await service.ask("create", environment={"uuid": "early"})
        replace(path)
        before = content(path)
        await service.until_state("degraded", "unavailable")
        await service.failure("create", environment={"uuid": "late"})
        await service.failure("list")
    assert content(path) == before
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink()
    assert "late" not in dump(path)


async def test_m34_a_transaction_whose_file_goes_away_is_not_acknowledged(path: Path) -> None:
    database = SqliteDatabase(path, DatabaseSettings())
    await database.open()
    await database.execute("CREATE TABLE items (id TEXT PRIMARY KEY)")

    async def write() -> None:
        async with database.transaction() as transaction:
            await transaction.execute("INSERT INTO items (id) VALUES ($1)", "one")
            await anyio.to_thread.run_sync(move, path)

    try:
        with pytest.raises(DatabaseUnavailableError, match="is gone"):
            await write()
    finally:
        await database.close()
    moved = sqlite3.connect(path.with_name("moved.sqlite"))
    try:
        assert "one" not in "\n".join(moved.iterdump())
    finally:
        moved.close()
