"""Problem rows that a table of the original may have: counted in one pass, with examples."""

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
    """A condition, and the finding about the rows that meet it."""

    subject: str
    condition: str
    message: str
    remedy: str
    level: Literal["error", "warning", "info"] = "warning"


_ID = "CAST(id AS text) AS id"
_DIFFER = "Find out which environment it is, then correct the wrong uuid with an UPDATE."
_BOTH = (
    _Question(
        "null-document",
        "environment IS NULL",
        "have no document: they are listed and exported with null",
        "Restore the document from a backup, or delete the row: DELETE FROM environments WHERE id = '…';",
        "error",
    ),
    _Question(
        "uuid",
        'CAST("environmentUuid" AS text) <> CAST(id AS text)',
        "have an environmentUuid that differs from the id. They are found by either, and listed by id",
        _DIFFER,
    ),
    _Question(
        "timestamp",
        '"timestamp" IS NULL',
        "have no timestamp: the time of their last change is shown",
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
        "have a deletedAt in the future: they are purged late",
        "UPDATE environments SET \"deletedAt\" = now() WHERE id = '…';",
    ),
)
_LITE = (
    _Question(
        "null-id",
        "id IS NULL",
        "have no id: no call can reach them",
        "UPDATE environments SET id = environmentUuid WHERE id IS NULL AND environmentUuid IS NOT NULL; or delete the"
        " rows.",
        "error",
    ),
)
_LITE_DELETED = (
    _Question(
        "unreadable-date",
        "deletedAt IS NOT NULL AND (deletedAt NOT GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]*'"
        " OR julianday(deletedAt) IS NULL)",
        "have a deletedAt that is a number or not a date: they count as deleted, and are never purged",
        # The dates that lists show. What SQLite cannot convert would become NULL, and so the environment live.
        "UPDATE environments SET deletedAt = strftime('%Y-%m-%d %H:%M:%f +00:00',"
        " CASE WHEN deletedAt < 1e11 THEN deletedAt ELSE deletedAt / 1000.0 END, 'unixepoch')"
        " WHERE typeof(deletedAt) IN ('integer', 'real') AND deletedAt BETWEEN 1e9 AND 253402300799999; which converts"
        " seconds and milliseconds since 2001. Check the others one by one.",
    ),
    _Question(
        "future-date",
        "deletedAt GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]*'"
        " AND julianday(deletedAt) > julianday('now', '+1 minute')",
        "have a deletedAt in the future: they are purged late",
        "UPDATE environments SET deletedAt = strftime('%Y-%m-%d %H:%M:%f +00:00', 'now') WHERE id = '…';",
    ),
)


_REPEATED = _Question(
    "duplicate-id",
    "",
    "have several rows, which prevents a key: `get` finds any one of them, and a write changes all of them",
    "Look at the rows of each id, and delete all but one: SELECT ctid, * FROM environments WHERE id = '…'; then DELETE"
    " FROM environments WHERE id = '…' AND ctid <> '…'; in SQLite use rowid instead of ctid.",
    "error",
)


def _questions(dialect: Dialect, soft_delete: bool) -> tuple[_Question, ...]:
    if dialect == "sqlite":
        return (*_BOTH, *_LITE, *(_LITE_DELETED if soft_delete else ()))
    return (*_BOTH, *_PG, *(_PG_DELETED if soft_delete else ()))


async def look_at_rows(database: Database, shape: TableShape, limits: OperationLimits) -> list[Finding]:
    """Check the columns, but not the documents, in one pass over the table."""
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
        question = _Question("uuid", "", "have several rows as environmentUuid: `get` finds any one of them", _DIFFER)
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
    """Read and parse every document, in constant memory."""
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
            "have a document that cannot be read: they are listed and exported with null",
            "Restore the document from a backup.",
            "error",
        )
        findings.append(_finding(question, damaged.count, damaged.examples))
    if different.count:
        question = _Question("uuid", "", "have a uuid in their document that differs from their id", _DIFFER)
        findings.append(_finding(question, different.count, different.examples))
    return findings


async def look_at_guards(database: Database, limits: OperationLimits) -> list[Finding]:
    """What keeps deleted environments from being purged: foreign keys, with the ids that they refer to, and triggers,
    rules and policies on deletions."""
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
            f"are referenced by the constraint {holder.constraint} of {holder.table}: no purge deletes them",
            f"Delete the rows of {holder.table} that refer to them, or leave them in the trash.",
        )
        if rows:
            findings.append(_finding(question, int(rows[0]["count"]), [row["id"] for row in rows]))
    findings += [
        Finding(
            level="info",
            subject="guard",
            message=f"The {guard} can prevent deletions: a purge may have to leave environments in the trash.",
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
    """The ids of damaged documents with the reason, or with `uuid` when the document has another uuid."""
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
    for many, one in (
        *(("they are", "it is"), ("They are", "It is"), ("they count", "it counts"), ("their", "its")),
        *(("deletes them", "deletes it"), ("and are never", "and is never")),
    ):
        rest = rest.replace(many, one)
    return f"1 {what.removesuffix('s')} {_SINGULAR[verb]} {rest}"


_SINGULAR = {"have": "has", "are": "is"}
