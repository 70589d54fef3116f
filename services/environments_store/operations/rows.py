"""Rows that a table of the original may hold and that need a person: counted in one pass, named by example."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from typing import Literal, NamedTuple

import anyio.to_thread

from services.environments_store.database.base import Database, Dialect, Row
from services.environments_store.defaults import OperationLimits
from services.environments_store.errors import DatabaseError
from services.environments_store.hash import Content
from services.environments_store.queries.postgresql import LISTED_DOCUMENT
from services.environments_store.queries.sqlite import LITE_LISTED_DOCUMENT
from services.environments_store.schema.guards import read_guards, read_holders
from services.environments_store.schema.status import Finding
from services.environments_store.shape import TableShape

__all__ = ["look_at_documents", "look_at_guards", "look_at_rows"]


class _Question(NamedTuple):
    """A condition, and what to say of the rows that meet it."""

    subject: str
    condition: str
    message: str
    remedy: str
    level: Literal["error", "warning", "info"] = "warning"


_ID = "CAST(id AS text) AS id"
_DIFFER = "UPDATE the wrong one of the three by hand, once it is known which environment it is."
_BOTH = (
    _Question(
        "null-document",
        "environment IS NULL",
        "have no document: they are listed and exported without",
        "Bring the document back from a backup, or delete the row: DELETE FROM environments WHERE id = '…';",
        "error",
    ),
    _Question(
        "uuid",
        'CAST("environmentUuid" AS text) <> CAST(id AS text)',
        "have another environmentUuid than id. They are found by either, and listed by id",
        _DIFFER,
    ),
    _Question(
        "timestamp",
        '"timestamp" IS NULL',
        "have no timestamp: that of their last change is shown",
        "Nothing has to be done: the next update sets it.",
        "info",
    ),
)
_PG = (
    _Question(
        "far-date",
        " OR ".join(
            f"\"{name}\" NOT BETWEEN '0001-01-01' AND '9999-12-31 23:59:59.999'" for name in ("createdAt", "updatedAt")
        ),
        "have a date before the year 1 or after 9999, or infinity: the nearest date is shown",
        'UPDATE environments SET "createdAt" = …, "updatedAt" = … WHERE id = \'…\';',
    ),
)
_PG_DELETED = (
    _Question(
        "future-date",
        "\"deletedAt\" > now() + interval '1 minute'",
        "were deleted in the future: they are purged late",
        "UPDATE environments SET \"deletedAt\" = now() WHERE id = '…';",
    ),
)
_LITE = (
    _Question(
        "null-id",
        "id IS NULL",
        "have no id: no call can reach them",
        "UPDATE environments SET id = environmentUuid WHERE id IS NULL AND environmentUuid IS NOT NULL; or delete.",
        "error",
    ),
)
_LITE_DELETED = (
    _Question(
        "unreadable-date",
        "deletedAt IS NOT NULL AND (deletedAt NOT GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]*'"
        " OR julianday(deletedAt) IS NULL)",
        "have a deletedAt that is a number or no date: they are deleted, and never purged",
        # As lists show them. What SQLite cannot compute would become NULL, and the environment live.
        "UPDATE environments SET deletedAt = strftime('%Y-%m-%d %H:%M:%f +00:00',"
        " CASE WHEN deletedAt < 1e11 THEN deletedAt ELSE deletedAt / 1000.0 END, 'unixepoch')"
        " WHERE typeof(deletedAt) IN ('integer', 'real') AND deletedAt BETWEEN 1e9 AND 253402300799999; for seconds and"
        " milliseconds since 2001; look at the others one by one.",
    ),
    _Question(
        "future-date",
        "deletedAt GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]*'"
        " AND julianday(deletedAt) > julianday('now', '+1 minute')",
        "were deleted in the future: they are purged late",
        "UPDATE environments SET deletedAt = strftime('%Y-%m-%d %H:%M:%f +00:00', 'now') WHERE id = '…';",
    ),
)


_REPEATED = _Question(
    "duplicate-id",
    "",
    "stand in several rows, so that there can be no key: `get` finds any one, and a change is one of all of them",
    "Look at the rows of each, and delete all but one: SELECT ctid, * FROM environments WHERE id = '…'; and DELETE FROM"
    " environments WHERE id = '…' AND ctid <> '…'; in SQLite with rowid instead of ctid.",
    "error",
)


def _questions(dialect: Dialect, soft_delete: bool) -> tuple[_Question, ...]:
    if dialect == "sqlite":
        return (*_BOTH, *_LITE, *(_LITE_DELETED if soft_delete else ()))
    return (*_BOTH, *_PG, *(_PG_DELETED if soft_delete else ()))


async def look_at_rows(database: Database, shape: TableShape, limits: OperationLimits) -> list[Finding]:
    """Everything that the columns tell, documents unread: one pass over the table."""
    questions = _questions(shape.status.dialect, shape.status.soft_delete)
    counts = ", ".join(f"count(*) FILTER (WHERE {one.condition}) AS n{number}" for number, one in enumerate(questions))
    row = await database.fetch_one(f"SELECT {counts} FROM environments")
    findings = []
    for number, one in enumerate(questions):
        count = 0 if row is None else int(row[f"n{number}"])
        if count:
            query = f"SELECT {_ID} FROM environments WHERE {one.condition} ORDER BY 1 LIMIT $1"
            examples = [str(found["id"]) for found in await database.fetch(query, limits.examples) if found["id"]]
            findings.append(_finding(one, count, examples))
    twice = await database.fetch(
        'SELECT "environmentUuid" AS id FROM environments WHERE "environmentUuid" IS NOT NULL'
        ' GROUP BY "environmentUuid" HAVING count(*) > 1 ORDER BY 1 LIMIT $1',
        limits.examples,
    )
    if twice:
        question = _Question("uuid", "", "stand in several rows as environmentUuid: `get` finds any one", _DIFFER)
        findings.append(_finding(question, len(twice), [str(found["id"]) for found in twice], "uuids"))
    repeated = await database.fetch(
        f"SELECT {_ID} FROM environments WHERE id IS NOT NULL GROUP BY id HAVING count(*) > 1 ORDER BY 1 LIMIT $1",
        limits.examples,
    )
    if repeated:
        findings.append(_finding(_REPEATED, len(repeated), [str(found["id"]) for found in repeated], "ids"))
    return findings


async def look_at_documents(
    database: Database, shape: TableShape, limits: OperationLimits, on_progress: Callable[[int], None] | None = None
) -> list[Finding]:
    """Everything that the documents tell: each is read and parsed, in constant memory."""
    damaged, different = _Found(limits.examples), _Found(limits.examples)
    done = 0
    async for rows in _batches(database, shape, limits):
        for id, problem in await anyio.to_thread.run_sync(_problems, rows):
            (different if problem == "uuid" else damaged).add(f"{id}{'' if problem == 'uuid' else f' ({problem})'}")
        done += len(rows)
        if on_progress is not None:
            on_progress(done)
    findings = []
    if damaged.count:
        question = _Question(
            "damaged",
            "",
            "have a document that cannot be read: they are listed and exported without",
            "Bring the document back from a backup.",
            "error",
        )
        findings.append(_finding(question, damaged.count, damaged.examples))
    if different.count:
        question = _Question("uuid", "", "have another uuid in their document than their id", _DIFFER)
        findings.append(_finding(question, different.count, different.examples))
    return findings


async def look_at_guards(database: Database, limits: OperationLimits) -> list[Finding]:
    """What keeps deleted environments in the table, whatever a purge does: foreign keys, with the ids that they hold,
    and what runs instead of a deletion or before it."""
    findings = []
    for holder in await read_holders(database):
        held = f'"deletedAt" IS NOT NULL AND EXISTS (SELECT FROM {holder.table} r WHERE {holder.condition})'
        query = f'SELECT id, count(*) OVER () AS count FROM environments e WHERE {held} ORDER BY "deletedAt" LIMIT $1'
        rows: Sequence[Row] = ()
        with suppress(DatabaseError):  # a table that this role may not read
            rows = await database.fetch(query, limits.examples)
        question = _Question(
            "kept",
            "",
            f"are held by the constraint {holder.constraint} of {holder.table}: no purge deletes them",
            f"Delete the rows of {holder.table} that refer to them, or leave them in the trash.",
        )
        if rows:
            findings.append(_finding(question, int(rows[0]["count"]), [row["id"] for row in rows]))
    findings += [
        Finding(
            level="info",
            subject="guard",
            message=f"The {guard} decides about deletions: a purge may have to leave environments in the trash.",
        )
        for guard in await read_guards(database, "DELETE")
    ]
    return findings


class _Found:
    def __init__(self, examples: int) -> None:
        self.count = 0
        self.examples: list[str] = []
        self._most = examples

    def add(self, example: str) -> None:
        self.count += 1
        if len(self.examples) < self._most:
            self.examples.append(example)


async def _batches(database: Database, shape: TableShape, limits: OperationLimits) -> AsyncGenerator[list[Row]]:
    columns = f"id, {LITE_LISTED_DOCUMENT}" if shape.status.dialect == "sqlite" else f"{_ID}, {LISTED_DOCUMENT}"
    query = f"SELECT {columns} FROM environments WHERE id IS NOT NULL AND environment IS NOT NULL"
    async with database.stream(query, batch=limits.export_batch, documents=shape.queries().documents) as batches:
        async for rows in batches:
            yield list(rows)


def _problems(rows: list[Row]) -> list[tuple[str, str]]:
    """The ids of damaged documents with the reason, and with `uuid` those of documents that name another uuid."""
    problems = []
    for row in rows:
        document = row["environment"]
        try:
            content = Content(document.encode() if isinstance(document, str) else document)
        except ValueError as error:
            problems.append((row["id"], str(error)))
            continue
        if content.uuid != row["id"]:
            problems.append((row["id"], "uuid"))
    return problems


def _finding(question: _Question, count: int, examples: list[str], what: str = "environments") -> Finding:
    named = f": {', '.join(examples)}{', …' if count > len(examples) else ''}" if examples else ""
    return Finding(
        level=question.level,
        subject=question.subject,
        message=f"{_counted(count, what, question.message)}{named}.",
        remedy=question.remedy,
    )


def _counted(count: int, what: str, message: str) -> str:
    """`2 environments have …`, `1 environment has …`."""
    if count != 1:
        return f"{count} {what} {message}"
    verb, _, rest = message.partition(" ")
    for many, one in (("they are", "it is"), ("They are", "It is"), ("their", "its"), ("deletes them", "deletes it")):
        rest = rest.replace(many, one)
    return f"1 {what.removesuffix('s')} {_SINGULAR[verb]} {rest}"


_SINGULAR = {"have": "has", "were": "was", "stand": "stands", "are": "is"}
