"""The `environments-store` service: its actions and events over the store."""

import os
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, NoReturn

import anyio
import msgspec

from broker import Context, Service, action, event
from services.environments_store.config import load_config
from services.environments_store.database.base import Database
from services.environments_store.database.connect import open_database
from services.environments_store.database.location import masked
from services.environments_store.defaults import DatabaseSettings, MigrationBudgets, StoreLimits
from services.environments_store.errors import DatabaseUnavailableError
from services.environments_store.listing import ListRequest
from services.environments_store.model import RECORD_FIELDS, RecordField
from services.environments_store.records import Written
from services.environments_store.schema.migrator import Migrator
from services.environments_store.store import Store

__all__ = ["EnvironmentsStore"]

Limit = Annotated[int, msgspec.Meta(ge=1)]
Fields = Annotated[list[RecordField], msgspec.Meta(min_length=1)]
Days = Annotated[int, msgspec.Meta(ge=0, le=36_500)]

_RECENT_DAYS = StoreLimits().recent_days
_SUCCESS = {"success": True}


class EnvironmentsStore(Service):
    """Soft-delete CRUD over PostgreSQL or SQLite. Before it is announced it connects, inspects the schema and migrates.

    `database_url` is that of the environment (`DATABASE_URL`) when it is not given. The database may come up after the
    service: it is waited for, `start_timeout_s` at most. Raises ConfigError for a URL that cannot work.
    """

    name = "environments-store"

    def __init__(
        self,
        database_url: str | None = None,
        *,
        start_timeout_s: float | None = None,
        limits: StoreLimits | None = None,
        settings: DatabaseSettings | None = None,
        budgets: MigrationBudgets | None = None,
    ) -> None:
        self._url = database_url or load_config(os.environ).database_url
        self._limits = limits or StoreLimits()
        self._start_timeout_s = self._limits.start_timeout_s if start_timeout_s is None else start_timeout_s
        self._budgets = budgets
        self._database: Database = open_database(self._url, settings)
        self._migrator: Migrator
        self._store: Store

    async def started(self) -> None:
        """Raises DatabaseUnavailableError when the database could not be reached within the start timeout."""
        self._migrator = Migrator(
            self._url, self._database, node_id=self.broker.node_id, logger=self.logger, budgets=self._budgets
        )
        self._store = Store(
            self._database,
            lambda: self._migrator.status,
            report_missing_column=self._migrator.report_missing_column,
            logger=self.logger,
            limits=self._limits,
        )
        try:
            await self._connect()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._database.close()
            raise
        self.start_soon(self._migrator.run)

    async def stopped(self) -> None:
        await self._database.close()

    @action
    async def create(self, ctx: Context, environment: msgspec.Raw) -> msgspec.Raw:
        return await self._write(ctx, lambda: self._store.create(bytes(environment), ctx.reply_limit, ctx.reply_size))

    @action
    async def get(self, ctx: Context, uuid: str) -> msgspec.Raw:
        return msgspec.Raw(await self._store.get(uuid))

    @action
    async def list(
        self, ctx: Context, limit: Limit | None = None, after: str | None = None, fields: Fields | None = None
    ) -> msgspec.Raw:
        return msgspec.Raw(await self._store.list(_request(ctx, limit, after, fields)))

    @action(name="listDeleted")
    async def list_deleted(
        self, ctx: Context, limit: Limit | None = None, after: str | None = None, fields: Fields | None = None
    ) -> msgspec.Raw:
        return msgspec.Raw(await self._store.list_deleted(_request(ctx, limit, after, fields)))

    @action(rename={"if_hash": "ifHash"})
    async def update(
        self, ctx: Context, uuid: str, environment: msgspec.Raw, if_hash: str | None = None
    ) -> msgspec.Raw:
        return await self._write(
            ctx, lambda: self._store.update(uuid, bytes(environment), if_hash, ctx.reply_limit, ctx.reply_size)
        )

    @action
    async def remove(self, ctx: Context, uuid: str) -> dict[str, bool]:
        await self._write(ctx, lambda: self._store.remove(uuid))
        return _SUCCESS

    @action
    async def restore(self, ctx: Context, uuid: str) -> dict[str, bool]:
        await self._write(ctx, lambda: self._store.restore(uuid))
        return _SUCCESS

    @action(name="permanentDelete")
    async def permanent_delete(self, ctx: Context, uuid: str, force: bool = False) -> dict[str, bool]:
        await self._write(ctx, lambda: self._store.permanent_delete(uuid, force))
        return _SUCCESS

    @action(rename={"recent_days": "recentDays"})
    async def stats(self, ctx: Context, recent_days: Days = _RECENT_DAYS) -> dict[str, int]:
        return await self._store.stats(recent_days)

    @action
    async def schema(self, ctx: Context) -> dict[str, Any]:
        status = self._migrator.status
        answer: dict[str, Any] = {
            "state": status.state,
            "dialect": status.dialect,
            "steps": [msgspec.to_builtins(step) for step in status.steps],
        }
        if status.reason is not None:
            answer["reason"] = status.reason
        if status.error is not None:
            answer["error"] = status.error
        return answer

    @event("environments.sync")
    async def on_sync(self, ctx: Context) -> None:
        """Accepted, with nothing to do: every write that was answered is stored."""

    async def _write(self, ctx: Context, write: Callable[[], Awaitable[Written]]) -> msgspec.Raw:
        """Write, then tell every node. Once begun it is finished: a stored change is told, its caller gone or not."""
        with anyio.CancelScope(shield=True):
            written = await write()
            if written.change is not None:
                await ctx.broadcast("environments.updated", msgspec.to_builtins(written.change))
        return msgspec.Raw(written.record)

    async def _connect(self) -> None:
        deadline = anyio.current_time() + self._start_timeout_s
        while True:
            try:
                await self._database.open()
                await self._migrator.prepare()
                return
            except DatabaseUnavailableError as error:
                if anyio.current_time() + self._limits.connect_pause_s > deadline:
                    self._give_up(error)
                self.logger.warning("The database %s cannot be reached, trying again: %s", masked(self._url), error)
            await anyio.sleep(self._limits.connect_pause_s)

    def _give_up(self, error: DatabaseUnavailableError) -> NoReturn:
        raise DatabaseUnavailableError(
            f"The database {masked(self._url)} could not be reached within {self._start_timeout_s:g} s: {error}"
        ) from error


def _request(ctx: Context, limit: int | None, after: str | None, fields: "list[RecordField] | None") -> ListRequest:
    return ListRequest(limit, after, tuple(fields) if fields else RECORD_FIELDS, ctx.reply_limit, ctx.reply_size)
