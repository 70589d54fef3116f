"""Scenario 44: a backup that failed is reported as failed, and leaves no file that could be taken for one."""

import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.environments_store.errors import DatabaseError, DatabaseUnavailableError, OperationError
from services.environments_store.operations.backup import back_up
from tests.support.operations import fill
from tests.support.postgres import PostgresDatabase, PostgresServer
from tests.support.processes import start_python
from tests.support.shapes import postgres_sql
from tests.support.small_disk import may_mount, small_folder
from tests.support.store import Bench

pytestmark = pytest.mark.anyio


def script(folder: Path, name: str, text: str) -> None:
    """A program that stands in for one of PostgreSQL's, to fail in the ways that the real one can."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def partial(folder: Path) -> list[Path]:
    """What an unfinished backup left behind."""
    return list(folder.glob("*.partial"))


@pytest.fixture
def programs(tmp_path: Path, postgres_server: PostgresServer) -> Path:
    """A folder with the real programs, of which a test replaces one."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("pg_dump", "pg_restore"):
        (folder / name).symlink_to(postgres_server.programs / name)
    return folder


FAILURES = {
    "exit code": (
        "pg_dump",
        "echo 'could not connect: too bad' >&2; exit 3",
        "exit code 3: could not connect: too bad",
    ),
    "half a file and an exit code": (
        "pg_dump",
        'while [ "$1" != -f ]; do shift; done; printf half > "$2"; echo "No space left on device" >&2; exit 1',
        "No space left on device",
    ),
    "half a file and success": (
        "pg_dump",
        'while [ "$1" != -f ]; do shift; done; printf half > "$2"',
        "pg_restore failed",
    ),
    "no file and success": ("pg_dump", "exit 0", "pg_restore failed"),
    "killed": ("pg_dump", "kill -9 $$", "exit code -9"),
    "no rows": ("pg_dump", '"{real}" --schema-only "$@"', "has no rows of public.environments"),
    "a wrong version": (
        "pg_dump",
        "echo 'pg_dump: error: aborting because of server version mismatch' >&2; exit 1",
        "of the server's version or newer, or give their folder with --pg-bin",
    ),
    "rows that cannot be read back": (
        "pg_restore",
        'case "$1" in --list) exec "{real}" "$@";; *) "{real}" "$@" | grep -v row-7;; esac',
        "has 19 rows of public.environments, but the table has 20",
    ),
}


@pytest.mark.parametrize("bench", ["postgresql"], indirect=True)
@pytest.mark.parametrize("failure", FAILURES)
async def test_m44_a_failed_dump_is_told_and_leaves_no_file(
    failure: str,
    bench: Bench,
    postgres_database: PostgresDatabase,
    postgres_server: PostgresServer,
    programs: Path,
    tmp_path: Path,
) -> None:
    name, text, expected = FAILURES[failure]
    await fill(bench, 20)
    (programs / name).unlink()
    script(programs, name, text.replace("{real}", str(postgres_server.programs / name)))
    older = tmp_path / "backup.dump"
    older.write_text("an older backup")
    with pytest.raises(OperationError) as caught:
        await back_up(postgres_database.url, older, overwrite=True, programs=programs)
    assert expected in str(caught.value)
    assert older.read_text() == "an older backup"
    assert not partial(tmp_path)


async def test_m44_the_command_ends_with_exit_code_1_and_the_reason(
    postgres_database: PostgresDatabase, programs: Path, tmp_path: Path
) -> None:
    """The guide's `pg_dump … | gzip > file` ends with 0, and leaves a file."""
    postgres_database.run_sql(postgres_sql("p_dmig"))
    (programs / "pg_dump").unlink()
    script(programs, "pg_dump", FAILURES["half a file and an exit code"][1])
    target = tmp_path / "backup.dump"
    command = ("-m", "services.environments_store", "backup", str(target), "--pg-bin", str(programs))
    async with start_python(*command, environment={"DATABASE_URL": postgres_database.url}) as process:
        assert await process.wait() == 1
    assert process.stdout == []
    assert process.stderr[0].startswith("Error: ")
    assert "No space left on device" in process.stderr[0]
    assert not target.exists()
    assert not partial(tmp_path)


async def test_m44_a_password_is_in_no_argument_and_in_no_message(
    postgres_database: PostgresDatabase, programs: Path, tmp_path: Path
) -> None:
    postgres_database.run_sql(postgres_sql("p_dmig"))
    (programs / "pg_dump").unlink()
    script(programs, "pg_dump", f'echo "$@ $PGPASSWORD" > "{tmp_path / "said"}"; echo "$@" >&2; exit 1')
    with pytest.raises(OperationError) as caught:
        await back_up(postgres_database.url, tmp_path / "backup.dump", programs=programs)
    arguments, _, password = (tmp_path / "said").read_text().rstrip().rpartition(" ")
    assert password
    assert password in postgres_database.url
    assert password not in arguments
    assert password not in str(caught.value)


async def test_m44_missing_programs_are_named_with_what_to_do(
    postgres_database: PostgresDatabase, tmp_path: Path
) -> None:
    postgres_database.run_sql(postgres_sql("p_dmig"))
    with pytest.raises(OperationError, match=r"There is no pg_dump in .*--pg-bin"):
        await back_up(postgres_database.url, tmp_path / "backup.dump", programs=tmp_path)


async def test_m44_a_place_that_cannot_be_written_to_is_named(
    postgres_database: PostgresDatabase, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    postgres_database.run_sql(postgres_sql("p_dmig"))
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OperationError, match="cannot be written"):
        await back_up(postgres_database.url, tmp_path / "file" / "backup.dump", programs=postgres_server.programs)


async def test_m44_a_server_that_is_away_is_told(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailableError):
        await back_up("postgresql://nobody@127.0.0.1:1/none", tmp_path / "backup.dump")


@contextmanager
def full_folder(tmp_path: Path) -> Iterator[Path]:
    """On a full disk of its own; and, as not everybody may mount one, with the kernel's limit for files meanwhile."""
    if may_mount():
        with small_folder() as small:
            small.fill()
            yield small.folder
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, hard))
    try:
        yield tmp_path
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("bench", ["sqlite"], indirect=True)
async def test_m44_a_full_disk_is_told_of_the_backup_s_folder_and_not_of_the_database(
    bench: Bench, tmp_path: Path
) -> None:
    await fill(bench, 5_000)
    path = tmp_path / "environments.sqlite"
    with full_folder(tmp_path) as folder:
        with pytest.raises(OperationError) as caught:
            await back_up(f"sqlite:///{path}", folder / "backup.sqlite")
        assert f"cannot be written to the folder '{folder}'" in str(caught.value)
        assert str(path) not in str(caught.value)
        assert not (folder / "backup.sqlite").exists()
        assert not partial(folder)


@pytest.mark.parametrize("bench", ["sqlite"], indirect=True)
async def test_m44_a_damaged_file_is_not_backed_up_in_silence(bench: Bench, tmp_path: Path) -> None:
    await fill(bench, 5_000)
    await bench.database.close()
    path = tmp_path / "environments.sqlite"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(os.urandom(8_192))
    with pytest.raises((OperationError, DatabaseError)):
        await back_up(f"sqlite:///{path}", tmp_path / "backup.sqlite")
    assert not (tmp_path / "backup.sqlite").exists()
    assert not partial(tmp_path)
