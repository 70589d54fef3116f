"""One connection to a SQLite file: opened, its arguments bound, and its exceptions put into words of no driver."""

import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import aiosqlite
import anyio

from services.environments_store.database.failures import StatementFailure
from services.environments_store.database.sqlite_guarded import GuardedConnection

__all__ = ["bind", "close_quietly", "connect", "date_text", "file_failures"]

CONSTRAINT = re.compile(r"constraint failed: (?:index ')?([\w., ]+)'?$")
"""Its name, or the columns of one without; a CHECK without a name shows its expression, which names nothing."""


def date_text(moment: datetime) -> str:
    """The one form of a date that the original writes and reads: `2025-05-27 08:54:47.123 +00:00`, always UTC."""
    utc = moment.astimezone(UTC) if moment.tzinfo else moment
    return f"{utc:%Y-%m-%d %H:%M:%S}.{utc.microsecond // 1000:03d} +00:00"


def bind(arguments: Sequence[object]) -> Mapping[str, object]:
    """Arguments for `$1`, `$2`…: SQLite takes a placeholder's text after the `$` for its name."""
    return {
        str(position): date_text(value) if isinstance(value, datetime) else value
        for position, value in enumerate(arguments, start=1)
    }


async def connect(path: Path, *, mode: str, busy_timeout_s: float) -> GuardedConnection:
    """Open the file: `mode` is `ro`, `rw`, or `rwc` to create it. Raises StatementFailure with path and reason.

    Statements commit by themselves. A commit is on the disk before it is acknowledged: WAL's usual
    `synchronous=NORMAL` may lose the last commits at a power cut.
    """
    connection = await _open(_address(path, mode), path, busy_timeout_s)
    try:
        with file_failures(path):
            await connection.settle(path)
            connection.row_factory = sqlite3.Row
            await connection.execute_fetchall("PRAGMA synchronous = FULL")
            # The first read of the header: a file that is no database shows here, not at the first request.
            await connection.execute_fetchall("PRAGMA schema_version")
    except StatementFailure as failure:
        await close_quietly(connection)
        if (failure.sqlstate or "").startswith("SQLITE_READONLY"):
            raise _cannot_share_memory(path) from failure
        raise
    except BaseException:
        await close_quietly(connection)
        raise
    return connection


async def _open(address: str, path: Path, busy_timeout_s: float) -> GuardedConnection:
    """Open the file; after a failure end the connection's thread before raising, which aiosqlite leaves running with a
    warning."""
    failures: list[sqlite3.Error] = []

    def connector() -> sqlite3.Connection:
        try:
            return sqlite3.connect(address, uri=True, isolation_level=None, timeout=busy_timeout_s)
        except sqlite3.Error as error:
            failures.append(error)
            return sqlite3.connect(":memory:")

    with anyio.CancelScope(shield=True):
        connection = GuardedConnection(connector, iter_chunk_size=64)
        await connection
    if failures:
        await close_quietly(connection)
        with file_failures(path):
            raise failures[0]
    return connection


def _address(path: Path, mode: str) -> str:
    return f"file:{quote(str(path.absolute()))}?mode={mode}"


async def close_quietly(connection: aiosqlite.Connection) -> None:
    """Close, also while being cancelled; an open transaction is rolled back by it."""
    with anyio.CancelScope(shield=True):
        try:
            await connection.close()
        except (sqlite3.Error, ValueError):
            return


@contextmanager
def file_failures(path: Path) -> Iterator[None]:
    """Turn every exception of SQLite and of its threads into a StatementFailure that names the file and the reason."""
    try:
        yield
    except sqlite3.Error as error:
        state, text = getattr(error, "sqlite_errorname", None), str(error)
        constraint = CONSTRAINT.search(text)
        raise StatementFailure(
            _explain(text, state, path),
            sqlstate=state,
            constraint=constraint.group(1) if constraint else None,
            raised=state == "SQLITE_CONSTRAINT_TRIGGER",
        ) from error
    except (UnicodeEncodeError, OverflowError) as error:
        raise StatementFailure(f"SQLite cannot store the value: {error}", sqlstate="SQLITE_MISMATCH") from error
    except OSError as error:
        raise StatementFailure(f"'{path}': {error.strerror or error}", sqlstate="SQLITE_CANTOPEN") from error
    except ValueError as error:
        # aiosqlite's word for a connection that was closed under the caller.
        raise StatementFailure(f"'{path}' was closed: {error}", sent=False) from error


def _cannot_share_memory(path: Path) -> StatementFailure:
    """Nothing was written yet, and all the same a write was refused."""
    return StatementFailure(
        f"'{path}' cannot be opened: it is in WAL mode, and the folder '{path.absolute().parent}' is read-only for "
        "this user; readers, too, need shared memory in a file there. Let the service's user write the folder.",
        sqlstate="SQLITE_CANTOPEN",
    )


def _explain(text: str, state: str | None, path: Path) -> str:
    name = state or ""
    if name == "SQLITE_NOTADB":
        return f"'{path}' is not a SQLite database ({text}). Give the right path, or move the file away for a new one."
    if name.startswith("SQLITE_CORRUPT"):
        return (
            f"'{path}' is damaged ({text}). Stop the service, look with `PRAGMA integrity_check`, and restore a backup."
        )
    if name.startswith("SQLITE_CANTOPEN"):
        return f"'{path}' cannot be opened: {_why_not(path, text)}"
    if name.startswith(("SQLITE_READONLY", "SQLITE_PERM")):
        return f"'{path}' cannot be written: the file or its folder is read-only ({text})"
    if name.startswith("SQLITE_FULL"):
        return f"'{path}' cannot grow: the disk is full ({text})"
    if name.startswith("SQLITE_IOERR"):
        return f"'{path}' cannot be read or written: its disk reports an error ({text})"
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return f"'{path}' is locked by another process or connection ({text})"
    return text


def _why_not(path: Path, text: str) -> str:
    try:
        if path.is_dir():
            return "it is a folder"
        if not path.parent.is_dir():
            return f"the folder '{path.parent}' does not exist"
        if not path.exists():
            return f"the file does not exist and cannot be created ({text})"
    except OSError as error:  # a name that is too long, or a folder that this user may not enter
        return error.strerror or text
    return text
