"""Whether a path still names the file that was opened.

SQLite keeps using an open file that has been moved, deleted or replaced, so acknowledged writes would be lost. A second
connection by the same path would open another file with the `-wal` of the first, and copy that into it when closed.
"""

import os
from pathlib import Path

from services.environments_store.database.failures import MOVED, StatementFailure

__all__ = ["FilePlace"]


class FilePlace:
    """The file that `path` names when this is made. Raises OSError when that cannot be told."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity = _identity(path)

    def check(self) -> None:
        """Raises StatementFailure, with what to do, when the path names no file or another one now."""
        try:
            identity = _identity(self._path)
        except OSError:
            return  # for example a folder without access, which says nothing about the file
        if identity == self._identity and identity is not None:
            return
        what = "is gone: it was moved or deleted" if identity is None else "was replaced by another file"
        raise StatementFailure(
            f"'{self._path}' {what} while the service had it open. Put it back; or stop every node, and start on"
            " another file, without the -wal and -shm files of this one.",
            sqlstate=MOVED,
        )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino
