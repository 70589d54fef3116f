"""A statement that failed, in words of no driver, and the service's error it becomes.

The adapters turn every exception of their driver into a `StatementFailure`, each in one context manager. The pools
turn that into the errors callers see; the migrator looks at `sqlstate` itself.
"""

from services.environments_store.errors import (
    DatabaseError,
    DatabaseReadOnlyError,
    DatabaseUnavailableError,
    DatabaseUnreachableError,
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
    "service_error",
]

ServiceError = DatabaseError | DatabaseUnavailableError | DatabaseReadOnlyError

# 57P01-57P03: the server is stopping, starting or has dropped us; 25P03/25P04: a time limit closed the connection.
LOST_STATES = frozenset({"57P01", "57P02", "57P03", "57P04", "57P05", "25P03", "25P04"})
REFUSED_BY_POOLER = "POOLER_SETTING"
"""Nor this: PgBouncer says `08P01`, as to a broken connection, to a setting that it does not let through."""
REFUSED_SETTINGS = frozenset({"42704", "22023", "55P02", REFUSED_BY_POOLER})
"""What is said at the start of a connection to a setting that the server does not have, or cannot set so."""
BAD_ADDRESS = "22000"
"""What the driver's own refusals are given, as of an sslmode that there is not."""
REBUILT = "SQLITE_SCHEMA"
"""SQLite's own name for a schema that somebody else has changed."""
MOVED = "SQLITE_READONLY_DBMOVED"
"""And for a file that is not any more where it was opened."""
TOO_MANY_CONNECTIONS = "53300"
"""The role, the database or the server has all the connections that it allows."""
CROWDED = "POOLER_CROWDED"
"""No database's name: a pooler gave no second connection beside the one that holds the lock of the migration."""
MISSING = frozenset({"42703", "42P01", REBUILT})
READ_ONLY = frozenset({"25006"})
# Lock, deadlock, serialisation, cancel or timeout, disk, memory, connections, login, unknown database, and a plan
# that a migration made stale: nothing was stored, and trying again may help.
UNAVAILABLE = frozenset({"55P03", "40P01", "40001", "57014", "53000", "53100", "53200", "53300", "53400", "3D000"})
STALE_PLANS = ("cached plan must not change result type", "cached statement plan is invalid")

SQLITE_MISSING = ("no such column", "has no column named", "no such table")
SQLITE_READ_ONLY = ("SQLITE_READONLY", "SQLITE_PERM")
SQLITE_UNAVAILABLE = (
    "SQLITE_BUSY",
    "SQLITE_LOCKED",
    "SQLITE_FULL",
    "SQLITE_IOERR",
    "SQLITE_NOMEM",
    "SQLITE_CANTOPEN",
    "SQLITE_INTERRUPT",
    "SQLITE_PROTOCOL",
    MOVED,
)


class StatementFailure(Exception):
    """`sqlstate` is PostgreSQL's code or SQLite's error name, None when the database said nothing.

    `lost`: the connection is gone, and with it every lock and open transaction. `sent`: False when the statement
    surely never reached the database. `timed_out`: no answer came in time.
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
    ) -> None:
        super().__init__(message)
        self.message = message
        self.sqlstate = sqlstate
        self.lost = lost
        self.sent = sent
        self.timed_out = timed_out
        self.hint = hint


def service_error(failure: StatementFailure, *, write: bool) -> ServiceError:
    """The error a caller gets. `write`: whether what failed may have stored something."""
    state = failure.sqlstate or ""
    if state == BAD_ADDRESS and not failure.sent:
        return DatabaseError(f"The address of the database cannot be used: {failure.message}", state)
    if state in REFUSED_SETTINGS and not failure.sent:
        return DatabaseError(
            f"The server refused a connection: {failure.message}. What follows the '?' in the address of the database"
            " goes to the server as a setting, and a pooler takes hardly any: remove what is none, or set it for the"
            " role.",
            state,
        )
    if failure.lost or not failure.sent:
        if write and failure.sent:
            return OutcomeUnknownError(
                f"The connection was lost during a write, which may or may not be stored: {failure.message}"
            )
        return DatabaseUnreachableError(f"The database cannot be reached now: {failure.message}")
    if state in MISSING or (state == "SQLITE_ERROR" and any(text in failure.message for text in SQLITE_MISSING)):
        return MissingColumnError(f"The database misses what a query names: {failure.message}", state)
    if state in READ_ONLY or (state.startswith(SQLITE_READ_ONLY) and state != MOVED):
        return DatabaseReadOnlyError(f"The database only reads now: {failure.message}", sqlstate=state)
    if state == "0A000" and failure.message.startswith(STALE_PLANS):
        return StalePlanError(f"The table was changed in the middle of a transaction: {failure.message}")
    if _is_passing(state):
        return DatabaseUnavailableError(f"The database could not do it now: {failure.message}", sqlstate=state)
    return DatabaseError(f"The database refused the query: {failure.message}", state or None)


def _is_passing(state: str) -> bool:
    return state in UNAVAILABLE or state.startswith(("08", "28")) or state.startswith(SQLITE_UNAVAILABLE)
