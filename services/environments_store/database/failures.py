"""A statement that failed, in words of no driver, and the service's error it becomes.

The adapters turn every exception of their driver into a `StatementFailure`, each in one context manager. The pools
turn that into the errors callers see, by the one table of what codes mean; the migrator looks at `sqlstate` itself.
"""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import Any, Literal

from services.environments_store.errors import (
    DatabaseError,
    DatabaseForbiddenError,
    DatabaseReadOnlyError,
    DatabaseRefusedError,
    DatabaseUnavailableError,
    DatabaseUnreachableError,
    DatabaseValueError,
    MissingColumnError,
    OutcomeUnknownError,
    StalePlanError,
)

__all__ = [
    "BAD_ADDRESS",
    "CROWDED",
    "LOST_STATES",
    "MOVED",
    "REBUILT",
    "REFUSED_BY_POOLER",
    "TOO_MANY_CONNECTIONS",
    "ServiceError",
    "StatementFailure",
    "Translation",
    "service_error",
    "service_errors",
]

ServiceError = DatabaseError | DatabaseUnavailableError | DatabaseReadOnlyError | DatabaseRefusedError
Kind = Literal["unavailable", "read-only", "missing", "value", "refused", "forbidden", "failed"]

# 57P01-57P03: the server is stopping, starting or has dropped us; 25P03/25P04: a time limit closed the connection.
LOST_STATES = frozenset({"57P01", "57P02", "57P03", "57P04", "57P05", "25P03", "25P04"})
REFUSED_BY_POOLER = "POOLER_SETTING"
"""Nor this: PgBouncer says `08P01`, as to a broken connection, to a setting that it does not let through."""
REFUSED_SETTINGS = frozenset({"42704", "22023", "55P02", REFUSED_BY_POOLER})
"""What is said at the start of a connection to a setting that the server does not have, or cannot set so."""
BAD_ADDRESS = "22000"
"""What the driver's own refusals are given, as of an sslmode that there is not."""
REBUILT = "SQLITE_SCHEMA"
"""SQLite's error for a schema that another connection has changed."""
MOVED = "SQLITE_READONLY_DBMOVED"
"""And for a file that is not any more where it was opened."""
TOO_MANY_CONNECTIONS = "53300"
"""The role, the database or the server has all the connections that it allows."""
CROWDED = "POOLER_CROWDED"
"""No database's name: a pooler gave no second connection beside the one that holds the lock of the migration."""

_OTHERS = "another transaction is in the way"
_RESOURCES = "it is out of memory, disk space or connections"
_FILE = "its file cannot be used"
MEANINGS: dict[str, tuple[Kind, str]] = {
    # Nothing was stored, and another attempt may succeed.
    "08": ("unavailable", "it cannot be reached"),
    "28": ("unavailable", "it does not let the service log in"),
    "3D000": ("unavailable", "it does not exist"),
    "40001": ("unavailable", _OTHERS),
    "40P01": ("unavailable", _OTHERS),
    "55P03": ("unavailable", _OTHERS),
    "53": ("unavailable", _RESOURCES),
    "57014": ("unavailable", "it took too long"),
    "SQLITE_BUSY": ("unavailable", _OTHERS),
    "SQLITE_LOCKED": ("unavailable", _OTHERS),
    "SQLITE_PROTOCOL": ("unavailable", _OTHERS),
    "SQLITE_INTERRUPT": ("unavailable", "it took too long"),
    "SQLITE_FULL": ("unavailable", _RESOURCES),
    "SQLITE_NOMEM": ("unavailable", _RESOURCES),
    "SQLITE_IOERR": ("unavailable", _FILE),
    "SQLITE_CANTOPEN": ("unavailable", _FILE),
    MOVED: ("unavailable", _FILE),
    "25006": ("read-only", ""),
    "SQLITE_READONLY": ("read-only", ""),
    "SQLITE_PERM": ("read-only", ""),
    "42703": ("missing", ""),
    "42P01": ("missing", ""),
    REBUILT: ("missing", ""),
    # A value that does not fit: out of range, an escape that `jsonb` refuses, too large, too deep.
    "22": ("value", "a value does not fit"),
    "54": ("value", "a value is too large"),
    "SQLITE_TOOBIG": ("value", "a value is too large"),
    "SQLITE_MISMATCH": ("value", "a value does not fit"),
    # The database does not want it, now or later: constraints, RAISE, WITH CHECK OPTION, a view that cannot be written.
    "23": ("refused", "a constraint does not allow it"),
    "27": ("refused", "a trigger changed the same row"),
    "44": ("refused", "the condition of a view does not allow it"),
    "55000": ("refused", "the table or view does not take it"),
    "SQLITE_CONSTRAINT": ("refused", "a constraint does not allow it"),
    # A person has to grant a right.
    "42501": ("forbidden", ""),
}
"""By code, class of codes, or the beginning of SQLite's name: the longest that fits counts."""
STALE_PLANS = ("cached plan must not change result type", "cached statement plan is invalid")
SQLITE_MISSING = ("no such column", "has no column named", "no such table")
_POLICY = re.compile(r'new row violates row-level security policy(?: "(.+)")?(?: \(USING expression\))? for table')
_RULE = re.compile(r"cannot perform \w+ RETURNING on relation")


class StatementFailure(Exception):
    """`sqlstate` is PostgreSQL's code or SQLite's error name, None when the database sent none.

    `lost`: the connection is closed, and with it every lock and transaction. `sent`: False when the statement certainly
    never reached the database. `timed_out`: no answer came in time. `constraint` is the name of the violated
    constraint, `function` that of the failed trigger function; `raised`: by RAISE, whose text is meant for users.
    """

    def __init__(
        self,
        message: str,
        *,
        sqlstate: str | None = None,
        lost: bool = False,
        sent: bool = True,
        timed_out: bool = False,
        hint: str | None = None,
        constraint: str | None = None,
        function: str | None = None,
        raised: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.sqlstate = sqlstate
        self.lost = lost
        self.sent = sent
        self.timed_out = timed_out
        self.hint = hint
        self.constraint = constraint
        self.function = function
        self.raised = raised


class Translation(AbstractContextManager[None]):
    """Raises what `translate` makes of an error of these kinds, in place of it. Without state, so one serves all
    statements; a class, as each statement passes several of them, and generators cost ten times as much."""

    def __init__(
        self, kinds: type[BaseException] | tuple[type[BaseException], ...], translate: Callable[[Any], BaseException]
    ) -> None:
        self._kinds = kinds
        self._translate = translate

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, self._kinds):
            raise self._translate(error) from error


def service_errors(*, write: bool) -> AbstractContextManager[None]:
    """Failures of statements as the errors that callers get. `write`: whether what fails may have stored something."""
    return _WRITE_ERRORS if write else _READ_ERRORS


def service_error(failure: StatementFailure, *, write: bool) -> ServiceError:
    """The error a caller gets. Its `public` text names no role, host or statement."""
    state = failure.sqlstate or ""
    if state == BAD_ADDRESS and not failure.sent:
        return DatabaseError(
            f"The address of the database cannot be used: {failure.message}",
            state,
            public="The address of the database cannot be used.",
        )
    if state in REFUSED_SETTINGS and not failure.sent:
        return DatabaseError(
            f"The server refused a connection: {failure.message}. Parameters after the '?' in the URL of the database"
            " are sent to the server as settings, of which a pooler accepts few: remove the invalid ones, or set them"
            " for the role.",
            state,
            public="The database refused a connection.",
        )
    if failure.lost or not failure.sent:
        return _unreachable(failure, write)
    kind, words = _meaning(failure)
    match kind:
        case "missing":
            return MissingColumnError(
                f"The database misses what a query names: {failure.message}",
                state,
                public="The table is not as it was.",
            )
        case "read-only":
            return DatabaseReadOnlyError(
                f"The database is read-only: {failure.message}", public="The database is read-only.", sqlstate=state
            )
        case "unavailable":
            return DatabaseUnavailableError(
                f"The database could not do it now: {failure.message}",
                public=f"The database could not do it now: {words}.",
                sqlstate=state,
            )
        case "forbidden":
            return DatabaseForbiddenError(
                f"The role of the service lacks a right: {failure.message}. The owner of what that names has to GRANT"
                " it; `environments-store migrate check` prints the statement for the table.",
                state,
                public="The service lacks a right in the database; its log says which, and how to grant it.",
            )
        case "refused" | "value":
            return _refusal(failure, words, DatabaseRefusedError if kind == "refused" else DatabaseValueError)
    if state == "0A000" and failure.message.startswith(STALE_PLANS):
        return StalePlanError(
            f"The table was changed in the middle of a transaction: {failure.message}",
            public="The table was changed in the middle of a transaction.",
        )
    return DatabaseError(
        f"The database refused the query: {failure.message}", state or None, public="The database refused the query."
    )


def _meaning(failure: StatementFailure) -> tuple[Kind, str]:
    state = failure.sqlstate or ""
    found = next((MEANINGS[state[:end]] for end in range(len(state), 1, -1) if state[:end] in MEANINGS), None)
    if found is not None and found[0] in ("unavailable", "read-only"):
        return found
    if failure.raised or failure.function is not None:
        return "refused", f"the function '{failure.function}' of a trigger failed"
    if state == "42501" and _POLICY.match(failure.message):
        return "refused", "a policy of row level security does not allow it"
    if state == "0A000" and _RULE.match(failure.message):
        return "refused", "a rule of the table does something else instead"
    if state == "SQLITE_ERROR" and any(text in failure.message for text in SQLITE_MISSING):
        return "missing", ""
    return found or ("failed", "")


def _refusal(failure: StatementFailure, words: str, kind: type[DatabaseRefusedError]) -> DatabaseRefusedError:
    policy = _POLICY.match(failure.message)
    names = {"constraint": failure.constraint, "function": failure.function, "policy": policy and policy.group(1)}
    if failure.raised:
        words = failure.message.rstrip(".")
    elif failure.constraint is not None:
        words = f"the constraint '{failure.constraint}' does not allow it"
    elif names["policy"]:
        words = f"the policy '{names['policy']}' does not allow it"
    return kind(
        f"The database refused it: {failure.message}",
        public=f"The database refused it: {words}.",
        sqlstate=failure.sqlstate,
        **names,
    )


def _unreachable(failure: StatementFailure, write: bool) -> DatabaseUnavailableError:
    if write and failure.sent:
        lost = "The connection was lost during a write, which may or may not be stored"
        return OutcomeUnknownError(f"{lost}: {failure.message}", public=f"{lost}.")
    busy = failure.timed_out and not failure.lost
    return DatabaseUnreachableError(
        f"The database cannot be reached now: {failure.message}",
        public="All connections to the database are busy." if busy else "The database cannot be reached now.",
    )


_READ_ERRORS = Translation(StatementFailure, partial(service_error, write=False))
_WRITE_ERRORS = Translation(StatementFailure, partial(service_error, write=True))
