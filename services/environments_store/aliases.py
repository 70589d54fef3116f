"""The uuids in `environmentUuid` that differ from their row's id, as in adopted tables.

Such a table does not enforce that both columns are equal, so a uuid that is not an id is also searched in the other
column. That has no index: without this cache every query for an unknown environment would scan the table.
"""

import anyio

from services.environments_store.database.base import Database
from services.environments_store.defaults import StoreLimits

__all__ = ["Aliases"]

_UUID = 'CAST("environmentUuid" AS text)'
# The two columns of a table that was changed by hand may have different types.
ALL = f"SELECT DISTINCT {_UUID} AS uuid FROM environments WHERE {_UUID} <> CAST(id AS text) LIMIT $1"


class Aliases:
    """A cache of them, read by one scan and valid for a while, in which new rows are found only by id. If there are too
    many to cache, each query scans the table."""

    def __init__(self, database: Database, limits: StoreLimits) -> None:
        self._database = database
        self._limits = limits
        self._lock = anyio.Lock()
        self._known: frozenset[str] | None = None
        self._known_until = 0.0

    async def may_name(self, uuid: str) -> bool:
        """Whether the other column may contain this uuid."""
        async with self._lock:
            # Calls that waited for another's scan use its result.
            if anyio.current_time() >= self._known_until:
                rows = await self._database.fetch(ALL, self._limits.aliases + 1)
                self._known = frozenset(row["uuid"] for row in rows) if len(rows) <= self._limits.aliases else None
                self._known_until = anyio.current_time() + self._limits.aliases_s
        return self._known is None or uuid in self._known
