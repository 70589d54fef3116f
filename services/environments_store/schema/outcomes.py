"""How a failed migration statement is handled, by its SQLSTATE. Every retry begins with another inspection."""

from typing import Literal

from services.environments_store.database.failures import CROWDED, StatementFailure

__all__ = ["Outcome", "outcome_of", "public_words"]

Outcome = Literal[
    "blocked", "peer", "forbidden", "read-only", "exhausted", "crowded", "unsupported", "lost", "collided", "failed"
]

OUTCOMES: dict[str, Outcome] = {
    # A lock, a deadlock, a timeout or a cancel: retry after a pause.
    "55P03": "blocked",
    "40P01": "blocked",
    "57014": "blocked",
    # It exists: another node was faster.
    "42701": "peer",
    "42P07": "peer",
    "42710": "peer",
    "23505": "peer",
    "42501": "forbidden",
    "25006": "read-only",
    # Disk, memory, connections: retry slowly.
    "53100": "exhausted",
    "53200": "exhausted",
    "53300": "exhausted",
    # A pooler with too few connections: retry rarely, since each attempt keeps all callers waiting.
    CROWDED: "crowded",
    # Column limit, wrong kind of relation: needs a person.
    "54011": "unsupported",
    "42809": "unsupported",
    "0A000": "unsupported",
    # "tuple concurrently updated": another session works on the same index.
    "XX000": "collided",
}

SQLITE_OUTCOMES: tuple[tuple[str, Outcome], ...] = (
    ("SQLITE_BUSY", "blocked"),
    ("SQLITE_LOCKED", "blocked"),
    ("SQLITE_READONLY", "read-only"),
    ("SQLITE_PERM", "read-only"),
    ("SQLITE_FULL", "exhausted"),
    ("SQLITE_IOERR", "exhausted"),
    ("SQLITE_NOMEM", "exhausted"),
)


PUBLIC: tuple[tuple[str, str], ...] = (
    ("53100", "The disk of the database is full."),
    ("SQLITE_FULL", "The disk of the database is full."),
    ("SQLITE_IOERR", "The disk of the database reports an error."),
    ("54011", "The table has the maximum number of columns."),
)


def public_words(failure: StatementFailure) -> str | None:
    """The message for callers, without names or SQL."""
    return next((text for state, text in PUBLIC if (failure.sqlstate or "").startswith(state)), None)


def outcome_of(failure: StatementFailure) -> Outcome:
    """How to handle a failure. `lost` releases the migration lock, so all starts over with a new connection."""
    if failure.lost or not failure.sent:
        return "lost"
    state = failure.sqlstate or ""
    for prefix, outcome in SQLITE_OUTCOMES:
        if state.startswith(prefix):
            return outcome
    return OUTCOMES.get(state, "failed")
