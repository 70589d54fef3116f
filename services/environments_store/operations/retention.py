"""The automatic purge: daily, at a random time of each node, where a retention is configured."""

import logging
import random
from collections.abc import Awaitable, Callable

import anyio

from broker.errors import MoleculerError
from services.environments_store.database.base import Database
from services.environments_store.defaults import OperationLimits
from services.environments_store.model import Change
from services.environments_store.operations.purge import Purge
from services.environments_store.schema.names import counted
from services.environments_store.shape import TableShape

__all__ = ["Retention"]


class Retention:
    """Purges what was deleted more than `days` ago. Nodes that purge at the same time share the work."""

    def __init__(
        self,
        days: int,
        database: Database,
        shape: TableShape,
        tell: Callable[[list[Change]], Awaitable[None]],
        logger: logging.Logger,
        limits: OperationLimits | None = None,
    ) -> None:
        self._days = days
        self._database = database
        self._shape = shape
        self._tell = tell
        self._logger = logger
        self._limits = limits or OperationLimits()
        self._random = random.Random()  # jitter between nodes, no secret

    async def run(self) -> None:
        """Purge daily until cancelled. To be run in the node's task group."""
        await anyio.sleep(self._random.uniform(0, self._limits.retention_first_s))
        while True:
            await self._purge()
            await anyio.sleep(self._random.uniform(0.9, 1.1) * self._limits.retention_every_s)

    async def _purge(self) -> None:
        """Purge once. A failure is only logged: the next purge retries."""
        if not self._shape.status.soft_delete or not self._shape.status.writable:
            return
        purged = 0
        try:
            purge = await Purge.older_than(self._days, self._database, self._shape, self._limits)
            async for changes in purge.batches():
                purged += len(changes)
                await self._tell(changes)
        except MoleculerError as error:
            many = counted(purged, "environment", "environments")
            self._logger.warning("The automatic purge stopped after %s: %s", many, error)
            return
        if purge.kept:
            named = ", ".join(f"{one.uuid} ({one.by})" for one in purge.examples)
            self._logger.warning(
                "The automatic purge could not delete %s: %s",
                counted(purge.kept, "environment", "environments"),
                named,
            )
        if purged:
            self._logger.info(
                "Purged %s, deleted more than %s ago (RETENTION_DAYS)",
                counted(purged, "environment", "environments"),
                counted(self._days, "day", "days"),
            )
