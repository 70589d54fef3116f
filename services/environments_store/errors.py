"""The errors of the environments-store service, as callers see them.

    MoleculerClientError
    ├── EnvironmentNotFoundError         404  ENVIRONMENT_NOT_FOUND
    ├── EnvironmentExistsError           409  ENVIRONMENT_EXISTS
    ├── EnvironmentDeletedError          409  ENVIRONMENT_DELETED        in the trash: restore it
    ├── EnvironmentChangedError          409  ENVIRONMENT_CHANGED        `data.hash` is the current one
    ├── EnvironmentNotDeletedError       409  ENVIRONMENT_NOT_DELETED    live: use `force`
    ├── DatabaseRefusedError             409  DATABASE_REFUSED           a constraint, trigger, rule or policy
    │   └── DatabaseValueError           409  the same: a value does not fit; 422 where it is the caller's document
    └── ImportRefusedError               422  IMPORT_REFUSED             `data.line` is the first bad line
    MoleculerRetryableError
    ├── SoftDeleteUnavailableError       503  SOFT_DELETE_UNAVAILABLE    the column is missing; nothing was deleted
    ├── DatabaseUnavailableError         503  DATABASE_UNAVAILABLE       connection lost or refused
    │   ├── DatabaseUnreachableError     503  the same: cannot connect
    │   │   └── OutcomeUnknownError      503  the same: the connection was lost during a write; read the row back
    │   └── StalePlanError               503  the same: the table was changed during a transaction
    └── DatabaseReadOnlyError            503  DATABASE_READ_ONLY
    MoleculerServerError
    └── DatabaseError                    500  DATABASE_ERROR             a query that failed
        └── DatabaseForbiddenError       500  DATABASE_FORBIDDEN         the role lacks a privilege; not retryable

The message may contain role names, hosts and SQL: it is for logs and commands. Callers on other nodes get `public`
instead.

On the wire the class name is that of the nearest Moleculer class, which a JS node can recreate; programs distinguish
the errors by `type`. `ConfigError` never crosses the wire: it ends a command with one line.
"""

from typing import Any, ClassVar

from broker.errors import MoleculerClientError, MoleculerRetryableError, MoleculerServerError

__all__ = [
    "ConfigError",
    "DatabaseError",
    "DatabaseForbiddenError",
    "DatabaseReadOnlyError",
    "DatabaseRefusedError",
    "DatabaseUnavailableError",
    "DatabaseUnreachableError",
    "DatabaseValueError",
    "EnvironmentChangedError",
    "EnvironmentDeletedError",
    "EnvironmentExistsError",
    "EnvironmentNotDeletedError",
    "EnvironmentNotFoundError",
    "EnvironmentStateError",
    "ImportRefusedError",
    "MissingColumnError",
    "OperationError",
    "OutcomeUnknownError",
    "SoftDeleteUnavailableError",
    "StalePlanError",
]


class EnvironmentStateError(MoleculerClientError):
    """An environment is not in the state that the call needs."""

    default_code = 409
    text: ClassVar[str]

    def __init__(self, uuid: str, **data: Any) -> None:
        super().__init__(self.text.format(uuid=uuid), data={"uuid": uuid, **data})

    @property
    def name(self) -> str:
        return "MoleculerClientError"


class EnvironmentNotFoundError(EnvironmentStateError):
    default_code = 404
    default_type = "ENVIRONMENT_NOT_FOUND"
    text = "There is no environment '{uuid}'."


class EnvironmentExistsError(EnvironmentStateError):
    default_type = "ENVIRONMENT_EXISTS"
    text = "An environment '{uuid}' exists already."


class EnvironmentDeletedError(EnvironmentStateError):
    default_type = "ENVIRONMENT_DELETED"
    text = "The environment '{uuid}' is in the trash. Restore it, or delete it permanently first."


class EnvironmentChangedError(EnvironmentStateError):
    default_type = "ENVIRONMENT_CHANGED"
    text = "The environment '{uuid}' was changed by another caller. Read it again and repeat the change."


class EnvironmentNotDeletedError(EnvironmentStateError):
    default_type = "ENVIRONMENT_NOT_DELETED"
    text = "The environment '{uuid}' is live. Remove it first, or pass force: true."


class DatabaseRefusedError(MoleculerClientError):
    """A constraint, trigger, rule or policy of the database refuses this write; `data` names it where it is known.
    Nothing was stored, and a retry does not help."""

    default_code = 409
    default_type = "DATABASE_REFUSED"

    def __init__(self, message: str, *, public: str | None = None, **data: Any) -> None:
        super().__init__(message, data={name: value for name, value in data.items() if value is not None} or None)
        self.sqlstate: str | None = data.get("sqlstate")
        self.public = public

    @property
    def name(self) -> str:
        return "MoleculerClientError"


class DatabaseValueError(DatabaseRefusedError):
    """The database cannot store a value."""


class ImportRefusedError(MoleculerClientError):
    """A line of an import cannot be stored. Nothing was imported."""

    default_code = 422
    default_type = "IMPORT_REFUSED"

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"Line {line}: {reason}. Nothing was imported.", data={"line": line, "reason": reason})

    @property
    def name(self) -> str:
        return "MoleculerClientError"


class _RetryableError(MoleculerRetryableError):
    default_code = 503

    def __init__(self, message: str, *, public: str | None = None, **data: Any) -> None:
        super().__init__(message, data=data or None)
        self.public = public

    @property
    def name(self) -> str:
        return "MoleculerRetryableError"


class SoftDeleteUnavailableError(_RetryableError):
    """The table has no `deletedAt` column and it cannot be added now. Nothing was deleted or restored."""

    default_type = "SOFT_DELETE_UNAVAILABLE"


class DatabaseUnavailableError(_RetryableError):
    """The connection is down, refused or timed out; nothing of this call was stored."""

    default_type = "DATABASE_UNAVAILABLE"


class DatabaseUnreachableError(DatabaseUnavailableError):
    """The database cannot be reached, or the connection was lost."""


class OutcomeUnknownError(DatabaseUnreachableError):
    """The connection was lost during a write, which may or may not be stored. Read the row back."""


class StalePlanError(DatabaseUnavailableError):
    """A change of the table made a plan of this transaction stale. Nothing was stored; a retry succeeds."""


class DatabaseReadOnlyError(_RetryableError):
    """A standby, a read-only server, file or folder."""

    default_type = "DATABASE_READ_ONLY"


class DatabaseError(MoleculerServerError):
    """A query failed. `sqlstate` is PostgreSQL's code or SQLite's error name."""

    default_type = "DATABASE_ERROR"

    def __init__(self, message: str, sqlstate: str | None = None, *, public: str | None = None) -> None:
        super().__init__(message, data={"sqlstate": sqlstate} if sqlstate else None)
        self.sqlstate = sqlstate
        self.public = public

    @property
    def name(self) -> str:
        return "MoleculerServerError"


class DatabaseForbiddenError(DatabaseError):
    """The role of the service lacks a privilege, which a person has to grant. A retry does not help, so JavaScript
    nodes get it as a MoleculerError, which is not retryable."""

    default_type = "DATABASE_FORBIDDEN"

    def __init__(self, message: str, sqlstate: str | None = None, *, public: str | None = None) -> None:
        super().__init__(message, sqlstate, public=public)
        self.retryable = False
        self.data = {**(self.data or {}), "reason": "forbidden"}

    @property
    def name(self) -> str:
        return "MoleculerError"


class MissingColumnError(DatabaseError):
    """A query names a column or table that does not exist (42703, 42P01), because the schema was changed."""


class OperationError(MoleculerServerError):
    """An operation of a command was refused or failed. Unless the message says otherwise, nothing was changed."""

    default_type = "OPERATION_FAILED"

    @property
    def name(self) -> str:
        return "MoleculerServerError"


class ConfigError(ValueError):
    """An invalid setting, with an example of a valid one."""
