"""The operations of `environments-store` as a person and a script run them."""

import json
import os
import pty
import re
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import anyio
import pytest

from tests.support.migrations import ADVISORY_LOCKS, INDEX_STATE, VALID_INDEX, old_transaction
from tests.support.postgres import PostgresDatabase, PostgresServer
from tests.support.processes import run_python, start_python
from tests.support.shapes import make_sqlite, postgres_sql
from tests.support.waiting import eventually
from tests.support.warm import warm_command

PROGRAM = "services.environments_store"
DEADLINE_S = 60.0
SETTINGS = ("NATS_URL", "DATABASE_URL", "NAMESPACE", "NODE_ID", "LOG_LEVEL", "LOG_FORMAT", "RETENTION_DAYS")
TRASH_ID = "c0ffee00-0000-4000-8000-000000000002"


def environment(**settings: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    return {**inherited, "COLUMNS": "200", "PYTHONWARNINGS": "error", **settings}


def run(
    *arguments: str, input: str = "", folder: Path | None = None, **settings: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        warm_command(PROGRAM, *arguments),
        input=input,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env=environment(**settings),
        cwd=folder,
    )


def on_terminal(*arguments: str, answer: str = "", **settings: str) -> tuple[int, str]:
    """The exit code, and what a command prints on a terminal where somebody types `answer`."""
    with terminal(*arguments, **settings) as (process, outside):
        output = read_until(outside, "[y/N]" if answer else "\0")
        if answer:
            os.write(outside, f"{answer}\n".encode())
            output += read_until(outside, "\0")
        return process.wait(DEADLINE_S), output


@contextmanager
def terminal(*arguments: str, **settings: str) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """A command that runs on a terminal, and the file of its other side."""
    outside, inside = pty.openpty()
    process = subprocess.Popen(
        warm_command(PROGRAM, *arguments),
        stdin=inside,
        stdout=inside,
        stderr=inside,
        env=environment(TERM="xterm", **settings),
    )
    os.close(inside)
    try:
        yield process, outside
    finally:
        os.close(outside)
        process.kill()
        process.wait()


def read_until(outside: int, text: str) -> str:
    """What was printed up to this text, or to the end."""
    output = b""
    while text.encode() not in output:
        try:
            output += os.read(outside, 65_536)
        except OSError:  # the other side is closed
            break
    return output.decode(errors="replace")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "environments.sqlite"
    make_sqlite("s_d1", path)
    connection = sqlite3.connect(path)
    connection.execute("ANALYZE")  # the last thing that a migration would do
    connection.close()
    return path


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite:///{path}"


def count(path: Path, where: str = "TRUE") -> int:
    connection = sqlite3.connect(path)
    try:
        [row] = connection.execute(f"SELECT count(*) FROM environments WHERE {where}").fetchall()
        return int(row[0])
    finally:
        connection.close()


def test_plan_ends_with_1_while_there_is_work(tmp_path: Path, url: str) -> None:
    make_sqlite("s_b1", tmp_path / "old.sqlite")
    old = f"sqlite:///{tmp_path / 'old.sqlite'}"
    before = run("migrate", "plan", DATABASE_URL=old)
    assert before.returncode == 1
    steps = {step["name"]: step for step in json.loads(before.stdout)["steps"]}
    assert (steps["table"]["state"], steps["column"]["state"]) == ("done", "pending")
    assert steps["column"]["statement"].startswith("ALTER TABLE")
    run("migrate", "run", DATABASE_URL=old)
    assert run("migrate", "plan", DATABASE_URL=old).returncode == 0
    code, shown = on_terminal("migrate", "plan", DATABASE_URL=url)
    assert "The migration will not:" in shown
    assert "{" not in shown
    assert code == 0


def test_verify_ends_with_1_when_something_does_not_hold(tmp_path: Path, url: str) -> None:
    good = run("migrate", "verify", DATABASE_URL=url)
    assert good.returncode == 0
    assert {check["state"] for check in json.loads(good.stdout)} == {"ok"}
    make_sqlite("s_b1", tmp_path / "old.sqlite")
    assert run("migrate", "verify", DATABASE_URL=f"sqlite:///{tmp_path / 'old.sqlite'}").returncode == 1


def test_purge_shows_first_and_asks_before_it_deletes(path: Path, url: str) -> None:
    dry = run("purge", "--dry-run", DATABASE_URL=url)
    assert dry.returncode == 0
    assert json.loads(dry.stdout)["wouldDelete"] == 1
    refused = run("purge", DATABASE_URL=url)
    assert refused.returncode == 1
    assert "Permanently delete 1 environment from" in refused.stderr
    assert "pass --yes" in refused.stderr
    code, shown = on_terminal("purge", answer="n", DATABASE_URL=url)
    assert code == 1
    assert "Permanently delete" in shown
    assert count(path, "deletedAt IS NOT NULL") == 1
    code, shown = on_terminal("purge", answer="y", DATABASE_URL=url)
    assert code == 0
    assert count(path, "deletedAt IS NOT NULL") == 0
    assert count(path) == 3


def test_less_than_a_day_needs_force(path: Path, url: str) -> None:
    refused = run("purge", "--older-than", "0", "--yes", DATABASE_URL=url)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "--force" in refused.stderr
    assert count(path, "deletedAt IS NOT NULL") == 1
    assert run("purge", "--older-than", "0", "--dry-run", DATABASE_URL=url).returncode == 0
    assert run("purge", "--older-than", "0", "--yes", "--force", DATABASE_URL=url).returncode == 0
    assert count(path, "deletedAt IS NOT NULL") == 0


def test_export_and_import_by_file_and_by_pipe(path: Path, url: str, tmp_path: Path) -> None:
    everything = run("export", "-", "--all", DATABASE_URL=url)
    assert everything.stdout.count("\n") == 4
    file = tmp_path / "trash.ndjson"
    assert json.loads(run("export", str(file), "--deleted", DATABASE_URL=url).stdout)["exported"] == 1
    assert run("export", str(file), DATABASE_URL=url).returncode == 1
    assert file.read_text().count("\n") == 1
    other = f"sqlite:///{tmp_path / 'other.sqlite'}"
    run("migrate", "run", DATABASE_URL=other)
    done = run("import", "-", input=everything.stdout, DATABASE_URL=other)
    assert json.loads(done.stdout) == {"created": 4, "skipped": 0, "replaced": 0}
    assert run("export", "-", "--all", DATABASE_URL=other).stdout == everything.stdout
    again = run("import", str(file), "--on-conflict", "fail", DATABASE_URL=other)
    assert again.returncode == 1
    assert again.stderr.startswith("Error: Line 1: an environment")
    refused = run("import", str(file), "--on-conflict", "replace", DATABASE_URL=other)
    assert "--yes" in refused.stderr
    replaced = run("import", str(file), "--on-conflict", "replace", "--yes", DATABASE_URL=other)
    assert json.loads(replaced.stdout)["replaced"] == 1


def test_a_file_of_mockoon_is_imported_as_it_is(url: str, path: Path, tmp_path: Path) -> None:
    document = {"uuid": "big", "name": "big", "routes": [{"uuid": f"r{n}", "body": "x" * 300} for n in range(900)]}
    (tmp_path / "big.json").write_text(json.dumps(document, indent=2))
    (tmp_path / "params.json").write_text(json.dumps({"environment": document}))
    assert json.loads(run("import", str(tmp_path / "big.json"), DATABASE_URL=url).stdout)["created"] == 1
    assert json.loads(run("import", str(tmp_path / "params.json"), DATABASE_URL=url).stdout)["skipped"] == 1
    assert json.loads(run("import", "-", input=json.dumps(document), DATABASE_URL=url).stdout)["skipped"] == 1
    assert count(path, f"environment = '{json.dumps(document, indent=2)}'") == 1


def test_an_export_to_a_full_disk_is_told_in_one_line(url: str) -> None:
    command = warm_command(PROGRAM, "export", "-", "--all")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(DATABASE_URL=url),
            timeout=DEADLINE_S,
        )
    assert done.returncode == 1
    assert done.stderr == "Error: Standard output cannot be written: No space left on device.\n"


def test_an_import_names_the_bad_line_and_can_be_repeated(url: str, path: Path, tmp_path: Path) -> None:
    file = tmp_path / "lines.ndjson"
    good = "".join(f'{{"environment":{{"uuid":"new-{number}"}}}}\n' for number in range(1_000))
    file.write_text(f"{good}{{nonsense\n")
    refused = run("import", str(file), DATABASE_URL=url)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("Error: Line 1001: ")
    assert count(path) == 4
    file.write_text(good)
    assert json.loads(run("import", str(file), DATABASE_URL=url).stdout)["created"] == 1_000
    assert json.loads(run("import", str(file), DATABASE_URL=url).stdout)["skipped"] == 1_000
    missing = run("import", str(tmp_path / "none"), DATABASE_URL=url)
    assert missing.stderr == f"Error: '{tmp_path / 'none'}' cannot be read: No such file or directory.\n"


def test_a_damaged_row_makes_an_export_end_with_1(path: Path, url: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"UPDATE environments SET environment = NULL WHERE id = '{TRASH_ID}'")
    connection.commit()
    connection.close()
    result = run("export", "-", "--all", DATABASE_URL=url)
    assert result.returncode == 1
    assert result.stdout.count("\n") == 4
    assert "1 record has a damaged document, exported as null." in result.stderr
    doctor = run("doctor", DATABASE_URL=url)
    assert doctor.returncode == 1
    assert TRASH_ID in doctor.stdout


def test_doctor_is_content_with_a_healthy_database(url: str) -> None:
    healthy = run("doctor", DATABASE_URL=url)
    assert (healthy.returncode, json.loads(healthy.stdout)["findings"]) == (0, [])
    code, shown = on_terminal("doctor", "--quick", DATABASE_URL=url)
    assert code == 0
    assert "No problems were found." in shown


def test_backup_on_both_databases(
    url: str, tmp_path: Path, postgres_database: PostgresDatabase, postgres_server: PostgresServer
) -> None:
    done = run("backup", str(tmp_path / "copy.sqlite"), DATABASE_URL=url)
    assert json.loads(done.stdout)["tables"] == {"environments": 4, "metadata": 1}
    code, shown = on_terminal("backup", str(tmp_path / "second.sqlite"), DATABASE_URL=url)
    assert code == 0
    assert "To restore: " in shown
    postgres_database.run_sql(postgres_sql("p_dmig"))
    programs = str(postgres_server.programs)
    target = str(tmp_path / "copy.dump")
    done = run("backup", target, "--pg-bin", programs, DATABASE_URL=postgres_database.url)
    assert json.loads(done.stdout)["tables"]["environments"] == 4
    assert "password" not in done.stdout + done.stderr
    refused = run("backup", target, "--pg-bin", programs, DATABASE_URL=postgres_database.url)
    assert refused.returncode == 1
    assert "exists already" in refused.stderr


def test_rollback_refuses_asks_exports_and_prints_the_way_back(path: Path, url: str, tmp_path: Path) -> None:
    before = run("export", "-", "--all", DATABASE_URL=url).stdout
    refused = run("migrate", "rollback", DATABASE_URL=url)
    assert refused.returncode == 1
    assert "--trash=keep" in refused.stderr
    assert "--yes" in run("migrate", "rollback", "--trash", "remove", DATABASE_URL=url).stderr
    code, _ = on_terminal("migrate", "rollback", "--trash", "remove", answer="n", DATABASE_URL=url)
    assert code == 1
    assert count(path, "deletedAt IS NOT NULL") == 1
    done = run("migrate", "rollback", "--trash", "remove", "--yes", folder=tmp_path, DATABASE_URL=url)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert count(path) == 3
    assert run("migrate", "rollback", "--trash", "keep", "--yes", DATABASE_URL=url).returncode == 0, "nothing to do"
    for command in outcome["wayBack"][:2]:
        program, *arguments = command.replace("'", "").split()
        assert program == "environments-store"
        assert run(*arguments, folder=tmp_path, DATABASE_URL=url).returncode == 0
    assert run("export", "-", "--all", DATABASE_URL=url).stdout == before


def test_a_rollback_whose_file_is_there_already_asks_for_another_name_alone(path: Path, url: str) -> None:
    """--force would replace no file here, and take the column from nodes that serve."""
    taken = path.parent / "taken.ndjson"
    taken.write_text("of an earlier attempt")
    refused = run("migrate", "rollback", "--trash=keep", "--yes", "--export", str(taken), DATABASE_URL=url)
    assert refused.stderr == f"Error: '{taken}' exists already. Choose another name.\n"
    assert taken.read_text() == "of an earlier attempt"


@pytest.mark.anyio
async def test_a_killed_rollback_has_changed_nothing(postgres_database: PostgresDatabase, tmp_path: Path) -> None:
    postgres_database.run_sql(postgres_sql("p_dmig"))
    settings = {"DATABASE_URL": postgres_database.url}
    await run_python("-m", "services.environments_store", "migrate", "run", environment=settings)
    before = await run_python("-m", "services.environments_store", "export", "-", "--all", environment=settings)
    command = ("-m", "services.environments_store", "migrate", "rollback", "--trash=remove", "--yes")
    async with old_transaction(postgres_database.url):
        file = str(tmp_path / "trash.ndjson")
        async with start_python(*command, "--export", file, environment=settings) as process:
            await process.line("The rollback is waiting")
            await process.kill()
    after = await run_python("-m", "services.environments_store", "export", "-", "--all", environment=settings)
    assert after.stdout == before.stdout
    assert len(after.stdout) == 4
    copies = "SELECT count(*) FROM pg_class WHERE relname LIKE 'environments_deleted_2%'"
    assert postgres_database.run_sql(copies) == "0"
    await eventually(lambda: postgres_database.run_sql(ADVISORY_LOCKS) == "0", "the locks to go")


def test_a_wrong_file_gets_its_own_message_in_every_command(tmp_path: Path) -> None:
    letter = tmp_path / "letter.txt"
    letter.write_text("Dear Sir or Madam, this is no database at all, but a letter.\n" * 20)
    commands = (("migrate", "plan"), ("migrate", "verify"), ("doctor",), ("export", "-"), ("purge", "--yes"))
    for command in commands:
        result = run(*command, DATABASE_URL=f"sqlite:///{letter}")
        assert result.returncode == 1, command
        assert result.stderr.startswith("Error: "), command
        assert "is not a SQLite database" in result.stderr, command
        assert result.stderr.count("\n") == 1, command
    for command in commands[1:2] + commands[3:]:
        result = run(*command, DATABASE_URL=f"sqlite:///{tmp_path / 'none.sqlite'}")
        assert result.stderr == f"Error: There is no table 'environments' in sqlite:///{tmp_path / 'none.sqlite'}.\n"
    assert not (tmp_path / "none.sqlite").exists()


@pytest.mark.parametrize("days", ["0", "x", "-1", "99999999"])
def test_a_retention_that_is_no_number_of_days_is_refused(url: str, days: str) -> None:
    result = run("serve", "--retention-days", days, DATABASE_URL=url)
    assert result.returncode == 2
    assert result.stderr.startswith(f"Error: RETENTION_DAYS is '{days}'")


@pytest.mark.anyio
async def test_a_build_that_waits_shows_for_whom_on_a_terminal(postgres_database: PostgresDatabase) -> None:
    postgres_database.run_sql(postgres_sql("p_half"))
    async with old_transaction(postgres_database.url, isolation="repeatable_read") as transaction:
        with terminal("migrate", "run", DATABASE_URL=postgres_database.url) as (process, outside):
            waits = "(slow-report), idle in transaction"
            assert waits in await anyio.to_thread.run_sync(read_until, outside, waits)
            await transaction.rollback()
            shown = await anyio.to_thread.run_sync(read_until, outside, "\0")
            assert process.wait(DEADLINE_S) == 0
    assert "deletedAt index created successfully" in shown


@pytest.mark.anyio
@pytest.mark.parametrize(("shape", "missing"), [("p_c", "column"), ("p_half", "index")])
async def test_a_migration_behind_another_session_names_it_and_gives_up_in_time(
    shape: str, missing: str, postgres_database: PostgresDatabase
) -> None:
    postgres_database.run_sql(postgres_sql(shape))
    url = postgres_database.url
    async with old_transaction(url, isolation="repeatable_read"):
        done = await anyio.to_thread.run_sync(partial(run, "migrate", "run", "--wait", "0.5", DATABASE_URL=url))
    assert done.returncode == 1
    assert "(slow-report)" in done.stderr
    assert done.stderr.endswith("Error: Not complete: gave up after waiting 0.5 s for another session (--wait).\n")
    step = next(step for step in json.loads(done.stdout)["steps"] if step["state"] != "done")
    assert (step["name"], step["state"], "(slow-report)" in step["detail"]) == (missing, "pending", True)
    done = run("migrate", "run", DATABASE_URL=url)
    assert (done.returncode, json.loads(done.stdout)["state"]) == (0, "ready")
    assert postgres_database.run_sql(INDEX_STATE) == VALID_INDEX


def test_a_build_shows_its_progress_on_a_terminal(postgres_database: PostgresDatabase) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    code, shown = on_terminal("migrate", "run", DATABASE_URL=postgres_database.url)
    assert code == 0
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", shown).splitlines()
    assert [line for line in lines if line.endswith("✅ deletedAt column added successfully")], "a line of its own"
    assert "ready" in shown
