"""Backups that are read back before they count as such."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from services.environments_store.errors import OperationError
from services.environments_store.operations.opening import require_table
from services.environments_store.schema.check import look

__all__ = ["Backup", "back_up", "new_file"]


class Backup(msgspec.Struct, frozen=True, kw_only=True):
    """`tables` has the number of rows of each, as counted in the backup; `restore` is the command that restores it."""

    file: str
    bytes: int
    tables: dict[str, int]
    restore: str


async def back_up(
    url: str, file: Path, *, overwrite: bool = False, programs: Path | None = None, label: str = "DATABASE_URL"
) -> Backup:
    """Write a backup beside `file`, check it, and only then rename it to `file`.

    PostgreSQL: `pg_dump` in custom format of both tables, with the schema; SQLite: `VACUUM INTO`. `programs` is the
    folder of pg_dump and pg_restore when they are not on PATH. Raises OperationError; then no file is left, and an
    older one of that name is unchanged.
    """
    seen = await look(url)
    require_table(seen)
    with new_file(file, overwrite=overwrite, never=seen.location.path) as partial:
        if seen.location.path is not None:
            from services.environments_store.operations.backup_sqlite import vacuum_into

            tables = await vacuum_into(seen.location.path, partial)
            restore = f"stop every node, then: cp '{file}' '{seen.location.path}' (and remove its -wal and -shm files)"
        else:
            from services.environments_store.operations.backup_postgres import dump

            tables = await dump(url, seen.found, partial, programs)
            restore = f"pg_restore --clean --if-exists --single-transaction -d \"${label}\" '{file}'"
        size = partial.stat().st_size
    return Backup(file=str(file), bytes=size, tables=tables, restore=restore)


@contextlib.contextmanager
def new_file(
    file: Path, *, overwrite: bool, never: Path | None = None, option: str | None = "--force"
) -> Iterator[Path]:
    """An empty file beside `file`, readable by its owner alone; it is renamed to `file` at the end of the block, or
    removed when the block raises.

    `option` is the command's option for replacing a file, if it has one. Raises OperationError for a file that exists
    already, for a folder that cannot be written to, and for the file that must `never` be replaced.
    """
    partial = file.parent / f"{file.name}.partial"  # with_name refuses "." and "/"
    try:
        if file.is_dir():
            raise OperationError(f"'{file}' is a folder. Give the name of a file.")
        if never is not None and file.exists() and file.samefile(never):
            raise OperationError(f"'{file}' is the database itself. Give the backup another name.")
        if file.exists() and not overwrite:
            replacing = f", or pass {option} to replace it" if option else ""
            raise OperationError(f"'{file}' exists already. Choose another name{replacing}.")
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        partial.touch(mode=0o600, exist_ok=False)
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(file)
    except OSError as error:
        raise OperationError(f"'{file}' cannot be written: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
