"""The `environments-store` service: its actions and events over the store."""

import math
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from types import MappingProxyType
from typing import Annotated, Any, NoReturn

import anyio
import anyio.lowlevel
import msgspec

from broker import Context, MoleculerError, Service, action, event
from broker.errors import RequestTimeoutError, ValidationError
from services.environments_store.config import load_config
from services.environments_store.database.base import Database
from services.environments_store.database.connect import open_database
from services.environments_store.database.location import masked
from services.environments_store.defaults import DatabaseSettings, MigrationBudgets, OperationLimits, StoreLimits
from services.environments_store.document import invalid
from services.environments_store.errors import DatabaseUnavailableError
from services.environments_store.listing import ListRequest
from services.environments_store.model import RECORD_FIELDS, Change, RecordField
from services.environments_store.operations.exporting import Export
from services.environments_store.operations.importing import Import, OnConflict
from services.environments_store.operations.line_files import spooled_lines
from services.environments_store.operations.purge import Purge, check_age
from services.environments_store.operations.retention import Retention
from services.environments_store.operations.serving_lock import ServingLock
from services.environments_store.records import Written
from services.environments_store.schema.migrator import Migrator
from services.environments_store.shape import TableShape
from services.environments_store.store import Store

__all__ = ["EnvironmentsStore"]

Limit = Annotated[int, msgspec.Meta(ge=1, le=StoreLimits().list_limit)]
Fields = Annotated[list[RecordField], msgspec.Meta(min_length=1)]
FieldsOrText = Fields | str | None  # `id,hash`, as a query over HTTP has it
Days = Annotated[int, msgspec.Meta(ge=0, le=36_500)]
BatchSize = Annotated[int, msgspec.Meta(ge=1, le=OperationLimits().purge_batch_max)]

_RECENT_DAYS = StoreLimits().recent_days
_PURGE_DAYS = OperationLimits().purge_days
_SUCCESS = {"success": True}


class EnvironmentsStore(Service):
    """Soft-delete CRUD over PostgreSQL or SQLite. Before it is announced it connects, inspects the schema and migrates.

    Without `database_url` the settings are those of the environment (`DATABASE_URL`, `DATABASE_POOL_SIZE`,
    `RETENTION_DAYS`). The database may come up after the service: it is waited for, `start_timeout_s` at most. With
    `retention_days`, what has been in the trash for longer is purged daily. Where the table lies in another schema than
    the service looks in, none is made but with `create_table`. Raises ConfigError for a URL that cannot work.
    """

    name = "environments-store"
    hooks = MappingProxyType({"error": {"*": "_publish"}})

    def __init__(
        self,
        database_url: str | None = None,
        *,
        start_timeout_s: float | None = None,
        limits: StoreLimits | None = None,
        settings: DatabaseSettings | None = None,
        budgets: MigrationBudgets | None = None,
        operations: OperationLimits | None = None,
        retention_days: int | None = None,
        create_table: bool = False,
    ) -> None:
        if not database_url:
            config = load_config(os.environ)
            database_url, retention_days = config.database_url, retention_days or config.retention_days
            settings = settings or DatabaseSettings(pool_size=config.database_pool_size)
        self._url = database_url
        self._retention_days = retention_days
        self._operations = operations or OperationLimits()
        self._limits = limits or StoreLimits()
        self._start_timeout_s = self._limits.start_timeout_s if start_timeout_s is None else start_timeout_s
        self._budgets = budgets
        self._create_table = create_table
        self._database: Database = open_database(self._url, settings)
        self._logged: dict[str, float] = {}
        self._migrator: Migrator
        self._store: Store
        self._shape: TableShape

    async def started(self) -> None:
        """Raises DatabaseUnavailableError when the database could not be reached within the start timeout."""
        self._migrator = Migrator(
            self._url,
            self._database,
            node_id=self.broker.node_id,
            logger=self.logger,
            budgets=self._budgets,
            create_table=self._create_table,
        )
        migrator = self._migrator
        self._shape = TableShape(lambda: migrator.status, migrator.report_mismatch, migrator.look_soon)
        self._store = Store(self._database, self._shape, logger=self.logger, limits=self._limits)
        try:
            await self._connect()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._database.close()
            raise
        self.start_soon(self._migrator.run)
        serving_lock = ServingLock(self._url, self.broker.node_id, self.logger, self._operations)
        self._database.on_full = serving_lock.release
        self.start_soon(serving_lock.run)
        if self._retention_days is not None:
            purging = (self._retention_days, self._database, self._shape, self._tell, self.logger, self._operations)
            self.start_soon(Retention(*purging).run)

    async def stopped(self) -> None:
        await self._database.close()

    @action
    async def create(self, ctx: Context, environment: msgspec.Raw) -> msgspec.Raw:
        record = await self._write(
            ctx,
            lambda: self._store.create(
                bytes(environment), ctx.reply_limit, lambda record: ctx.reply_size(_as_created(record)), ctx.deadline
            ),
        )
        return msgspec.Raw(_as_created(bytes(record)))

    @action
    async def get(self, ctx: Context, uuid: str) -> msgspec.Raw:
        return msgspec.Raw(await self._store.get(uuid, ctx.reply_limit, ctx.reply_size))

    @action(convert=True)
    async def list(
        self, ctx: Context, limit: Limit | None = None, after: str | None = None, fields: FieldsOrText = None
    ) -> msgspec.Raw:
        return msgspec.Raw(await self._store.list(_request(ctx, limit, after, fields)))

    @action(name="listDeleted", convert=True)
    async def list_deleted(
        self, ctx: Context, limit: Limit | None = None, after: str | None = None, fields: FieldsOrText = None
    ) -> msgspec.Raw:
        return msgspec.Raw(await self._store.list_deleted(_request(ctx, limit, after, fields)))

    @action(rename={"if_hash": "ifHash"})
    async def update(
        self, ctx: Context, uuid: str, environment: msgspec.Raw, if_hash: str | None = None
    ) -> msgspec.Raw:
        return await self._write(
            ctx,
            lambda: self._store.update(
                uuid, bytes(environment), if_hash, ctx.reply_limit, ctx.reply_size, ctx.deadline
            ),
        )

    @action
    async def remove(self, ctx: Context, uuid: str) -> dict[str, bool]:
        await self._write(ctx, lambda: self._store.remove(uuid, ctx.deadline))
        return _SUCCESS

    @action
    async def restore(self, ctx: Context, uuid: str) -> dict[str, bool]:
        await self._write(ctx, lambda: self._store.restore(uuid, ctx.deadline))
        return _SUCCESS

    @action(name="permanentDelete", convert=True)
    async def permanent_delete(self, ctx: Context, uuid: str, force: bool = False) -> dict[str, bool]:
        await self._write(ctx, lambda: self._store.permanent_delete(uuid, force, ctx.deadline))
        return _SUCCESS

    @action(convert=True, rename={"older_than_days": "olderThanDays", "dry_run": "dryRun", "batch_size": "batchSize"})
    async def purge(
        self,
        ctx: Context,
        older_than_days: Days = _PURGE_DAYS,
        dry_run: bool = False,
        batch_size: BatchSize | None = None,
        force: bool = False,
    ) -> dict[str, Any]:
        """Answers before its caller gives up; `remaining` then says how many are left for another call. `kept` names
        the first of those that the database does not let go."""
        check_age(older_than_days, force, self._operations)
        purge = await Purge.older_than(older_than_days, self._database, self._shape, self._operations, ctx.deadline)
        if dry_run:
            forecast = await purge.forecast()
            facts = {"months": forecast.months, "oldest": forecast.oldest, "newest": forecast.newest}
            return {"deleted": 0, "remaining": forecast.candidates, **facts}
        deleted = 0
        async with aclosing(purge.batches(batch_size)) as batches:
            async for changes in batches:
                deleted += len(changes)
                await self._tell(changes)
        kept = {"kept": [one._asdict() for one in purge.examples]} if purge.examples else {}
        return {"deleted": deleted, "remaining": await purge.remaining(), **kept}

    @action(convert=True)
    async def export(self, ctx: Context, deleted: bool = False) -> AsyncGenerator[bytes]:
        """The live records, or the deleted ones, as a stream of lines."""
        export = Export(self._database, self._shape, self.logger, limits=self._operations, store_limits=self._limits)
        try:
            async with aclosing(export.chunks("deleted" if deleted else "live")) as chunks:
                async for chunk in chunks:
                    yield chunk
        except MoleculerError as error:
            self._publish(ctx, error)  # hooks do not see what a stream ends with

    @action(name="import", rename={"on_conflict": "onConflict"})
    async def import_(self, ctx: Context, on_conflict: OnConflict | None = None) -> dict[str, int]:
        """The stream of the caller, stored whole or not at all. A caller whose stream leaves no room for params, as in
        protocol 4, says `onConflict` in its meta."""
        if ctx.stream is None:
            raise invalid("", "stream", "The records are expected as a stream of lines, one record a line.")
        choice = on_conflict or _read("onConflict", ctx.meta.get("onConflict"), OnConflict | None) or "skip"
        work = Import(
            self._database, self._shape, on_conflict=choice, limits=self._operations, store_limits=self._limits
        )
        async with spooled_lines(ctx.stream, self._operations) as lines:
            # What is stored is broadcast, even if the caller has gone.
            with anyio.CancelScope(shield=True):
                with anyio.CancelScope(deadline=math.inf if ctx.deadline is None else ctx.deadline):
                    await work.run(lines)
                imported = work.imported
                if imported is None:
                    raise _timed_out(ctx)
                counts = imported._asdict()
                async with aclosing(work.changes(lines)) as told:
                    async for changes in told:
                        await self._tell(changes)
        return counts

    @action(convert=True, rename={"recent_days": "recentDays"})
    async def stats(self, ctx: Context, recent_days: Days = _RECENT_DAYS) -> dict[str, int]:
        return await self._store.stats(recent_days)

    @action
    async def schema(self, ctx: Context) -> dict[str, Any]:
        await self._notice_outage()
        status = self._migrator.status
        answer: dict[str, Any] = {
            "state": status.state,
            "dialect": status.dialect,
            # What a step waits for names sessions and roles: that is in the log.
            "steps": [{"name": step.name, "state": step.state} for step in status.steps],
        }
        if status.reason is not None:
            answer["reason"] = status.reason
        if status.public is not None:
            answer["error"] = status.public
        if status.findings:
            answer["findings"] = [
                {"level": one.level, "reason": one.reason, "message": one.public, "takes": list(one.takes)}
                for one in status.findings
            ]
        return answer

    @action(name="forceSync")
    async def force_sync(self, ctx: Context) -> dict[str, bool]:
        """What the original answers when all is written to its database: here it always is."""
        return _SUCCESS

    @event("environments.sync")
    async def on_sync(self, ctx: Context) -> None:
        """Accepted, with nothing to do: every write that was answered is stored."""

    async def _write(self, ctx: Context, write: Callable[[], Awaitable[Written]]) -> msgspec.Raw:
        """Write, then broadcast the change, even if the caller has gone. Only the caller's deadline ends the work."""
        with anyio.CancelScope(shield=True):
            try:
                written = await write()
            except TimeoutError:
                raise _timed_out(ctx) from None
            if written.change is not None:
                await ctx.broadcast("environments.updated", msgspec.to_builtins(written.change))
        return msgspec.Raw(written.record)

    def _publish(self, ctx: Context, error: Exception) -> NoReturn:
        """The error hook of every action: what the database said, with its roles, hosts and SQL, goes into the log, and
        the public text to the caller. Violations found here name caller and action, as those of the broker do."""
        if isinstance(error, ValidationError) and isinstance(error.data, list):
            error.data = [{**violation, "nodeID": ctx.node_id, "action": ctx.action} for violation in error.data]
        if isinstance(error, MoleculerError) and (public := getattr(error, "public", None)) is not None:
            if public != error.message and self._is_news(str(error)):
                self.logger.warning("Action '%s' failed: %s", ctx.action, error)
            error.message = public
        raise error

    def _is_news(self, text: str) -> bool:
        """Whether this was not logged a moment ago: an outage fails every call in the same words."""
        now = anyio.current_time()
        if now - self._logged.get(text, -math.inf) < self._limits.same_line_s:
            return False
        if len(self._logged) >= self._limits.same_lines:
            self._logged.clear()
        self._logged[text] = now
        return True

    async def _tell(self, changes: Sequence[Change]) -> None:
        """Tell every node of many changes, each by an event of its own; other work of this node comes in between."""
        with anyio.CancelScope(shield=True):
            for number, change in enumerate(changes):
                await self.broker.broadcast("environments.updated", msgspec.to_builtins(change))
                if number % self._operations.events_between_pauses == 0:
                    await anyio.lowlevel.checkpoint()

    async def _notice_outage(self) -> None:
        """Whether the database can be reached is known now, and not only since the last look at the schema."""
        with anyio.move_on_after(self._limits.probe_s):
            with suppress(MoleculerError), self._shape.watched():
                await self._database.fetch_one("SELECT 1")
            await self._migrator.looked()

    async def _connect(self) -> None:
        deadline = anyio.current_time() + self._start_timeout_s
        while True:
            try:
                await self._database.open()
                await self._migrator.prepare()
                return
            except DatabaseUnavailableError as error:
                if _cannot_be_opened(error):
                    raise  # a server may still start; a file that is not there now does not come by waiting
                if anyio.current_time() + self._limits.connect_pause_s > deadline:
                    self._give_up(error)
                self.logger.warning("The database %s cannot be reached, trying again: %s", masked(self._url), error)
            await anyio.sleep(self._limits.connect_pause_s)

    def _give_up(self, error: DatabaseUnavailableError) -> NoReturn:
        raise DatabaseUnavailableError(
            f"The database {masked(self._url)} could not be reached within {self._start_timeout_s:g} s: {error}"
        ) from error


def _timed_out(ctx: Context) -> RequestTimeoutError:
    return RequestTimeoutError({"action": ctx.action, "nodeID": ctx.node_id})


def _cannot_be_opened(error: DatabaseUnavailableError) -> bool:
    return (error.data or {}).get("sqlstate") == "SQLITE_CANTOPEN"


def _as_created(record: bytes) -> bytes:
    """The record as the original answers `create`: its import page relays the answer to editors as a change."""
    return record[:-1] + b',"type":"ADD_CLOUD_ENVIRONMENT"}'


def _request(ctx: Context, limit: int | None, after: str | None, fields: FieldsOrText) -> ListRequest:
    if isinstance(fields, str):
        fields = _read("fields", [name.strip() for name in fields.split(",")], Fields)
    return ListRequest(limit, after, tuple(fields or RECORD_FIELDS), ctx.reply_limit, ctx.reply_size)


def _read(name: str, value: Any, kind: Any) -> Any:
    """A value that was not a parameter of its own."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise invalid(name, "enumValue", f"The '{name}' does not fit: {error}.") from None
