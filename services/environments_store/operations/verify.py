"""Proof that the migration is complete, that the trash is read by its index, and that soft delete works."""

import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import msgspec

from broker.errors import MoleculerError
from services.environments_store.database.base import Database
from services.environments_store.defaults import MigrationBudgets, OperationLimits
from services.environments_store.errors import EnvironmentNotFoundError
from services.environments_store.operations.checklist import Check
from services.environments_store.operations.opening import Opened, open_table
from services.environments_store.queries import Listing
from services.environments_store.schema.index import next_action
from services.environments_store.schema.inspection import Inspection

__all__ = ["verify"]

_PAGE = 50  # rows, as a user interface shows
_UUID_CHARACTERS = 36  # a table may have room for a uuid alone


async def verify(url: str, logger: logging.Logger) -> tuple[Check, ...]:
    """Check column, index and speed, then run the guide's six steps on a temporary uuid, which is deleted at the end.

    Takes only the locks of reading and writing that row. Raises DatabaseError when there is no table.
    """
    async with open_table(url, logger, writes=True) as opened:
        found = opened.found
        checks = [_column(found), _index(found)]
        if found.soft_delete:
            checks += [await _speed(opened), *await _function(opened)]
        return tuple(checks)


def _column(found: Inspection) -> Check:
    column = found.deleted_at
    if column is None or not found.soft_delete:
        detail = "it is missing: run `environments-store migrate run`"
        if column is not None:
            detail = f"its type is {column.type}, which is not a timestamp"
        return Check(name="column", state="failed", detail=detail)
    if not found.deleted_at_zone:
        detail = f"{column.type}: served as UTC. `migrate check` prints the statements that add a time zone"
        return Check(name="column", state="warning", detail=detail)
    return Check(name="column", state="ok", detail=f"{column.name} {column.type}")


def _index(found: Inspection) -> Check:
    index = found.index
    if index is not None:
        return Check(name="index", state="ok", detail=f"{index.name}, valid{', of deleted rows' * index.partial}")
    invalid = [index.name for index in found.indexes if index.on_column and not index.valid]
    detail = f"{invalid[0]} is INVALID: no query uses it" if invalid else "there is no index on deletedAt"
    action = next_action(found, MigrationBudgets())
    advice = action.detail if action.kind == "leave" else "run `environments-store migrate run`"
    return Check(name="index", state="failed", detail=f"{detail}: {advice}")


async def _speed(opened: Opened) -> Check:
    """Whether a page of the trash is read by an index (the guide's own query lists live rows, which no index helps).

    The planner rightly scans a small table; then it is asked for its plan with scans disabled.
    """
    _, soft_delete = opened.shape.soft_delete("list")
    query = soft_delete.listing.first_light
    used = await _plan_of(opened.database, query, forced=False)
    names = {index.name for index in opened.found.indexes if index.serves}
    if names & used:
        return Check(name="speed", state="ok", detail=f"a page of the trash is read by {min(names & used)}")
    rows = opened.found.rows_estimate
    if rows < OperationLimits().small_table_rows and names & await _plan_of(opened.database, query, forced=True):
        detail = f"the table is small enough for a full scan; {min(names)} can be used when it grows"
        return Check(name="speed", state="ok", detail=detail)
    advice = "run `ANALYZE environments`" if names else "there is no index for it"
    return Check(name="speed", state="failed", detail=f"a page of the trash scans the whole table: {advice}")


async def _plan_of(database: Database, query: str, *, forced: bool) -> set[str]:
    """The indexes that the plan for a page of the trash uses."""
    if database.dialect == "sqlite":
        rows = await database.fetch(f"EXPLAIN QUERY PLAN {query}", _PAGE)
        return {word for row in rows for word in str(row["detail"]).split()}
    async with database.transaction() as connection:
        if forced:
            await connection.execute("SET LOCAL enable_seqscan = off")
            await connection.execute("SET LOCAL enable_bitmapscan = off")
        row = await connection.fetch_one(f"EXPLAIN (FORMAT JSON) {query}", _PAGE)
    return set() if row is None else set(_index_names(json.loads(row[0])))


def _index_names(plan: Any) -> list[str]:
    if isinstance(plan, list):
        return [name for one in plan for name in _index_names(one)]
    if isinstance(plan, dict):
        own = [plan["Index Name"]] if "Index Name" in plan else []
        return own + [name for one in plan.values() for name in _index_names(one)]
    return []


async def _function(opened: Opened) -> list[Check]:
    uuid = f"verify-{uuid4().hex}"[:_UUID_CHARACTERS]
    checks: list[Check] = []
    steps: tuple[tuple[str, str, Callable[[], Awaitable[bool]]], ...] = (
        ("create", "it is stored", lambda: _create(opened, uuid)),
        ("remove", "it is deleted", lambda: _remove(opened, uuid)),
        ("list", "it is not listed", lambda: _listed(opened, uuid, live=False)),
        ("listDeleted", "it is in the trash", lambda: _in_trash(opened, uuid)),
        ("restore", "it is restored", lambda: _restore(opened, uuid)),
        ("list again", "it is listed again", lambda: _listed(opened, uuid, live=True)),
    )
    try:
        for name, shows, step in steps:
            try:
                holds = await step()
                detail = shows if holds else f"NOT true: {shows}"
            except MoleculerError as error:
                holds, detail = False, str(error)
            checks.append(Check(name=name, state="ok" if holds else "failed", detail=detail))
            if not holds:
                break
    finally:
        checks.append(await _clean_up(opened, uuid))
    return checks


async def _create(opened: Opened, uuid: str) -> bool:
    document = {"uuid": uuid, "name": "A throw-away environment of `environments-store migrate verify`"}
    written = await opened.store.create(msgspec.json.encode(document))
    read = await opened.store.get(uuid)
    return bool(written.record == read and msgspec.json.decode(read)["environment"] == document)


async def _remove(opened: Opened, uuid: str) -> bool:
    if (await opened.store.remove(uuid)).change is None:
        return False
    try:
        await opened.store.get(uuid)
    except EnvironmentNotFoundError:
        return True
    return False


async def _restore(opened: Opened, uuid: str) -> bool:
    return (await opened.store.restore(uuid)).change is not None


async def _listed(opened: Opened, uuid: str, *, live: bool) -> bool:
    queries = opened.shape.queries()
    return await _contains(opened.database, queries.listing, queries.no_limit, uuid) == live


async def _in_trash(opened: Opened, uuid: str) -> bool:
    queries, soft_delete = opened.shape.soft_delete()
    return await _contains(opened.database, soft_delete.listing, queries.no_limit, uuid)


async def _contains(database: Database, listing: Listing, no_limit: int | None, uuid: str) -> bool:
    """Whether the list contains it; the database searches, because the list may be long."""
    query = f"SELECT id FROM ({listing.first_light}) AS listed WHERE id = $2"
    return await database.fetch_one(query, no_limit, uuid) is not None


async def _clean_up(opened: Opened, uuid: str) -> Check:
    try:
        await opened.store.permanent_delete(uuid, force=True)
    except EnvironmentNotFoundError:
        return Check(name="clean up", state="ok", detail="nothing was stored")
    except MoleculerError as error:
        return Check(name="clean up", state="failed", detail=f"'{uuid}' may still be in the table: {error}")
    return Check(name="clean up", state="ok", detail="it is permanently deleted")
