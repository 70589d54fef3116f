"""The backup of a PostgreSQL database by pg_dump, checked by its exit code, contents and row counts."""

import os
import re
import shutil
import subprocess
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from services.environments_store.database.failures import StatementFailure
from services.environments_store.database.location import OF_LIBPQ, read_location
from services.environments_store.database.postgres_session import PostgresSession
from services.environments_store.defaults import MigrationBudgets
from services.environments_store.errors import OperationError
from services.environments_store.schema.inspection import Inspection
from services.environments_store.schema.names import METADATA_TABLE, counted, qualified
from services.environments_store.schema.postgres_steps import open_session

__all__ = ["dump"]

_COMPRESSION = "6"  # gzip's own choice between time and size
_COUNT_TIMEOUT_S = 3_600.0  # counting a table of any size; no session waits for it
_LONGEST_LINE = 1 << 30  # bytes: a row of a dump may be as long as PostgreSQL's largest value
_ERROR_LINES = 5
_INSTALL = "Install PostgreSQL's client programs, of the server's version or newer, or give their folder with --pg-bin."
_OTHER_VERSION = ("server version mismatch", "unsupported version")
"""What a pg_dump older than the server says, and a pg_restore older than the pg_dump."""
_OF_LIBPQ = re.compile(
    rf"{OF_LIBPQ.pattern}|host(addr)?|port|user|dbname|passfile|ssl\w+|krbsrvname|gsslib|target_session_attrs"
    r"|application_name|client_encoding|options|service"
)


async def dump(url: str, found: Inspection, file: Path, programs: Path | None) -> dict[str, int]:
    """Dump both tables and compare their row counts with those of the dumped snapshot.

    Raises OperationError. Until it ends, it holds a lock that adding the column has to wait for.
    """
    pg_dump, pg_restore = _program("pg_dump", programs), _program("pg_restore", programs)
    address, environment = _address(url)
    try:
        async with _snapshot(url, found) as (snapshot, encoding, counts):
            tables = [argument for table in counts for argument in ("-t", qualified(found.schema, table))]
            # The database's own encoding: a client encoding may lack characters of the data.
            which = [f"--snapshot={snapshot}", f"--encoding={encoding}", *tables]
            await _run([pg_dump, "-Fc", "-Z", _COMPRESSION, "-f", str(file), *which, "-d", address], environment)
    except StatementFailure as failure:
        raise OperationError(f"The backup failed: {failure}.") from failure
    listed = await _run([pg_restore, "--list", str(file)], environment)
    for table, count in counts.items():
        if f" TABLE DATA {found.schema} {table} " not in listed:
            raise OperationError(f"The backup has no rows of {found.schema}.{table}: it was removed.")
        dumped = await _count(pg_restore, file, found.schema, table, environment)
        if dumped != count:
            raise OperationError(
                f"The backup has {counted(dumped, 'row', 'rows')} of {found.schema}.{table}, but the table has {count}:"
                " it was removed."
            )
    return counts


@asynccontextmanager
async def _snapshot(url: str, found: Inspection) -> AsyncGenerator[tuple[str, str, dict[str, int]]]:
    """A snapshot for pg_dump, the encoding of the database, and the snapshot's row counts."""
    session = await open_session(url, "backup", MigrationBudgets(statement_timeout_s=_COUNT_TIMEOUT_S))
    try:
        await session.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        await session.run("SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL statement_timeout = 0")
        snapshot = await session.fetch_value("SELECT pg_export_snapshot()")
        counts = {found.table: await _rows(session, found, found.table)}
        if await session.fetch_value("SELECT to_regclass($1)", qualified(found.schema, METADATA_TABLE)) is not None:
            counts[METADATA_TABLE] = await _rows(session, found, METADATA_TABLE)
        yield str(snapshot), str(await session.fetch_value("SHOW server_encoding")), counts
    finally:
        await session.close()


async def _rows(session: PostgresSession, found: Inspection, table: str) -> int:
    return int(await session.fetch_value(f"SELECT count(*) FROM {qualified(found.schema, table)}"))


async def _count(program: str, file: Path, schema: str, table: str, environment: dict[str, str]) -> int:
    """The rows of one table in the dump: the lines from COPY to its end, read as a stream."""
    command = [program, "--data-only", "-n", schema, "-t", table, "-f", "-", str(file)]
    count, copying = 0, False
    async with _started(command, environment) as process:
        assert process.stdout is not None
        lines = BufferedByteReceiveStream(process.stdout)
        while True:
            try:
                line = await lines.receive_until(b"\n", _LONGEST_LINE)
            except anyio.IncompleteRead:
                break
            if not copying:
                copying = line.startswith(b"COPY ") and line.endswith(b"FROM stdin;")
            elif line == rb"\.":
                copying = False
            else:
                count += 1
    return count


async def _run(command: Sequence[str], environment: dict[str, str]) -> str:
    async with _started(command, environment) as process:
        assert process.stdout is not None
        output = [chunk async for chunk in process.stdout]
    return b"".join(output).decode(errors="replace")


@asynccontextmanager
async def _started(command: Sequence[str], environment: dict[str, str]) -> AsyncGenerator[Process]:
    """Run a program. Raises OperationError, with its last lines of standard error, when it fails."""
    name = Path(command[0]).name
    try:
        process = await anyio.open_process(command, stdin=subprocess.DEVNULL, env={**os.environ, **environment})
    except OSError as error:
        raise OperationError(f"{command[0]} cannot be run: {error.strerror or error}.") from error
    errors: list[bytes] = []

    async def listen() -> None:
        assert process.stderr is not None
        errors.extend([chunk async for chunk in process.stderr])

    async with process, anyio.create_task_group() as listener:
        listener.start_soon(listen)
        yield process
        code = await process.wait()
    if code != 0:
        lines = b"".join(errors).decode(errors="replace").strip().splitlines()[-_ERROR_LINES:]
        said = " / ".join(lines) or "it said nothing"
        remedy = f". {_INSTALL}" if any(one in said for one in _OTHER_VERSION) else ""
        raise OperationError(f"{name} failed with exit code {code}: {said}{remedy}")


def _program(name: str, programs: Path | None) -> str:
    found = shutil.which(name, path=None if programs is None else str(programs))
    if found is None:
        where = "on PATH" if programs is None else f"in '{programs}'"
        raise OperationError(f"There is no {name} {where}. {_INSTALL}")
    return found


def _address(url: str) -> tuple[str, dict[str, str]]:
    """The URL for libpq, and its environment. The password goes there because every user can read the arguments of a
    process; so do server settings, which libpq does not accept as parameters of the URL."""
    parts = urlsplit(url)
    credentials, at, hosts = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    parameters = dict(parse_qsl("&".join(read_location(url).parameters)))
    secret = parameters.pop("password", unquote(password))
    settings = [f"-c {name}={value}" for name, value in parameters.items() if not _OF_LIBPQ.fullmatch(name)]
    query = urlencode({name: value for name, value in parameters.items() if _OF_LIBPQ.fullmatch(name)})
    address = urlunsplit(parts._replace(netloc=f"{user}{at}{hosts}", query=query))
    environment = {"PGPASSWORD": secret} if secret else {}
    return address, {**environment, "PGOPTIONS": " ".join(settings)} if settings else environment
