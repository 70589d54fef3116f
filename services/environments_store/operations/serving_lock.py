"""A shared advisory lock that each serving node holds, so that no rollback drops the column while it serves.

The lock has a connection of its own, because an idle pool has none, and PostgreSQL releases it however the node ends.
It is not taken behind a transaction pooler, where no session belongs to a node, nor where the role has too few
connections to spare one from calls. SQLite needs none: a node in WAL mode keeps a lock on the file itself.
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
"""One for calls, one for the migration, and this one."""
HOLD = "SELECT pg_try_advisory_lock_shared(hashtextextended($1, 0))"


def serving_key(found: Inspection) -> str:
    """The key of a table: its nodes hold it shared, a rollback exclusively."""
    return f"environments-store/serving/{found.schema}.{found.table}"


class ServingLock:
    """Holds the lock for as long as `run` runs."""

    def __init__(self, url: str, node_id: str, logger: logging.Logger, limits: OperationLimits | None = None) -> None:
        self._url = url
        self._node_id = node_id
        self._logger = logger
        self._limits = limits or OperationLimits()
        self._released = anyio.Event()

    def release(self) -> None:
        """Close the connection for a while, because calls wait for one."""
        self._released.set()

    async def run(self) -> None:
        """Hold the lock until cancelled, in the node's task group; return at once where no lock is taken."""
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
                self._logger.debug("The connection that holds the serving lock was lost: %s", failure)
            crowded, self._released = self._released.is_set(), anyio.Event()
            await anyio.sleep(self._limits.serving_every_s if crowded else self._limits.serving_retry_s)

    def _is_one_too_many(self, limit: int | None) -> bool:
        if limit is None or limit >= FEWEST_CONNECTIONS:
            return False
        self._logger.warning(
            "The role or the database allows only %s: none is left to hold the serving lock, so"
            " `migrate rollback` detects this node only while it answers calls",
            counted(limit, "connection", "connections"),
        )
        return True

    async def _connect(self) -> PostgresSession:
        budgets = MigrationBudgets()
        return await PostgresSession.connect(
            self._url,
            application_name=f"{APPLICATION} {self._node_id}"[:63],  # PostgreSQL truncates a longer name
            connect_timeout_s=budgets.connect_timeout_s,
            answer_timeout_s=budgets.statement_timeout_s,
        )

    async def _hold(self, session: PostgresSession) -> None:
        """Hold the lock until the connection is lost or released; retry while a rollback holds it."""
        held = False
        while not self._released.is_set():
            if not held:
                found = await inspect(session)
                # A primary cannot see the locks of a standby.
                held = not found.standby and bool(await session.fetch_value(HOLD, serving_key(found)))
            with anyio.move_on_after(self._limits.serving_every_s if held else self._limits.serving_retry_s):
                await self._released.wait()
            await session.run("SELECT 1")
