"""What else happens to the SQLite file, and whether it prevents a migration now."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import anyio

from services.environments_store.database.failures import StatementFailure, service_error
from services.environments_store.database.sqlite_connection import close_quietly, connect
from services.environments_store.schema.inspect_sqlite import query
from services.environments_store.schema.inspection import Inspection
from services.environments_store.schema.status import Finding

__all__ = ["file_findings"]

_MEBIBYTE = 1_048_576


async def file_findings(path: Path, found: Inspection) -> list[Finding]:
    """Whether another process writes to the file now, and whether the disk has room for a backup."""
    if not await anyio.Path(path).exists():
        return []
    return [*await _writers(path, found), *await anyio.to_thread.run_sync(lambda: list(_disk(path, found)))]


async def _writers(path: Path, found: Inspection) -> list[Finding]:
    """Take the write lock and release it at once, to see whether another process holds it."""
    if not found.writable:
        return []
    try:
        connection = await connect(path, mode="rw", busy_timeout_s=0)
        try:
            await query(connection, path, "BEGIN IMMEDIATE")
            await query(connection, path, "ROLLBACK")
        finally:
            await close_quietly(connection)
    except StatementFailure as failure:
        if not (failure.sqlstate or "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise service_error(failure, write=False) from failure
        return [
            Finding(
                level="info" if found.soft_delete else "warning",
                subject="blocker",
                message="Another process is writing to the file: adding the column has to wait for it.",
                remedy="End it, or wait: the service retries by itself.",
            )
        ]
    return []


def _disk(path: Path, found: Inspection) -> Iterator[Finding]:
    free, size = shutil.disk_usage(path.parent).free, path.stat().st_size
    short = free < size
    if found.index is not None and not short:
        return
    yield Finding(
        level="warning" if short else "info",
        subject="disk",
        message=f"The disk has {free // _MEBIBYTE:,} MiB free; the file, and so a backup of it, takes"
        f" {size / _MEBIBYTE:,.1f} MiB.",
        remedy="Free some space, or back up to another disk." if short else None,
    )
