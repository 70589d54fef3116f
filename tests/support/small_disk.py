"""Disks that are really full: a small tmpfs where this user may mount one, and everywhere a limit of the kernel's.

Both end a write in its middle, which PostgreSQL and SQLite tell as a full disk.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.postgres import PostgresServer

__all__ = ["SmallDisk", "limit_files", "may_mount", "small_disk", "small_folder"]

_SIZE_KB = 32_768
_LEFT_KB = 64
_CAP_SYS_ADMIN = 1 << 21
_FILE_LIMIT = 1_048_576 + 4_096
"""Just above a WAL segment of 1 MB, and no multiple of a page: the last page that fits is written by half."""
_LIMIT = """
import os, resource, sys
pid, limit, gid, uid = map(int, sys.argv[1:])
if os.getuid() != uid:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)  # everybody may lower the limits of his own processes
resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
"""


def may_mount() -> bool:
    """Whether the kernel lets this process mount a file system."""
    status = Path("/proc/self/status")
    if not status.exists():
        return False
    rights = next(line for line in status.read_text().splitlines() if line.startswith("CapEff:"))
    return bool(int(rights.split()[1], 16) & _CAP_SYS_ADMIN)


class SmallDisk:
    """Made by `small_folder` and `small_disk`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self, *, left_kb: int = _LEFT_KB) -> None:
        room = os.statvfs(self.folder)
        self._filler.write_bytes(bytes(room.f_bavail * room.f_frsize - left_kb * 1024))

    def free(self) -> None:
        self._filler.unlink()


@contextmanager
def small_folder(user: tuple[int, int] | None = None) -> Iterator[SmallDisk]:
    """A folder of `user` on a disk of its own, which is taken away after the block."""
    folder = Path(tempfile.mkdtemp(prefix="environments-store-disk-"))
    uid, gid = user or (os.getuid(), os.getgid())
    options = f"size={_SIZE_KB}k,uid={uid},gid={gid},mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
        folder.rmdir()


@contextmanager
def small_disk(server: PostgresServer) -> Iterator[SmallDisk]:
    """What is made in the database `postgres` from now on goes to a disk of its own. Ends the server after the block,
    since the disk is taken away."""
    with small_folder(server.user) as small:
        try:
            server.run_sql(f"CREATE TABLESPACE small LOCATION '{small.folder}'")
            server.run_sql("ALTER DATABASE postgres SET default_tablespace = 'small'")
            yield small
        finally:
            server.stop()


def limit_files(server: PostgresServer, pid: int) -> None:
    """No file that this process of the server writes may grow above a megabyte from now on.

    Its WAL must fit as well: make the server with `wal_segment_mb=1`.
    """
    uid, gid = server.user or (os.getuid(), os.getgid())
    subprocess.run([sys.executable, "-c", _LIMIT, *map(str, (pid, _FILE_LIMIT, gid, uid))], check=True)
