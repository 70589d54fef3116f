"""What is known of the schema, as data: the `schema` action answers with it, the store picks its queries by it."""

from typing import Literal

import msgspec

from services.environments_store.database.base import Dialect

State = Literal["ready", "migrating", "degraded"]
Reason = Literal["forbidden", "unsupported", "read-only", "lost", "unavailable", "failed", "row-security"]

UNREACHABLE: Reason = "unavailable"


class Step(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One step of the plan: `name` is `table`, `column`, `index` or `statistics`."""

    name: str
    state: Literal["done", "pending", "running", "failed"]
    detail: str | None = None


class SchemaStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The state of the schema after the last inspection.

    `ready`: the column is there (the index may still be pending). `migrating`: attempts to add it go on. `degraded`:
    it is missing and cannot be added now, for the `reason`; `error` says why in words, with the SQL a person can run.
    A database that only reads is `degraded` with `read-only`, also when the column is there: see `soft_delete`. So is
    one whose rows the role has no right to, with `forbidden`.
    """

    state: State
    dialect: Dialect
    steps: tuple[Step, ...] = ()
    reason: Reason | None = None
    error: str | None = None
    soft_delete: bool = False
    """Whether `deletedAt` is there and may be named by queries."""
    readable: bool = True
    """False while row level security hides every row: an empty answer would look like an empty store."""
    writable: bool = True
    """False on a standby, a read-only server, file or folder."""
    dated: bool = True
    """Whether `createdAt` is NOT NULL, as in every table that the original made."""
    deleted_at_zone: bool = True
    """PostgreSQL: True for TIMESTAMPTZ, False for the guide's TIMESTAMP, which holds UTC wall time."""

    @property
    def without_table(self) -> bool:
        """Whether there was no table at all."""
        return any(step.name == "table" and step.state != "done" for step in self.steps)
