"""A node that serves says so in PostgreSQL, so that nobody takes the column away under it.

A shared advisory lock, held by a connection of its own, is gone with the node however it ends. A pool has no connection
without calls, and behind a transaction pooler no session belongs to a node: there nothing is said. Connections that
answer calls are worth more: where there are too few, this one is given up. A SQLite file needs none of it: a node in
WAL mode holds a lock on the file itself for as long as it has it open.
"""

import logging

import anyio

from services.environments_store.database.failures import StatementFailure
from services.environments_store.database.location import read_location
from services.environments_store.database.postgres_session import PostgresSession
from services.environments_store.defaults import MigrationBudgets, OperationLimits
from services.environments_store.schema.inspect_postgres import inspect
from services.environments_store.schema.inspection import Inspection
from services.environments_store.schema.names import counted

__all__ = ["APPLICATION", "ServingLock", "serving_key"]

APPLICATION = "environments-store serving"
FEWEST_CONNECTIONS = 3
"""Of a role that has one for calls and one for the migration, too."""
HOLD = "SELECT pg_try_advisory_lock_shared(hashtextextended($1, 0))"


def serving_key(found: Inspection) -> str:
    """One key for each table, held in shared mode by its nodes and exclusively by a rollback."""
    return f"environments-store/serving/{found.schema}.{found.table}"


class ServingLock:
    """Says that this node serves, for as long as `run` runs."""

    def __init__(self, url: str, node_id: str, logger: logging.Logger, limits: OperationLimits | None = None) -> None:
        self._url = url
        self._node_id = node_id
        self._logger = logger
        self._limits = limits or OperationLimits()
        self._released = anyio.Event()

    def release(self) -> None:
        """Leave the connection to calls, which have none, for a while."""
        self._released.set()

    async def run(self) -> None:
        """Returns at once where nothing can be said. To be run in the node's task group."""
        if read_location(self._url).dialect == "sqlite":
            return
        while True:
            try:
                session = await self._connect()
                try:
                    if session.pooled or self._is_one_too_many(session.server.connection_limit):
                        return
                    await self._hold(session)
                finally:
                    await session.close()
            except StatementFailure as failure:
                self._logger.debug("The connection that says that this node serves was lost: %s", failure)
            crowded, self._released = self._released.is_set(), anyio.Event()
            await anyio.sleep(self._limits.serving_every_s if crowded else self._limits.serving_retry_s)

    def _is_one_too_many(self, limit: int | None) -> bool:
        if limit is None or limit >= FEWEST_CONNECTIONS:
            return False
        self._logger.warning(
            "The role or the database allows %s: none is left to say that this node serves, so that"
            " `migrate rollback` finds it only while it answers calls",
            counted(limit, "connection", "connections"),
        )
        return True

    async def _connect(self) -> PostgresSession:
        budgets = MigrationBudgets()
        return await PostgresSession.connect(
            self._url,
            application_name=f"{APPLICATION} {self._node_id}"[:63],  # all that PostgreSQL keeps of it
            connect_timeout_s=budgets.connect_timeout_s,
            answer_timeout_s=budgets.statement_timeout_s,
        )

    async def _hold(self, session: PostgresSession) -> None:
        """Until the connection is lost or given up. While a rollback runs the lock is taken, and is tried again."""
        held = False
        while not self._released.is_set():
            if not held:
                found = await inspect(session)
                # A standby's locks are its own: they would tell a primary nothing.
                held = not found.standby and bool(await session.fetch_value(HOLD, serving_key(found)))
            with anyio.move_on_after(self._limits.serving_every_s if held else self._limits.serving_retry_s):
                await self._released.wait()
            await session.run("SELECT 1")
