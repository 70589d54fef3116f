"""What a migration will do: each step with its lock and duration, and what it never does."""

import msgspec

from services.environments_store.database.base import Dialect
from services.environments_store.defaults import MigrationBudgets
from services.environments_store.schema.check import look
from services.environments_store.schema.index import next_action, size_kilobytes
from services.environments_store.schema.inspection import Inspection
from services.environments_store.schema.names import COLUMN, quoted
from services.environments_store.schema.plan import obstacle_to_column, pending_steps
from services.environments_store.schema.sql import add_column, create_index
from services.environments_store.schema.status import Finding

__all__ = ["Plan", "PlannedStep", "plan"]

# Measured on two cores and a local disk: a plain build of a million rows 0.8 s, concurrently and under load less than
# twice that; statistics of one column 0.2 s; on SQLite 0.5 s. Rounded up.
_INDEX_ROWS_A_SECOND = 500_000
_STATISTICS_ROWS_A_SECOND = 2_000_000


class PlannedStep(msgspec.Struct, frozen=True, kw_only=True):
    """`state` is `done`, `pending`, or `blocked`, which needs a person."""

    name: str
    state: str
    statement: str
    lock: str
    duration: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """`database` is the URL without its password; `blockers` hold locks on the table now."""

    dialect: Dialect
    database: str
    table: str
    rows_estimate: int
    steps: tuple[PlannedStep, ...]
    blockers: tuple[str, ...]
    findings: tuple[Finding, ...]
    will_not: tuple[str, ...]

    @property
    def pending(self) -> bool:
        """Whether a step is left, or a problem needs a person first."""
        return any(step.state != "done" for step in self.steps) or any(one.level == "error" for one in self.findings)


async def plan(url: str) -> Plan:
    """Plan the migration and change nothing. Raises as `check` does."""
    seen = await look(url)
    location, found, blockers = seen
    return Plan(
        dialect=found.dialect,
        database=location.label,
        table=found.table if found.dialect == "sqlite" else f"{found.schema}.{found.table}",
        rows_estimate=found.rows if found.dialect == "postgresql" else -1,
        steps=_steps(found),
        blockers=() if found.has_column else tuple(map(str, blockers)),
        findings=seen.findings,
        will_not=_will_not(found),
    )


def _steps(found: Inspection) -> tuple[PlannedStep, ...]:
    pending = pending_steps(found)
    names = ("leftovers", "table", "column", "index", "statistics")
    shown = [name for name in names if name in pending or name in ("table", "column", "index")]
    return tuple(_step(name, found, name in pending) for name in shown)


def _step(name: str, found: Inspection, pending: bool) -> PlannedStep:
    if not pending:
        return PlannedStep(name=name, state="done", statement="", lock="none", duration="none")
    sqlite = found.dialect == "sqlite"
    if found.kind is None and name in ("column", "index"):
        return PlannedStep(name=name, state="pending", statement="", lock="none", duration="created with the table")
    blocked = name in ("table", "column") and obstacle_to_column(found) is not None
    if name == "index":
        blocked = found.kind is not None and next_action(found, MigrationBudgets()).kind == "leave"
    return PlannedStep(
        name=name,
        state="blocked" if blocked else "pending",
        statement=_statement(name, found),
        lock="the write lock of the file" if sqlite else _LOCKS[name],
        duration=_duration(name, found),
    )


_LOCKS = {
    "table": "none that blocks other sessions",
    "column": "ACCESS EXCLUSIVE, in attempts of 50 to 250 ms, so that readers are not blocked for longer",
    "index": "SHARE UPDATE EXCLUSIVE: reads and writes continue",
    "statistics": "SHARE UPDATE EXCLUSIVE: reads and writes continue",
}


def _statement(name: str, found: Inspection) -> str:
    if name == "column":
        return add_column(found.dialect, found.schema, found.table)
    if name == "index":
        return create_index(found.dialect, found.schema, found.table)
    if name == "statistics":
        return f"ANALYZE {quoted(found.table)}" + ("" if found.dialect == "sqlite" else f" ({quoted(COLUMN)})")
    return "CREATE TABLE for both tables of the original" if name == "table" else "ALTER TABLE … RENAME"


def _duration(name: str, found: Inspection) -> str:
    rows = found.rows
    if name == "index":
        if found.dialect == "sqlite":
            return "about 1 s for a million rows"
        return f"about {_seconds(rows / _INDEX_ROWS_A_SECOND)}, and {size_kilobytes(found):,} kB of disk"
    if name == "statistics":
        return f"about {_seconds(rows / _STATISTICS_ROWS_A_SECOND)}"
    return "milliseconds, regardless of the number of rows"


def _seconds(value: float) -> str:
    return "1 s" if value <= 1 else f"{value:,.0f} s"


def _will_not(found: Inspection) -> tuple[str, ...]:
    common = (
        "change rows, or any other column or table",
        "drop anything, except an INVALID index of its own name that no session is building",
        "add an index for lists of live rows (`migrate list-index` does that) or a table of schema versions",
    )
    if found.dialect == "sqlite":
        return (*common, "drop a copy of the table that an interrupted start of the original application left behind")
    return (
        *common,
        "terminate a session or a transaction",
        "wait for a lock without a timeout, or block readers for more than 250 ms at a time",
        "change a TIMESTAMP column to TIMESTAMPTZ: `migrate check` prints the statements",
    )
