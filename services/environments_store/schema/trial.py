"""Whether PostgreSQL accepts the statements of the service: it plans each of them without running it.

The inspection finds known obstacles and their reasons; planning finds any other before a caller meets it. Not used on
SQLite, whose EXPLAIN may crash while another process changes the schema (3.40.1).
"""

import re
from collections.abc import Awaitable, Callable, Iterator

import msgspec

from services.environments_store.aliases import ALL as ALL_ALIASES
from services.environments_store.database.failures import StatementFailure
from services.environments_store.queries import Queries, choose
from services.environments_store.schema.inspection import Inspection, Refusal
from services.environments_store.schema.outcomes import outcome_of
from services.environments_store.schema.plan import status_of
from services.environments_store.schema.status import Capability

__all__ = ["try_statements"]

Explain = Callable[[tuple[str, ...]], Awaitable[None]]
PLACEHOLDER = re.compile(r"\$\d")
CHANGED = ("42703", "42P01")
"""A column or the table has disappeared since the inspection."""


class _CannotTellError(Exception):
    """The table is locked, or has changed since the inspection: the next one decides."""


async def try_statements(found: Inspection, explain: Explain, before: Inspection | None = None) -> Inspection:
    """Add the database's refusals of the statements that fit the inspection.

    `explain` raises StatementFailure. When nothing can be said now, the refusals of `before` are kept.
    """
    if found.kind is None or found.missing_columns:
        return found
    statements = [
        (capability, tuple(PLACEHOLDER.sub("NULL", one) for one in needed))
        for capability, needed in _statements(choose(status_of(found)))
        if not found.standby or capability in ("read", "list")
    ]
    refusals: dict[Capability, Refusal] = {}
    try:
        if await _said(explain, tuple(one for _, needed in statements for one in needed)) is not None:
            for capability, needed in statements:
                if (said := await _said(explain, needed)) is not None:
                    refusals[capability] = said
    except _CannotTellError:
        return msgspec.structs.replace(found, refusals=before and before.refusals)
    return msgspec.structs.replace(found, refusals=refusals)


async def _said(explain: Explain, statements: tuple[str, ...]) -> Refusal | None:
    """The refusal of these statements, None when they are accepted. Raises _CannotTellError."""
    try:
        await explain(statements)
    except StatementFailure as failure:
        outcome = outcome_of(failure)
        if outcome == "lost":
            raise
        if outcome == "blocked" or failure.sqlstate in CHANGED:
            raise _CannotTellError from failure
        return None if outcome == "read-only" else Refusal(failure.sqlstate or "", failure.message)
    return None


def _statements(queries: Queries) -> Iterator[tuple[Capability, tuple[str, ...]]]:
    yield "read", (queries.get, queries.get_by_environment_uuid, ALL_ALIASES, queries.stats)
    yield "list", queries.listing.after
    yield "insert", (queries.create,)
    yield "update", (queries.update,)
    if queries.soft_delete is not None:
        yield "soft-delete", (queries.soft_delete.remove, queries.soft_delete.restore)
    yield "delete", (queries.delete_any,)
