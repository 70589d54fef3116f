"""What is known of the schema, as data: the `schema` action answers with it, the store picks its queries by it."""

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
"""What the migration needs of the table, and what the actions need, each of which reads: `ACTIONS` names them."""
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
    """One thing that was seen: what it takes away, and what to do about it.

    `error`: the migration cannot go on, or the service cannot do all of its work; `warning`: it can, and something is
    wrong. `message` and `remedy` are for those who run the service, with roles and SQL. What concerns callers too has a
    `reason`, and `public`, the short form without either.
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
        """All of it in one line, for a log and for the error of a command."""
        return f"{self.message} {self.remedy}" if self.remedy else self.message


class Step(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One step of the plan: `name` is `table`, `column`, `index` or `statistics`."""

    name: str
    state: Literal["done", "pending", "running", "failed"]
    detail: str | None = None


class SchemaStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The state of the schema after the last inspection.

    `ready`: the column is there (the index may still be pending), and nothing keeps an action from its work.
    `migrating`: attempts to add it go on. `degraded`: it is missing and cannot be added now, or an action does not
    work, for the `reason`; `error` says why in words, with the SQL a person can run, and `public` without. A database
    that only reads is `degraded` with `read-only`, also when the column is there: see `soft_delete`.
    """

    state: State
    dialect: Dialect
    steps: tuple[Step, ...] = ()
    reason: Reason | None = None
    error: str | None = None
    public: str | None = None
    findings: tuple[Finding, ...] = ()
    """Those that concern callers, the weightiest first."""
    soft_delete: bool = False
    """Whether `deletedAt` is there and may be named by queries."""
    writable: bool = True
    """False on a standby, a read-only server, file or folder."""
    dated: bool = True
    """Whether `createdAt` is NOT NULL, as in every table that the original made."""
    deleted_at_zone: bool = True
    """PostgreSQL: True for TIMESTAMPTZ, False for the guide's TIMESTAMP, which holds UTC wall time."""

    may_undo: bool = False
    """Whether triggers or rules of the table may undo a write after its statement gave the row back."""

    @property
    def without_table(self) -> bool:
        """Whether there was no table at all."""
        return any(step.name == "table" and step.state != "done" for step in self.steps)

    def lack(self, *needed: Capability) -> Finding | None:
        """What keeps an action from its work. A database that only reads says so itself, and at once when it no longer
        does: that is not foreseen."""
        if not self.findings:
            return None
        return next(
            (one for one in self.findings if one.reason != "read-only" and not set(needed).isdisjoint(one.takes)), None
        )
