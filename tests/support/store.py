"""A store on a real table of each shape, for tests that hold on all of them."""

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from services.environments_store.database.base import Database
from services.environments_store.database.connect import open_database
from services.environments_store.defaults import StoreLimits
from services.environments_store.listing import ListRequest
from services.environments_store.schema.status import SchemaStatus
from services.environments_store.shape import TableShape
from services.environments_store.store import Store

__all__ = ["SHAPES", "Bench", "open_bench"]

_POSTGRESQL = (
    'CREATE TABLE environments (id VARCHAR(255), environment {json}, "environmentUuid" VARCHAR(255),'
    ' "timestamp" DECIMAL, "createdAt" TIMESTAMP WITH TIME ZONE NOT NULL,'
    ' "updatedAt" TIMESTAMP WITH TIME ZONE NOT NULL{deleted}, PRIMARY KEY (id))'
)
_SQLITE = (
    "CREATE TABLE `environments` (`id` VARCHAR(255) UNIQUE PRIMARY KEY, `environment` JSON,"
    " `environmentUuid` VARCHAR(255), `timestamp` DECIMAL, `createdAt` DATETIME NOT NULL,"
    " `updatedAt` DATETIME NOT NULL{deleted})"
)
SHAPES = {
    "sqlite": (
        _SQLITE.format(deleted=", `deletedAt` DATETIME DEFAULT NULL"),
        SchemaStatus(state="ready", dialect="sqlite", soft_delete=True),
    ),
    "sqlite without deletedAt": (
        _SQLITE.format(deleted=""),
        SchemaStatus(state="degraded", dialect="sqlite", reason="read-only", public="The file is read-only."),
    ),
    "postgresql": (
        _POSTGRESQL.format(json="JSON", deleted=', "deletedAt" TIMESTAMP WITH TIME ZONE DEFAULT NULL'),
        SchemaStatus(state="ready", dialect="postgresql", soft_delete=True),
    ),
    "postgresql with the guide's TIMESTAMP": (
        _POSTGRESQL.format(json="JSON", deleted=', "deletedAt" TIMESTAMP NULL DEFAULT NULL'),
        SchemaStatus(state="ready", dialect="postgresql", soft_delete=True, deleted_at_zone=False),
    ),
    "postgresql with jsonb": (
        _POSTGRESQL.format(json="JSONB", deleted=', "deletedAt" TIMESTAMP WITH TIME ZONE DEFAULT NULL'),
        SchemaStatus(state="ready", dialect="postgresql", soft_delete=True),
    ),
    "postgresql without deletedAt": (
        _POSTGRESQL.format(json="JSON", deleted=""),
        SchemaStatus(state="degraded", dialect="postgresql", reason="forbidden", public="The role is not the owner."),
    ),
}


class Bench:
    """A store, the database under it, and what a test changes and looks at."""

    def __init__(self, database: Database, status: SchemaStatus, limits: StoreLimits | None = None) -> None:
        self.database = database
        self.status = status
        self.missing_columns = 0
        self.store = self.store_on(database, limits)

    def store_on(self, database: Database, limits: StoreLimits | None = None) -> Store:
        """Another store on the same table, through a database that a test wraps."""
        return Store(
            database,
            TableShape(lambda: self.status, self._count_missing_column),
            logger=logging.getLogger("tests.store"),
            limits=limits,
        )

    def _count_missing_column(self) -> None:
        self.missing_columns += 1

    @property
    def is_sqlite(self) -> bool:
        return self.status.dialect == "sqlite"

    async def create(self, uuid: str, **members: Any) -> dict[str, Any]:
        written = await self.store.create(msgspec.json.encode({"uuid": uuid, **members}))
        record: dict[str, Any] = read(written.record)
        return record

    async def list(self, **request: Any) -> Any:
        return read(await self.store.list(ListRequest(**request)))

    async def list_deleted(self, **request: Any) -> Any:
        return read(await self.store.list_deleted(ListRequest(**request)))

    async def run(self, statement: str, *arguments: object) -> int:
        return await self.database.execute(statement, *arguments)

    async def stored_text(self, uuid: str) -> str:
        """The document as it lies in the table."""
        cast = "CAST(environment AS TEXT)" if self.is_sqlite else "environment::text"
        row = await self.database.fetch_one(f"SELECT {cast} AS stored FROM environments WHERE id = $1", uuid)
        assert row is not None
        return str(row["stored"])

    async def set_date(self, uuid: str, column: str, date: str) -> None:
        """Write a date given as `YYYY-MM-DD HH:MM:SS.mmm`, in UTC, in the form of the table."""
        if self.is_sqlite:
            await self.run(f"UPDATE environments SET {column} = $1 WHERE id = $2", f"{date} +00:00", uuid)
        else:
            kind = "timestamp" if column == "deletedAt" and not self.status.deleted_at_zone else "timestamptz"
            zone = "" if kind == "timestamp" else "+00"
            statement = f'UPDATE environments SET "{column}" = $1::text::{kind} WHERE id = $2'
            await self.run(statement, f"{date}{zone}", uuid)


def read(record: bytes) -> Any:
    """JSON as a caller reads it."""
    return json.loads(record)


@asynccontextmanager
async def open_bench(shape: str, url: str, limits: StoreLimits | None = None) -> AsyncIterator[Bench]:
    """An empty table of this shape in a fresh database, with a store on it."""
    statement, status = SHAPES[shape]
    database = open_database(url)
    await database.open()
    try:
        await database.execute(statement)
        yield Bench(database, status, limits)
    finally:
        await database.close()
