"""Which uuids stand in `environmentUuid` of a row of another id, as rows of an adopted table may have it.

Nothing in such a table makes sure that both columns hold the same, so a uuid that is no id is looked for in the other
column too. That column has no index: every question for an environment that is not there would read the whole table.
"""

import anyio

from services.environments_store.database.base import Database
from services.environments_store.defaults import StoreLimits

__all__ = ["Aliases"]

_UUID = 'CAST("environmentUuid" AS text)'
# The two columns of a table that was changed by hand may have different types.
ALL = f"SELECT DISTINCT {_UUID} AS uuid FROM environments WHERE {_UUID} <> CAST(id AS text) LIMIT $1"


class Aliases:
    """They are read at once, by one pass over the table, and remembered for a while: rows of others that come meanwhile
    are found by their id alone until then. Where there are too many to remember, each question reads the table."""

    def __init__(self, database: Database, limits: StoreLimits) -> None:
        self._database = database
        self._limits = limits
        self._lock = anyio.Lock()
        self._known: frozenset[str] | None = None
        self._known_until = 0.0

    async def may_name(self, uuid: str) -> bool:
        """Whether it is worth looking for this uuid in the other column."""
        async with self._lock:
            # Many may have waited for the one that reads: they take what it found.
            if anyio.current_time() >= self._known_until:
                rows = await self._database.fetch(ALL, self._limits.aliases + 1)
                self._known = frozenset(row["uuid"] for row in rows) if len(rows) <= self._limits.aliases else None
                self._known_until = anyio.current_time() + self._limits.aliases_s
        return self._known is None or uuid in self._known
