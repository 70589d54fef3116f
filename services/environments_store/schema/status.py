"""The status of the schema, as data: the `schema` action returns it, and the store chooses its queries by it."""

from typing import Literal

import msgspec

from services.environments_store.database.base import Dialect

__all__ = ["ACTIONS", "UNREACHABLE", "Capability", "Finding", "Reason", "SchemaStatus", "State", "Step"]

State = Literal["ready", "migrating", "degraded"]
Reason = Literal[
    "forbidden",
    "unsupported",
    "read-only",
    "lost",
    "unavailable",
    "failed",
    "row-security",
    "elsewhere",
    "no-key",
    "replica-identity",
    "unlogged",
]
Capability = Literal["migrate", "read", "list", "insert", "update", "soft-delete", "delete"]
"""What the migration and the actions need of the table; `ACTIONS` maps them to the actions. Every action reads."""
ACTIONS: dict[Capability, tuple[str, ...]] = {
    "read": ("every action",),
    "list": ("list", "listDeleted", "export", "purge"),
    "insert": ("create", "import"),
    "update": ("update",),
    "soft-delete": ("remove", "restore", "purge"),  # a purge locks rows as an update does
    "delete": ("permanentDelete", "purge"),
}

UNREACHABLE: Reason = "unavailable"


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One finding: what it makes unavailable (`takes`), and what to do about it.

    `error`: the migration cannot continue, or an action is unavailable; `warning`: all works, but something is wrong.
    `message` and `remedy` are for operators, with roles and SQL. A finding that affects callers has a `reason`, and
    `public`, a short form without roles and SQL.
    """

    level: Literal["error", "warning", "info"]
    subject: str
    message: str
    remedy: str | None = None
    reason: Reason | None = None
    public: str = ""
    takes: tuple[Capability, ...] = ()

    @property
    def text(self) -> str:
        """Message and remedy in one line, for the log and for errors of commands."""
        return f"{self.message} {self.remedy}" if self.remedy else self.message


class Step(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One step of the plan: `name` is `table`, `column`, `index` or `statistics`, or `leftovers` on SQLite."""

    name: str
    state: Literal["done", "pending", "running", "failed"]
    detail: str | None = None


class SchemaStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The state of the schema after the last inspection.

    `ready`: the column exists (the index may still be pending), and every action is available. `migrating`: the service
    keeps trying to add it. `degraded`: the column cannot be added now, or an action is unavailable, for the `reason`;
    `error` is a sentence about it, with SQL to run, and `public` one without. A read-only database is `degraded` even
    with the column: see `soft_delete`.
    """

    state: State
    dialect: Dialect
    steps: tuple[Step, ...] = ()
    reason: Reason | None = None
    error: str | None = None
    public: str | None = None
    findings: tuple[Finding, ...] = ()
    """The findings that affect callers, the most severe first."""
    soft_delete: bool = False
    """Whether `deletedAt` exists and queries may name it."""
    writable: bool = True
    """False on a standby, a read-only server, file or folder."""
    dated: bool = True
    """Whether `createdAt` is NOT NULL, as in every table that the original made."""
    deleted_at_zone: bool = True
    """PostgreSQL: True for TIMESTAMPTZ, False for the guide's TIMESTAMP, which holds UTC wall time."""

    may_undo: bool = False
    """Whether triggers or rules of the table may undo a write whose statement has returned the row."""

    @property
    def without_table(self) -> bool:
        """Whether the table is missing."""
        return any(step.name == "table" and step.state != "done" for step in self.steps)

    def lack(self, *needed: Capability) -> Finding | None:
        """The finding that makes one of these unavailable. A read-only database is not among them: its own error says
        so, and ends as soon as the database is writable."""
        if not self.findings:
            return None
        return next(
            (one for one in self.findings if one.reason != "read-only" and not set(needed).isdisjoint(one.takes)), None
        )
