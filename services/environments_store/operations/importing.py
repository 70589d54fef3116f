"""Import from NDJSON: every line is checked before the first is stored, and all are stored in one transaction."""

import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import IO, Literal, NamedTuple, TypeAlias

import anyio
import anyio.to_thread

from broker.errors import MoleculerError
from services.environments_store.database.base import Database, Queries, Row
from services.environments_store.defaults import OperationLimits, StoreLimits
from services.environments_store.errors import DatabaseRefusedError, DatabaseValueError, ImportRefusedError
from services.environments_store.hash import content_hash, digest
from services.environments_store.model import Change
from services.environments_store.operations.line_files import Batch, batches_of
from services.environments_store.operations.staging import Stage, staged
from services.environments_store.queries.transfer import StagedRow, StoredRow, Transfer, choose_transfer
from services.environments_store.schema.guards import read_guards
from services.environments_store.shape import TableShape

__all__ = ["Import", "Imported", "OnConflict"]

AnyBatch: TypeAlias = Batch[StoredRow] | Batch[StagedRow]
OnConflict = Literal["skip", "fail", "replace"]

_SKIPPED, _CREATED, _REPLACED = range(3)


class Imported(NamedTuple):
    created: int
    skipped: int
    replaced: int


class Import:
    """One import, from a file that can be read twice.

    It is one transaction: all lines are stored or none, and a failed import can be repeated as it is. The lines are
    checked before the transaction begins, so that it lasts only as long as storing them; on SQLite it copies rows from
    a staging table.
    """

    def __init__(
        self,
        database: Database,
        shape: TableShape,
        *,
        on_conflict: OnConflict = "skip",
        limits: OperationLimits | None = None,
        store_limits: StoreLimits | None = None,
    ) -> None:
        self._database = database
        self._shape = shape
        self._on_conflict = on_conflict
        self._limits = limits or OperationLimits()
        self._store_limits = store_limits or StoreLimits()
        self._seed = os.urandom(16)
        self.imported: Imported | None = None
        """Set once committed, even if the caller is cancelled then."""
        self._outcomes = bytearray()
        """The outcome of each line, a byte a line."""

    async def run(self, lines: IO[bytes], on_progress: Callable[[str, int], None] | None = None) -> Imported:
        """Check, then store. `on_progress` gets the phase, `check` or `store`, and its number of finished records.

        Raises ImportRefusedError for the first bad line, and with `fail` for the first existing id;
        DatabaseRefusedError for the first line that the database refuses or discards; SoftDeleteUnavailableError for
        deleted records without the column.
        """
        report = on_progress or (lambda phase, records: None)
        self._shape.queries("insert", *(("update",) if self._on_conflict == "replace" else ()))  # raises when it cannot
        statements = choose_transfer(self._shape.status, f"import_{self._seed.hex()}")
        self._outcomes.clear()
        self.imported = None
        if statements.staging is None:
            await self._check(lines, report)
            return await self._store_all(statements, lambda _: self._batches(lines), report)
        with self._shape.watched():
            async with staged(self._database, statements.staging) as stage:
                await self._check(lines, report, stage)
                stage.warn_of_long_lock(self._limits)
                return await self._store_all(
                    statements, lambda connection: stage.batches(connection, self._limits), report
                )

    async def _store_all(
        self,
        statements: Transfer,
        read: Callable[[Queries], AsyncGenerator[AnyBatch]],
        report: Callable[[str, int], None],
    ) -> Imported:
        done = 0
        batch: AnyBatch | None = None
        try:
            with self._shape.watched():
                async with self._database.transaction() as connection, aclosing(read(connection)) as batches:
                    if statements.begin is not None:
                        await connection.execute(statements.begin)
                    async for batch in batches:
                        await self._store(connection, statements, batch)
                        done += len(batch.rows)
                        report("store", done)
        except DatabaseRefusedError as error:
            raise await self._name_line(error, statements, batch) from error
        self.imported = Imported(*(self._outcomes.count(outcome) for outcome in (_CREATED, _SKIPPED, _REPLACED)))
        return self.imported

    async def changes(self, lines: IO[bytes]) -> AsyncGenerator[list[Change]]:
        """The changes to broadcast after `run`; a record that was imported as deleted counts as removed."""
        position = 0
        async with aclosing(self._batches(lines)) as batches:
            async for batch in batches:
                outcomes = self._outcomes[position : position + len(batch.rows)]
                position += len(batch.rows)
                yield await anyio.to_thread.run_sync(_changes, batch.rows, outcomes)

    async def _check(self, lines: IO[bytes], report: Callable[[str, int], None], stage: Stage | None = None) -> None:
        done = 0
        async with aclosing(self._batches(lines, checked=False)) as batches:
            async for batch in batches:
                if not self._shape.status.soft_delete and any(row.deleted_at for row in batch.rows):
                    raise self._shape.unavailable()
                if stage is not None:
                    await stage.add(batch)
                done += len(batch.rows)
                report("check", done)

    def _batches(self, lines: IO[bytes], *, checked: bool = True) -> AsyncGenerator[Batch[StoredRow]]:
        return batches_of(lines, self._seed, checked=checked, limits=self._limits, store_limits=self._store_limits)

    async def _store(self, connection: Queries, statements: Transfer, batch: AnyBatch) -> None:
        """Store a batch. A row that a statement returns is stored, an existing one may be skipped; any other was
        changed by another session meanwhile, or discarded by the database."""
        rows: Sequence[StoredRow | StagedRow] = batch.rows
        left = {row.id: row for row in rows}
        outcomes: dict[str, int] = {}
        may_undo = self._shape.status.may_undo
        before: dict[str, _Content | None] = {}
        stored: dict[str, _Content] = {}

        async def settle(outcome: int, statement: str, arguments: tuple[object, ...]) -> None:
            for row in await connection.fetch(statement, *arguments):
                if left.pop(row["id"], None) is not None:
                    outcomes[row["id"]] = outcome
                    if may_undo and outcome != _SKIPPED:
                        stored[row["id"]] = _Content.of(row)

        for _ in range(self._store_limits.attempts):
            await settle(_CREATED, statements.insert, statements.pack(list(left.values())))
            if left and self._on_conflict == "replace":
                before.update({id: await self._look(connection, id) for id in left} if may_undo else {})
                await settle(_REPLACED, statements.replace, statements.pack(list(left.values())))
            elif left:
                await settle(_SKIPPED, statements.existing, statements.pack_ids(list(left)))
            if not left:
                break
        undone = await self._undone(connection, before, stored)
        for row, number in zip(rows, batch.numbers, strict=True):
            if row.id in left or row.id in undone:
                raise await self._swallowed(row.id, number, afterwards=row.id in undone)
            if self._on_conflict == "fail" and outcomes[row.id] == _SKIPPED:
                raise ImportRefusedError(number, f"an environment '{row.id}' exists already, live or in the trash")
        self._outcomes += bytes(outcomes[row.id] for row in rows)

    async def _undone(
        self, connection: Queries, before: Mapping[str, "_Content | None"], stored: Mapping[str, "_Content"]
    ) -> frozenset[str]:
        """The ids whose rows the table has removed again, or reverted."""
        settle = self._shape.queries().settle
        if stored and settle is not None:
            await connection.execute(settle)
        undone = set()
        for id, content in stored.items():
            there, old = await self._look(connection, id), before.get(id)
            put_back = there is not None and old is not None and there.digest == old.digest != content.digest
            if there is None or there.deleted != content.deleted or put_back:
                undone.add(id)
        return frozenset(undone)

    async def _look(self, connection: Queries, id: str) -> "_Content | None":
        row = await connection.fetch_one(self._shape.queries().look, id)
        return None if row is None else _Content.of(row)

    async def _swallowed(self, uuid: str, line: int, *, afterwards: bool) -> DatabaseRefusedError:
        guards = await read_guards(self._database, "INSERT", afterwards=afterwards)
        if self._on_conflict == "replace":
            guards += await read_guards(self._database, "UPDATE", afterwards=afterwards)
        return DatabaseRefusedError(
            f"Line {line}: the database did not store the environment '{uuid}' and reported no error: check"
            f" {', '.join(dict.fromkeys(guards)) or 'its triggers'}. Nothing was imported.",
            uuid=uuid,
            line=line,
        )

    async def _name_line(
        self, error: DatabaseRefusedError, statements: Transfer, batch: AnyBatch | None
    ) -> MoleculerError:
        """Find the line that the database refuses, by storing the batch row by row and rolling back each time."""
        if "line" in (error.data or {}):
            return error
        for row, number in zip(*batch, strict=True) if batch else ():
            try:
                async with self._database.transaction() as connection:
                    await self._store(connection, statements, Batch([row], [number]))
                    raise _RollBack
            except _RollBack:
                continue
            except DatabaseValueError as refusal:
                return ImportRefusedError(number, f"the database cannot store it: {refusal.public or refusal}")
            except DatabaseRefusedError as refusal:
                public = f"Line {number}: {refusal.public or refusal} Nothing was imported."
                data = {**(refusal.data or {}), "uuid": row.id, "line": number}
                return DatabaseRefusedError(f"Line {number}: {refusal}. Nothing was imported.", public=public, **data)
        return error


class _Content(NamedTuple):
    """What `_undone` compares of a row."""

    digest: bytes
    deleted: bool

    @classmethod
    def of(cls, row: Row) -> "_Content":
        return cls(digest(row["environment"] or b""), row["deletedAt"] is not None)


class _RollBack(Exception):
    """Rolls back a trial transaction."""


def _changes(rows: Sequence[StoredRow], outcomes: bytearray) -> list[Change]:
    return [_change(row, outcome) for row, outcome in zip(rows, outcomes, strict=True) if outcome != _SKIPPED]


def _change(row: StoredRow, outcome: int) -> Change:
    kind: Literal["created", "updated"] = "created" if outcome == _CREATED else "updated"
    hash = content_hash(row.document.encode())
    return Change(type="removed" if row.deleted_at else kind, uuid=row.id, hash=hash, timestamp=row.timestamp)
