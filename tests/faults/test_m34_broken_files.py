"""Scenario 34: SQLite files that cannot be written, opened or read: each is told in its own words, with what to do."""

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.environments_store.defaults import MigrationBudgets
from services.environments_store.errors import ConfigError, DatabaseError, DatabaseUnavailableError
from services.environments_store.schema.check import check
from services.environments_store.schema.messages import ADDED, ADDING, EXISTS, FAILED
from services.environments_store.schema.migrator import migrate_once
from tests.support.served import serving
from tests.support.shapes import Lines, make_sqlite
from tests.support.small_disk import may_mount, small_folder
from tests.support.sqlite_files import dump, query, url
from tests.support.starters import End, starters

pytestmark = pytest.mark.anyio

BUDGETS = MigrationBudgets(start_s=20, reinspect_s=0.1, sleep_max_s=0.2, sqlite_busy_ms=20)
LIVE = "c0ffee00-0000-4000-8000-000000000001"
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("list", {"fields": ["id"]}),
    ("create", {"environment": {"uuid": "U", "text": "x" * 100_000}}),
    ("remove", {"uuid": LIVE}),
]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder whose mode a test may change."""
    folder = tmp_path / "place"
    folder.mkdir()
    yield folder
    folder.chmod(0o700)


async def serve(path: Path, *, file_limit: int | None = None) -> End:
    """Start the whole service on it in a process of its own, and make the calls."""
    async with starters() as crowd:
        return await crowd.run("store", url(path), unprivileged=True, file_limit=file_limit, calls=CALLS)


def assert_served_to_readers(end: End, why: str, refused: str, trash: list[str]) -> None:
    assert (end.code, end.state, end.reason) == (0, "degraded", "read-only")
    assert end.error == "The database is read-only."
    assert why in " ".join(end.log)
    listed, created, removed = end.answers
    assert LIVE in {record["id"] for record in listed}
    assert created[0] == "DATABASE_READ_ONLY"
    assert removed[0] == refused
    assert end.guide_lines == trash


@pytest.mark.parametrize(
    ("shape", "refused", "said"),
    [("s_b2", "SOFT_DELETE_UNAVAILABLE", [FAILED]), ("s_d2", "DATABASE_READ_ONLY", [EXISTS])],
)
@pytest.mark.parametrize("what", ["file", "folder"])
async def test_m34_what_is_read_only_is_named_and_served_to_readers(
    what: str, shape: str, refused: str, said: list[str], place: Path
) -> None:
    path = place / "environments.sqlite"
    make_sqlite(shape, path)
    before = path.read_bytes()
    (path if what == "file" else place).chmod(0o444 if what == "file" else 0o555)

    end = await serve(path)

    why = f"The {what} '{path if what == 'file' else place}' is read-only for this user"
    assert_served_to_readers(end, why, refused, said)
    assert path.read_bytes() == before


async def test_m34_a_file_in_wal_mode_in_a_read_only_folder_says_what_is_missing(place: Path) -> None:
    """It cannot even be read: SQLite wants to lay its shared memory beside it."""
    path = place / "environments.sqlite"
    make_sqlite("s_wal", path)
    assert query(path, "PRAGMA journal_mode") == [("wal",)]
    os.chmod(place, 0o555)

    end = await serve(path)

    assert end.code == 1
    assert f"'{path}' cannot be opened" in (end.error or "")
    assert f"the folder '{place}' is read-only" in (end.error or "")


async def test_m34_a_file_opened_to_read_is_served_without_the_column(path: Path, lines: Lines) -> None:
    make_sqlite("s_b2", path)
    before = dump(path)

    status = await migrate_once(f"{url(path)}?mode=ro", logger=lines.logger, budgets=BUDGETS)

    assert (status.state, status.reason, status.writable, status.soft_delete) == ("degraded", "read-only", False, False)
    assert "mode=ro" in (status.error or "")
    assert lines.guide_lines() == [FAILED]
    assert dump(path) == before


async def test_m34_a_finished_file_opened_to_read_keeps_its_trash(path: Path, lines: Lines) -> None:
    make_sqlite("s_d2", path)
    await migrate_once(url(path), logger=lines.logger, budgets=BUDGETS)

    status = await migrate_once(f"{url(path)}?mode=ro", logger=lines.logger, budgets=BUDGETS)

    assert (status.state, status.reason, status.writable, status.soft_delete) == ("degraded", "read-only", False, True)
    [finding] = (await check(f"{url(path)}?mode=ro")).findings
    assert "mode=ro" in finding.message


async def test_m34_a_missing_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "not" / "there" / "environments.sqlite"
    async with serving(url(path), budgets=BUDGETS) as service:
        assert (await service.ask("schema"))["state"] == "ready"
        assert (await service.ask("create", environment={"uuid": "U"}))["id"] == "U"
        assert service.guide_lines() == [EXISTS]


async def test_m34_a_missing_folder_that_cannot_be_made_is_named(place: Path) -> None:
    os.chmod(place, 0o555)
    end = await serve(place / "data" / "environments.sqlite")
    assert end.code == 1
    assert f"'{place / 'data' / 'environments.sqlite'}'" in (end.error or "")
    assert "Permission denied" in (end.error or "")


async def test_m34_a_database_in_memory_is_refused(lines: Lines) -> None:
    with pytest.raises(ConfigError, match="would be lost at the end"):
        await migrate_once("sqlite:///:memory:", logger=lines.logger, budgets=BUDGETS)
    assert not Path(":memory:").exists()  # noqa: ASYNC240 # one look


async def test_m34_an_empty_file_becomes_a_database(path: Path) -> None:
    make_sqlite("s_none", path)
    os.truncate(path, 0)
    async with serving(url(path), budgets=BUDGETS) as service:
        assert (await service.ask("schema"))["state"] == "ready"
        assert (await service.ask("create", environment={"uuid": "U"}))["id"] == "U"
    assert query(path, "SELECT id FROM environments") == [("U",)]


@pytest.fixture
def letter(path: Path) -> Path:
    path.write_text("This is a letter, and a rather long one, so that it cannot be taken for a header.\n" * 20)
    return path


@pytest.fixture
def folder(path: Path) -> Path:
    path.mkdir()
    return path


async def test_m34_a_file_that_is_no_database_is_named_with_the_reason(letter: Path, lines: Lines) -> None:
    with pytest.raises(DatabaseError, match="is not a SQLite database") as caught:
        await migrate_once(url(letter), logger=lines.logger, budgets=BUDGETS)
    assert str(letter) in str(caught.value)


async def test_m34_a_folder_in_place_of_the_file_is_named(folder: Path, lines: Lines) -> None:
    with pytest.raises(DatabaseUnavailableError, match="it is a folder"):
        await migrate_once(url(folder), logger=lines.logger, budgets=BUDGETS)


async def test_m34_a_start_that_cannot_open_its_file_ends_at_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A server may come up later, and is waited for; a file does not."""
    with pytest.raises(DatabaseUnavailableError, match="it is a folder"):
        async with serving(url(folder), budgets=BUDGETS):
            raise AssertionError("it serves")
    assert "trying again" not in caplog.text


async def test_m34_a_file_in_place_of_the_folder_is_named(letter: Path, lines: Lines) -> None:
    with pytest.raises(DatabaseUnavailableError, match=str(letter)):
        await migrate_once(url(letter / "below.sqlite"), logger=lines.logger, budgets=BUDGETS)


@pytest.mark.parametrize("kept", ["half", "less than a header"])
async def test_m34_a_truncated_file_ends_the_start_with_what_to_do(kept: str, place: Path) -> None:
    path = place / "environments.sqlite"
    make_sqlite("s_d2", path)
    os.truncate(path, path.stat().st_size // 2 if kept == "half" else 50)
    before = path.read_bytes()

    end = await serve(path)

    assert end.code == 1
    assert f"'{path}' is damaged" in (end.error or "")
    assert "PRAGMA integrity_check" in (end.error or "")
    assert "restore a backup" in (end.error or "")
    assert path.read_bytes() == before


@pytest.mark.parametrize("disk", ["limited", *(["full, delete", "full, wal"] if may_mount() else [])])
async def test_m34_a_full_or_broken_disk_costs_the_column_and_writes_until_there_is_room_again(
    disk: str, path: Path
) -> None:
    """A small disk of its own; and, as not everybody may mount one, the kernel's limit for the files of a process."""
    if disk == "limited":
        make_sqlite("s_b2", path)
        connection = sqlite3.connect(path)
        connection.executescript("PRAGMA page_size = 65536; VACUUM; PRAGMA journal_mode = wal")
        connection.close()
        # Room for what readers and writers share, and for no whole page.
        await assert_no_write(path, f"'{path}' cannot be read or written: its disk reports an error", file_limit=40_000)
        await assert_heals(path)
        return
    journal = disk.split()[1]
    with small_folder() as small:
        path = small.folder / "environments.sqlite"
        make_sqlite("s_b2", path)
        query(path, f"PRAGMA journal_mode = {journal}")
        # In WAL mode everybody, readers too, needs 32 kB beside the file.
        small.fill(left_kb=40 if journal == "wal" else 4)
        await assert_no_write(path, f"'{path}' cannot grow: the disk is full")
        small.free()
        await assert_heals(path)


async def assert_no_write(path: Path, why: str, file_limit: int | None = None) -> None:
    before = dump(path)
    end = await serve(path, file_limit=file_limit)
    assert (end.code, end.state, end.reason) == (0, "degraded", "failed")
    assert "The disk of the database" in (end.error or "")
    assert why in " ".join(end.log)
    listed, created, removed = end.answers
    assert LIVE in {record["id"] for record in listed}
    assert created[0] == "DATABASE_UNAVAILABLE"
    assert str(path) not in created[1]
    assert removed[0] == "SOFT_DELETE_UNAVAILABLE"
    assert end.guide_lines == [ADDING, FAILED]
    assert query(path, "PRAGMA integrity_check") == [("ok",)]
    assert dump(path) == before


async def assert_heals(path: Path) -> None:
    end = await serve(path)
    assert (end.code, end.state) == (0, "ready")
    assert end.guide_lines == [ADDING, ADDED]
    assert end.answers[2] == {"success": True}
