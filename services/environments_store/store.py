"""CRUD and soft delete over either database. Nothing is answered that is not committed.

Every write is one statement on one row, so it is atomic without a transaction; only a compare-and-swap takes one. What
it gave back is what was done; where triggers or rules of the table may undo that before the statement is over, the row
is looked at in one transaction with it. A statement that gave nothing back did nothing: the row is looked at then, and
its state is the answer when the write has nothing to do in it. In any other state it was changed in between, and the
write is tried again, a few times: a database that keeps on taking a write without doing it is refusing it.

When the connection dies during a write, the row is read back before the caller is answered; and so it is when the
deadline of the caller cuts a write off, which may be committed by then. A transaction always learns of its commit.
"""

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Literal

import anyio

from broker.errors import MoleculerError
from services.environments_store.aliases import Aliases
from services.environments_store.database.base import Database, Row
from services.environments_store.database.base import Queries as Connection
from services.environments_store.defaults import StoreLimits
from services.environments_store.document import (
    AcceptedDocument,
    accept_document,
    check_record,
    check_reply,
    check_uuid,
    invalid,
)
from services.environments_store.errors import (
    DatabaseError,
    DatabaseRefusedError,
    DatabaseUnavailableError,
    DatabaseValueError,
    EnvironmentChangedError,
    EnvironmentDeletedError,
    EnvironmentExistsError,
    EnvironmentNotDeletedError,
    EnvironmentNotFoundError,
    EnvironmentStateError,
    OutcomeUnknownError,
)
from services.environments_store.listing import ListRequest, PageReader
from services.environments_store.model import read_row
from services.environments_store.outcome import across_changes, settle
from services.environments_store.queries import Listing, Queries
from services.environments_store.records import Records, Written
from services.environments_store.schema.guards import Event, read_guards
from services.environments_store.shape import TableShape

__all__ = ["Store"]

_UNTRANSLATABLE = "22P05"
"""A character that the encoding of the database does not have."""
_OF_ANOTHER_TYPE = "22000"
"""What the driver says to a uuid that the type of `id` cannot hold, as where that is uuid."""
_ALREADY_SO = Written(b"", None)

Write = Callable[[], Awaitable[Row | None]]
Stands = Callable[[Row, Row | None], bool]
"""Whether a write is done, by the row that its statement gave back and by the row that is there after it."""
State = Literal["absent", "live", "deleted"]
Idle = Mapping[State, type[EnvironmentStateError] | None]
_CREATE: Idle = {"live": EnvironmentExistsError, "deleted": EnvironmentDeletedError}
_UPDATE: Idle = {"absent": EnvironmentNotFoundError, "deleted": EnvironmentNotFoundError}
_REMOVE: Idle = {"absent": EnvironmentNotFoundError, "deleted": None}
_RESTORE: Idle = {"absent": EnvironmentNotFoundError, "live": None}
_DELETE: Idle = {"absent": EnvironmentNotFoundError, "live": EnvironmentNotDeletedError}
_FORCED_DELETE: Idle = {"absent": EnvironmentNotFoundError}
"""The states in which a write has nothing to do, with the error that says so; None where that is a success."""


class _UndoneError(Exception):
    """What a write did was undone in the same statement: ends its transaction, so that nothing of either is stored."""


class _Seeking:
    """What `Store._seeking` gives; a class, as the generators of `asynccontextmanager` cost each call ten times as
    much."""

    def __init__(
        self, shape: TableShape, uuid: str | None, data: dict[str, str], can_write: Callable[[str], Awaitable[bool]]
    ) -> None:
        self._shape = shape
        self._uuid = uuid
        self._data = data
        self._can_write = can_write

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shape.note(error)
        if (
            isinstance(error, DatabaseValueError)
            and self._uuid is not None
            and (
                error.sqlstate == _OF_ANOTHER_TYPE
                or (error.sqlstate == _UNTRANSLATABLE and not await self._can_write(self._uuid))
            )
        ):
            raise EnvironmentNotFoundError(self._uuid, **self._data) from error


class Store:
    """The environments of one database, in a table of this shape."""

    def __init__(
        self, database: Database, shape: TableShape, *, logger: logging.Logger, limits: StoreLimits | None = None
    ) -> None:
        self._database = database
        self._shape = shape
        self._limits = limits or StoreLimits()
        self._records = Records(self._limits, logger)
        self._aliases = Aliases(database, self._limits)

    async def create(
        self,
        document: bytes,
        reply_limit: int | None = None,
        measure: Callable[[bytes], int] = len,
        deadline: float | None = None,
    ) -> Written:
        """Store a new environment. Raises EnvironmentExistsError, or EnvironmentDeletedError for one in the trash; like
        every write, TimeoutError when the `deadline` has passed and nothing was stored."""
        accepted = await self._accept(document, None, reply_limit, measure)
        with self._storing(), self._shape.watched():
            row = await self._in_time(deadline, lambda: self._create(accepted), lambda: self._look_stored(accepted))
            assert row is not None, "no state makes a create a success that has nothing to do"
            return await self._records.written("created", row)

    async def get(self, uuid: str, reply_limit: int | None = None, measure: Callable[[bytes], int] = len) -> bytes:
        """The record of a live environment. Raises EnvironmentNotFoundError, and PayloadTooLargeError (413)."""
        check_uuid(uuid, "uuid", self._limits)
        async with self._seeking(uuid):
            queries = self._shape.queries()
            row = await self._database.fetch_one(queries.get, uuid)
            if row is None and await self._aliases.may_name(uuid):
                row = await self._database.fetch_one(queries.get_by_environment_uuid, uuid)
            if row is None:
                raise EnvironmentNotFoundError(uuid)
            try:
                record = await self._records.encode(read_row(row))
            except ValueError as error:
                raise DatabaseError(f"The environment '{uuid}' is damaged in the database: {error}.") from error
            check_record(uuid, record, reply_limit, measure)
            return record

    async def list(self, request: ListRequest) -> bytes:
        """The live records as a JSON array, by `createdAt, id`. Raises PayloadTooLargeError (413), and
        EnvironmentNotFoundError when the environment to go on after is gone."""
        async with self._seeking(request.after, field="after"):
            queries = self._shape.queries("list")
            return await self._list(queries, queries.listing, request, deleted=False)

    async def list_deleted(self, request: ListRequest) -> bytes:
        """The deleted records as a JSON array, by `deletedAt` newest first, `id`. Raises as `list` does."""
        async with self._seeking(request.after, field="after"):
            queries, soft_delete = self._shape.soft_delete("list")
            return await self._list(queries, soft_delete.listing, request, deleted=True)

    async def update(
        self,
        uuid: str,
        document: bytes,
        if_hash: str | None = None,
        reply_limit: int | None = None,
        measure: Callable[[bytes], int] = len,
        deadline: float | None = None,
    ) -> Written:
        """Replace the document of a live environment. Raises EnvironmentNotFoundError, and EnvironmentChangedError with
        the current hash when `if_hash` is given and is another."""
        check_uuid(uuid, "uuid", self._limits)
        accepted = await self._accept(document, uuid, reply_limit, measure)
        with self._storing():
            async with self._seeking(uuid):
                row = await self._in_time(
                    deadline, lambda: self._update(accepted, if_hash), lambda: self._look_stored(accepted)
                )
                assert row is not None, "no state makes an update a success that has nothing to do"
                return await self._records.written("updated", row)

    async def remove(self, uuid: str, deadline: float | None = None) -> Written:
        """Put an environment into the trash; again: the first date stays. Raises EnvironmentNotFoundError."""
        return await self._mark(uuid, deadline, deleted=True)

    async def restore(self, uuid: str, deadline: float | None = None) -> Written:
        """Take an environment out of the trash; quiet for a live one. Raises EnvironmentNotFoundError."""
        return await self._mark(uuid, deadline, deleted=False)

    async def permanent_delete(self, uuid: str, force: bool = False, deadline: float | None = None) -> Written:
        """Delete a row permanently. Raises EnvironmentNotFoundError, and EnvironmentNotDeletedError for a live one
        unless `force`."""
        check_uuid(uuid, "uuid", self._limits)
        async with self._seeking(uuid):
            queries, soft_delete = self._shape.soft_delete("delete")
            statement = queries.delete_any if force else soft_delete.delete
            idle = _FORCED_DELETE if force else _DELETE
            row = await self._in_time(
                deadline,
                lambda: self._attempt(uuid, "DELETE", lambda: self._delete(statement, uuid, idle), idle),
                _nothing,  # it is a transaction
            )
            assert row is not None, "no state makes a delete a success that has nothing to do"
            return await self._records.marked("purged", row)

    async def stats(self, recent_days: int) -> dict[str, int]:
        """How many environments there are, live, in the trash, and put there within the last `recent_days`."""
        with self._shape.watched():
            row = await self._database.fetch_one(self._shape.queries().stats, recent_days)
            return {
                "total": row["total"] if row else 0,
                "active": row["active"] if row else 0,
                "deleted": row["deleted"] if row else 0,
                "recentlyDeleted": row["recently_deleted"] if row else 0,
            }

    @contextmanager
    def _storing(self) -> Iterator[None]:
        """A value that does not fit where a document is stored is the fault of the document."""
        try:
            yield
        except DatabaseValueError as error:
            message = f"The database cannot hold this 'environment': {error.public or error}"
            raise invalid("environment", "object", message) from error

    def _seeking(self, uuid: str | None, **data: str) -> AbstractAsyncContextManager[None]:
        """Errors of statements that look for a uuid: one that the database cannot write, it cannot hold."""
        return _Seeking(self._shape, uuid, data, self._can_write)

    async def _can_write(self, text: str) -> bool:
        try:
            await self._database.fetch_one("SELECT $1::text", text)
        except DatabaseValueError:
            return False
        return True

    async def _accept(
        self, document: bytes, uuid: str | None, reply_limit: int | None, measure: Callable[[bytes], int]
    ) -> AcceptedDocument:
        accepted = await accept_document(document, uuid, self._records.hashes, self._limits)
        check_reply(accepted, reply_limit, measure)
        return accepted

    async def _list(self, queries: Queries, listing: Listing, request: ListRequest, deleted: bool) -> bytes:
        if request.after is not None:
            check_uuid(request.after, "after", self._limits)
        encode = partial(self._records.encode_listed, fields=request.fields)
        page = await PageReader(self._database, queries, request, encode, self._limits).read(listing)
        if page == b"[]" and request.after is not None:
            # The end of the list, or nothing to go on after: an empty page must not hide the rest of the list.
            anchor = await self._database.fetch_one(queries.look_light, request.after)
            if anchor is None or (deleted and anchor["deletedAt"] is None):
                raise EnvironmentNotFoundError(request.after, field="after")
        return page

    async def _attempt(self, uuid: str, event: Event, write: Write, idle: Idle) -> Row | None:
        """The row that the write gave back; None when it had nothing to do, which is a success.

        Raises the error of a state in which there is nothing to do, and DatabaseRefusedError when the database takes
        the write and does not do it.
        """
        for _ in range(self._limits.attempts):
            try:
                row = await write()
            except _UndoneError:
                raise await self._refused(uuid, event, afterwards=True) from None
            if row is not None or self._is_idle(uuid, await self._state(uuid), idle):
                return row
        raise await self._refused(uuid, event)

    async def _refused(self, uuid: str, event: Event, *, afterwards: bool = False) -> MoleculerError:
        guards = await read_guards(self._database, event, afterwards=afterwards)
        if not guards and not afterwards:
            return DatabaseUnavailableError(
                "Others change this environment all the while. Nothing was done: try again."
            )
        what = "undid the change of" if afterwards else "did nothing to"
        names = ", ".join(guards) or "its triggers"
        return DatabaseRefusedError(
            f"The database {what} the environment '{uuid}', and gave no error: look at {names}.",
            uuid=uuid,
            guards=guards,
        )

    async def _change(self, statement: str, uuid: str, *more: object, stands: Stands) -> Row | None:
        """One write by itself: the row that it gave back, or that is there in the end where the table may undo it."""
        if not self._shape.status.may_undo:
            return await self._database.fetch_one(statement, uuid, *more)

        async def change() -> Row | None:
            async with self._database.transaction() as connection:
                return await self._change_in(connection, statement, uuid, *more, stands=stands)

        return await across_changes(change)

    async def _change_in(
        self, connection: Connection, statement: str, uuid: str, *more: object, stands: Stands
    ) -> Row | None:
        """The same in a transaction. Raises _UndoneError when it does not stand."""
        row = await connection.fetch_one(statement, uuid, *more)
        if row is None or not self._shape.status.may_undo:
            return row
        queries = self._shape.queries()
        if queries.settle is not None:
            await connection.execute(queries.settle)
        there = await connection.fetch_one(queries.look, uuid)
        if not stands(row, there):
            raise _UndoneError
        return row if there is None else there

    async def _state(self, uuid: str, connection: Connection | None = None) -> State:
        row = await (connection or self._database).fetch_one(self._shape.queries().look_light, uuid)
        return "absent" if row is None else "deleted" if _is_deleted(row) else "live"

    @staticmethod
    def _is_idle(uuid: str, state: State, idle: Idle) -> bool:
        if state not in idle:
            return False
        error = idle[state]
        if error is not None:
            raise error(uuid)
        return True

    async def _in_time(self, deadline: float | None, write: Write, look: Write) -> Row | None:
        """The row of a write; of one that the deadline cut off, the row that `look` finds. Raises TimeoutError when it
        finds none."""
        if deadline is None:
            return await write()
        if anyio.current_time() < deadline:
            with anyio.CancelScope(deadline=deadline):
                return await write()
            with anyio.move_on_after(self._limits.late_look_s), suppress(MoleculerError):
                row = await look()
                if row is not None:
                    return row
        raise TimeoutError

    async def _create(self, accepted: AcceptedDocument) -> Row:
        try:
            return await self._insert(accepted)
        except OutcomeUnknownError as error:
            # Once more: it waits for the first, if that still runs, and then either stores or finds it.
            return await settle(error, lambda: self._insert_again(accepted), self._limits)

    async def _update(self, accepted: AcceptedDocument, if_hash: str | None) -> Row | None:
        try:
            return await self._attempt(accepted.uuid, "UPDATE", lambda: self._replace(accepted, if_hash), _UPDATE)
        except OutcomeUnknownError as error:
            return await settle(error, lambda: self._look_stored(accepted), self._limits)

    async def _insert(self, accepted: AcceptedDocument) -> Row:
        if self._shape.status.lack("insert") is not None:
            # A uuid that the column could not hold is the caller's fault, whatever else keeps the table from taking it.
            await self._state(accepted.uuid)
        create = self._shape.queries("insert").create
        row = await self._attempt(
            accepted.uuid,
            "INSERT",
            lambda: self._change(create, accepted.uuid, accepted.text, stands=lambda _, there: _is_live(there)),
            _CREATE,
        )
        assert row is not None, "no state makes a create a success that has nothing to do"
        return row

    async def _insert_again(self, accepted: AcceptedDocument) -> Row | None:
        """The row, live or removed meanwhile, with the content that was sent; with another one nothing can be told."""
        try:
            return await self._insert(accepted)
        except (EnvironmentExistsError, EnvironmentDeletedError):
            return await self._look_stored(accepted)

    async def _replace(self, accepted: AcceptedDocument, if_hash: str | None) -> Row | None:
        if if_hash is not None or self._shape.status.may_undo:
            return await across_changes(lambda: self._swap(accepted, if_hash))
        return await self._database.fetch_one(self._shape.queries("update").update, accepted.uuid, accepted.text)

    async def _delete(self, statement: str, uuid: str, idle: Idle) -> Row | None:
        """Look and delete in one transaction: a missing row afterwards would not show whether it existed, nor who
        deleted it."""
        row: Row | None = None

        async def delete() -> None:
            nonlocal row
            async with self._database.transaction() as connection:
                self._is_idle(uuid, await self._state(uuid, connection), idle)
                row = await self._change_in(connection, statement, uuid, stands=lambda _, there: there is None)

        try:
            await across_changes(delete)
        except OutcomeUnknownError as error:
            deleted = row
            if deleted is None:
                raise
            with anyio.CancelScope(shield=True):
                return await settle(error, lambda: self._look_committed(deleted), self._limits)
        return row

    async def _swap(self, accepted: AcceptedDocument, if_hash: str | None) -> Row | None:
        """Compare and update under a lock of the row; None when there is no live one."""
        queries = self._shape.queries("update")
        async with self._database.transaction() as connection:
            before = await connection.fetch_one(queries.lock, accepted.uuid)
            if before is None:
                return None
            current = None if if_hash is None else await self._records.tag(read_row(before))
            if current != if_hash:
                raise EnvironmentChangedError(accepted.uuid, hash=current)
            old = before["environment"]

            def stands(row: Row, there: Row | None) -> bool:
                return (
                    there is not None and _is_live(there) and (there["environment"] != old or row["environment"] == old)
                )

            return await self._change_in(connection, queries.update, accepted.uuid, accepted.text, stands=stands)

    async def _mark(self, uuid: str, deadline: float | None, *, deleted: bool) -> Written:
        check_uuid(uuid, "uuid", self._limits)
        async with self._seeking(uuid):
            _, soft_delete = self._shape.soft_delete("soft-delete")
            statement, idle = (soft_delete.remove, _REMOVE) if deleted else (soft_delete.restore, _RESTORE)

            async def change() -> Row | None:
                row = await self._change(
                    statement, uuid, stands=lambda _, there: there is not None and _is_deleted(there) == deleted
                )
                # A trigger may have taken the mark off before the row was stored.
                return row if row is not None and _is_deleted(row) == deleted else None

            async def mark() -> Row | None:
                try:
                    return await self._attempt(uuid, "UPDATE", change, idle)
                except OutcomeUnknownError as error:
                    return await settle(error, lambda: self._look_marked(uuid, deleted), self._limits)

            row = await self._in_time(deadline, mark, lambda: self._look_marked(uuid, deleted))
            if row is None:
                return _ALREADY_SO
            return await self._records.marked("removed" if deleted else "restored", row)

    async def _look_stored(self, accepted: AcceptedDocument) -> Row | None:
        row = await self._database.fetch_one(self._shape.queries().look, accepted.uuid)
        return row if row is not None and await self._records.tag(read_row(row)) == accepted.hash else None

    async def _look_marked(self, uuid: str, deleted: bool) -> Row | None:
        row = await self._database.fetch_one(self._shape.queries().look, uuid)
        return row if row is not None and _is_deleted(row) == deleted else None

    async def _look_committed(self, row: Row) -> Row | None:
        query = self._shape.queries().committed
        if query is None:
            return None
        with suppress(DatabaseValueError):  # another server by now, which has had no such transaction
            found = await self._database.fetch_one(query, row["transaction"])
            if found is None or found["committed"] is None:
                raise DatabaseUnavailableError("The transaction has not ended yet.")
            return row if found["committed"] else None
        return None


async def _nothing() -> None:
    return None


def _is_live(row: Row | None) -> bool:
    return row is not None and not _is_deleted(row)


def _is_deleted(row: Row) -> bool:
    return row["deletedAt"] is not None
