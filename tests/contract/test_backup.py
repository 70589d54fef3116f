"""A backup holds every row, and can be restored."""

import os
import sqlite3
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from services.environments_store.commands.transfer import export_to_file
from services.environments_store.errors import DatabaseError, OperationError
from services.environments_store.operations import backup_sqlite
from services.environments_store.operations.backup import back_up
from services.environments_store.schema import inspect_sqlite
from tests.support.operations import exported, fill
from tests.support.postgres import PostgresDatabase, PostgresServer
from tests.support.shapes import make_sqlite, postgres_sql
from tests.support.store import Bench

pytestmark = pytest.mark.anyio


def restore(server: PostgresServer, database: PostgresDatabase, file: Path) -> None:
    command = [str(server.programs / "pg_restore"), "-d", database.url, str(file)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


@pytest.mark.parametrize("bench", ["postgresql"], indirect=True)
async def test_a_dump_can_be_restored_elsewhere(
    bench: Bench, postgres_database: PostgresDatabase, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    await fill(bench, 1_000)
    await fill(bench, 10, deleted_days=3, prefix="gone-")
    await bench.create("multi", text="a\\.\nCOPY x FROM stdin;\n\\.")
    file = tmp_path / "backups" / "one.dump"
    backup = await back_up(postgres_database.url, file, programs=postgres_server.programs)
    assert backup.tables == {"environments": 1_011}
    assert backup.bytes == file.stat().st_size
    assert files(file.parent) == [file]
    other = PostgresDatabase(postgres_server)
    try:
        restore(postgres_server, other, file)
        sums = "SELECT md5(string_agg(e::text, ' ' ORDER BY id)) FROM environments AS e"
        assert other.run_sql(sums) == postgres_database.run_sql(sums)
    finally:
        other.drop()


@pytest.mark.parametrize("shape", ["p_c", "p_dmig", "p_odd_search_path"])
async def test_both_tables_of_the_right_schema_are_dumped(
    shape: str, postgres_database: PostgresDatabase, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    postgres_database.run_sql(postgres_sql(shape))
    counts = {"environments": int(postgres_database.run_sql("SELECT count(*) FROM environments").splitlines()[-1])}
    if postgres_database.run_sql("SELECT to_regclass('metadata') IS NOT NULL") == "t":
        counts["metadata"] = int(postgres_database.run_sql("SELECT count(*) FROM metadata"))
    backup = await back_up(postgres_database.url, tmp_path / "a.dump", programs=postgres_server.programs)
    assert backup.tables == counts


async def test_a_role_s_own_encoding_does_not_keep_characters_out_of_a_dump(
    postgres_database: PostgresDatabase, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    postgres_database.run_sql(postgres_sql("p_dmig"))
    url = postgres_database.create_role("guest")
    role = postgres_database.role_name(url)
    postgres_database.run_sql(f'GRANT ALL ON environments, metadata TO "{role}"')
    postgres_database.run_sql(f"ALTER ROLE \"{role}\" SET client_encoding = 'LATIN1'")
    done = await back_up(url, tmp_path / "backup.dump", programs=postgres_server.programs)
    assert done.tables["environments"] == 4


async def test_a_dump_understands_what_the_service_takes_in_its_address(
    postgres_database: PostgresDatabase, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    postgres_database.run_sql(f"CREATE SCHEMA app; SET search_path = app; {postgres_sql('p_c')}")
    url = f"{postgres_database.url}?schema=app&statement_timeout=60000&pgbouncer=true&sslmode=prefer"
    done = await back_up(url, tmp_path / "backup.dump", programs=postgres_server.programs)
    assert done.tables["environments"] == 3


@pytest.mark.parametrize("bench", ["sqlite"], indirect=True)
async def test_a_copy_of_a_file_that_is_in_use_is_whole(bench: Bench, tmp_path: Path) -> None:
    await fill(bench, 1_000)
    await bench.store.remove("row-7")
    file = tmp_path / "backups" / "copy.sqlite"
    async with bench.database.transaction() as connection:
        await connection.execute("DELETE FROM environments WHERE id = 'row-1'")  # not committed: not in the copy
        backup = await back_up(f"sqlite:///{tmp_path / 'environments.sqlite'}", file)
    assert backup.tables == {"environments": 1_000}
    assert files(file.parent) == [file]
    copy = sqlite3.connect(file)
    assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert copy.execute("SELECT count(*), count(deletedAt) FROM environments").fetchone() == (1_000, 1)
    copy.close()
    assert len(await exported(bench)) == 999


@pytest.mark.parametrize("bench", ["sqlite"], indirect=True)
async def test_rows_that_come_and_go_meanwhile_are_no_reason_to_refuse_a_copy(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(bench, 100)

    async def query(connection: Any, path: Path, text: str, *arguments: object) -> Any:
        copying = text.startswith("VACUUM")
        if copying:
            await fill(bench, 5, prefix="guest-")
        rows = await inspect_sqlite.query(connection, path, text, *arguments)
        if copying:
            await bench.run("DELETE FROM environments WHERE id LIKE 'guest-%'")
        return rows

    monkeypatch.setattr(backup_sqlite, "query", query)
    backup = await back_up(f"sqlite:///{tmp_path / 'environments.sqlite'}", tmp_path / "copy.sqlite")
    assert backup.tables["environments"] == 105
    assert len(await exported(bench)) == 100


async def test_a_folder_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    make_sqlite("s_d1", tmp_path / "environments.sqlite")
    for name in (tmp_path, Path(), Path("/")):
        with pytest.raises(OperationError, match=f"'{name}' is a folder"):
            await back_up(f"sqlite:///{tmp_path / 'environments.sqlite'}", name, overwrite=True)


async def test_an_existing_file_is_replaced_only_by_force(tmp_path: Path) -> None:
    make_sqlite("s_d1", tmp_path / "environments.sqlite")
    url, file = f"sqlite:///{tmp_path / 'environments.sqlite'}", tmp_path / "copy.sqlite"
    file.write_text("precious")
    with pytest.raises(OperationError, match="exists already"):
        await back_up(url, file)
    assert file.read_text() == "precious"
    await back_up(url, file, overwrite=True)
    assert file.read_bytes().startswith(b"SQLite format 3")


async def test_only_its_owner_may_read_a_backup_or_an_export_replaced_ones_too(
    tmp_path: Path, postgres_database: PostgresDatabase, postgres_server: PostgresServer
) -> None:
    make_sqlite("s_d1", tmp_path / "environments.sqlite")
    postgres_database.run_sql(postgres_sql("p_c"))
    source, folder = f"sqlite:///{tmp_path / 'environments.sqlite'}", tmp_path / "out"
    folder.mkdir()
    umask = os.umask(0)
    try:
        for number, url in enumerate((source, postgres_database.url)):
            replaced = folder / f"{number}.ndjson"
            replaced.touch(mode=0o644)
            await back_up(url, folder / f"{number}.backup", programs=postgres_server.programs)
            await export_to_file(url, replaced, "live", overwrite=True)
    finally:
        os.umask(umask)
    assert [stat.S_IMODE(file.stat().st_mode) for file in files(folder)] == [0o600] * 4


async def test_the_database_itself_is_never_replaced_by_its_backup(tmp_path: Path) -> None:
    file = tmp_path / "environments.sqlite"
    make_sqlite("s_d1", file)
    before = file.stat()
    (tmp_path / "link.sqlite").symlink_to(file)
    for name in (file, tmp_path / "link.sqlite"):
        with pytest.raises(OperationError, match="is the database itself"):
            await back_up(f"sqlite:///{file}", name, overwrite=True)
    assert file.stat() == before


async def test_without_a_table_there_is_nothing_to_back_up(tmp_path: Path, postgres_url: str) -> None:
    for url in (f"sqlite:///{tmp_path / 'none.sqlite'}", postgres_url):
        with pytest.raises(DatabaseError, match=r"There is no table '(public\.)?environments'"):
            await back_up(url, tmp_path / "x")
    assert files(tmp_path) == []
