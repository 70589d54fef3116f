"""What a person should know about a database before and after the migration, each with what to do about it."""

from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from services.environments_store.defaults import MigrationBudgets
from services.environments_store.schema.blockers import Blocker
from services.environments_store.schema.index import next_action
from services.environments_store.schema.inspection import Inspection
from services.environments_store.schema.names import COLUMN, INDEX, qualified, quoted
from services.environments_store.schema.plan import obstacle_to_column, read_only_text
from services.environments_store.schema.sql import drop_index, to_timestamptz

__all__ = ["Finding", "findings_of"]


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`error`: the migration cannot go on, or the service cannot work. `warning`: it can, and something is wrong."""

    level: Literal["error", "warning", "info"]
    subject: str
    message: str
    remedy: str | None = None


def findings_of(found: Inspection, blockers: Sequence[Blocker] = ()) -> tuple[Finding, ...]:
    return (*_about_column(found, blockers), *_about_index(found), *_about_access(found), *_about_files(found))


def _about_column(found: Inspection, blockers: Sequence[Blocker]) -> Iterator[Finding]:
    name = qualified(found.schema, found.table)
    obstacle = obstacle_to_column(found)
    if obstacle is not None:
        yield Finding(
            level="error",
            subject=obstacle.reason,
            message=obstacle.message,
            remedy="`environments-store migrate sql` prints the SQL for the owner of the table.",
        )
    for blocker in () if found.soft_delete else blockers:
        yield Finding(
            level="warning",
            subject="blocker",
            message=f"{blocker}: adding the column has to wait for it.",
            remedy="End that transaction, or wait: the attempts go on by themselves.",
        )
    for twin in found.twins:
        yield Finding(
            level="warning",
            subject="twin",
            message=f"A column {quoted(twin)} exists, probably from SQL without quotes; it is not used.",
            remedy=f"Look at it, then: ALTER TABLE {name} DROP COLUMN {quoted(twin)};",
        )
    if found.soft_delete and not found.deleted_at_zone:
        yield Finding(
            level="info",
            subject="timestamp",
            message=f"{quoted(COLUMN)} is a TIMESTAMP without a zone. It is served as UTC, which is what it holds.",
            remedy=f"To change it: {to_timestamptz(found.schema, found.table)}; then start the service, which builds "
            "the index again.",
        )


def _about_index(found: Inspection) -> Iterator[Finding]:
    if found.kind is None:
        return
    action = next_action(found, MigrationBudgets())
    if action.kind == "leave":
        yield Finding(level="warning", subject="index", message=f"There is no index: {action.detail}")
    elif action.kind == "wait":
        yield Finding(
            level="info", subject="index", message=f"{quoted(action.name)} is not valid yet: {action.detail}."
        )
    elif action.kind == "drop":
        yield Finding(
            level="warning",
            subject="index",
            message=f"{quoted(action.name)} is INVALID, from an interrupted build: writes pay for it, no read uses it.",
            remedy="The service drops it and builds it again.",
        )
    for index in found.indexes:
        if not index.valid and (index.name != action.name or action.kind == "none"):
            yield Finding(
                level="warning",
                subject="index",
                message=f"{quoted(index.name)} is INVALID: writes pay for it, no read uses it. It is not the service's"
                " to drop.",
                remedy=f"When nobody is building it: {drop_index(found.schema, index.name)};",
            )
        if index.on_column and index.unique:
            yield Finding(
                level="warning",
                subject="index",
                message=f"{quoted(index.name)} is unique: two environments deleted in one millisecond would collide.",
                remedy=f"{drop_index(found.schema, index.name)};",
            )
    if INDEX in found.taken_names:
        yield Finding(
            level="info",
            subject="index",
            message=f"The name {quoted(INDEX)} belongs to something else; the index has, or gets, a number after it.",
        )


def _about_access(found: Inspection) -> Iterator[Finding]:
    name, role = qualified(found.schema, found.table), quoted(found.role)
    if found.missing_grants:
        rights = ", ".join(found.missing_grants)
        yield Finding(
            level="error",
            subject="rights",
            message=f"Role {role} has no {rights} on {name}.",
            remedy=f"GRANT {rights} ON {name} TO {role};",
        )
    if found.soft_delete and not found.writable:
        sqlite = found.dialect == "sqlite"
        yield Finding(
            level="error",
            subject="read-only",
            message=read_only_text(found),
            # What PostgreSQL's text says already.
            remedy="Let the service's user write the file and its folder." if sqlite else None,
        )
    if found.row_security:
        how_many, may = ("all", "is") if found.rows_hidden else ("some", "may be")
        yield Finding(
            level="error" if found.rows_hidden else "warning",
            subject="row-security",
            message=f"Row level security hides {how_many} rows of {name} from role {role}: "
            f"an empty list {may} no empty table.",
            remedy=f"Add a policy for it, or: ALTER ROLE {role} BYPASSRLS;",
        )
    if found.pooled:
        yield Finding(
            level="warning",
            subject="pooler",
            message="This is a transaction pooler. The migration works through it, without its own timeouts.",
            remedy="For `migrate run`, give the database's direct address.",
        )


def _about_files(found: Inspection) -> Iterator[Finding]:
    for leftover in found.leftovers:
        yield Finding(
            level="warning",
            subject="leftover",
            message=f"{quoted(leftover)} was left by an interrupted start of the original, and may hold the only rows.",
            remedy="The service takes its rows over where they are missing, and keeps it under another name.",
        )
