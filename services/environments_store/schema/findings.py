"""Everything that a look at a database shows and that a person should know, each with what to do about it."""

from collections.abc import Iterator

from services.environments_store.defaults import MigrationBudgets
from services.environments_store.schema.faults import faults_of, listed, table_name
from services.environments_store.schema.index import next_action
from services.environments_store.schema.inspection import Inspection
from services.environments_store.schema.names import COLUMN, INDEX, quoted
from services.environments_store.schema.sql import drop_index, to_timestamptz
from services.environments_store.schema.status import Finding

__all__ = ["findings_of"]


def findings_of(found: Inspection) -> tuple[Finding, ...]:
    """All of them, the one first that weighs most."""
    return (*faults_of(found), *_about_index(found), *_about_the_rest(found))


def _about_index(found: Inspection) -> Iterator[Finding]:
    if found.kind is None:
        return
    action = next_action(found, MigrationBudgets())
    if action.kind == "leave":
        yield Finding(level="warning", subject="index", message=f"There is no index: {action.detail}.")
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
                remedy=f"When no session is building it: {drop_index(found.schema, index.name)};",
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


def _about_the_rest(found: Inspection) -> Iterator[Finding]:
    """What concerns neither callers nor the migration now."""
    for twin in found.twins:
        yield Finding(
            level="warning",
            subject="twin",
            message=f"A column {quoted(twin)} exists, probably from SQL without quotes; it is not used.",
            remedy=f"Look at it, then: ALTER TABLE {table_name(found)} DROP COLUMN {quoted(twin)};",
        )
    if found.has_column and not found.deleted_at_zone:
        yield Finding(
            level="info",
            subject="timestamp",
            message=f"{quoted(COLUMN)} is a TIMESTAMP without a zone. It is served as UTC, which is what it holds.",
            remedy=f"To change it: {to_timestamptz(found.schema, found.table)}; then start the service, which builds "
            "the index again.",
        )
    if found.column_grants:
        when = "lack those on the new column" if found.has_column else "will lack those on the new column"
        yield Finding(
            level="warning" if found.has_column else "info",
            subject="column-grants",
            message=f"Roles that have their rights on {table_name(found)} column by column {when}.",
            remedy=f"As its owner run{'' if found.has_column else ' after adding it'}: {' '.join(found.column_grants)}",
        )
    if found.kind is not None and found.seen_in:
        empty = found.dialect == "postgresql" and found.size_bytes == 0
        yield Finding(
            level="warning" if empty else "info",
            subject="elsewhere",
            message=f"There is a table {quoted(found.table)} in schema {listed(found.seen_in)} too; served is"
            f" {table_name(found)}{', which is empty' if empty else ''}.",
            remedy=f"If the other one is meant: ALTER ROLE {quoted(found.role)} SET search_path ="
            f" {quoted(found.seen_in[0])};",
        )
    published = found.publication
    if published.names:
        yield Finding(
            level="info" if found.has_column else "warning",
            subject="replication",
            message=f"{table_name(found)} is published by {listed(published.names)} (logical replication): subscribers"
            " need a new column before the publisher has it, or they stop at the next change.",
            remedy=None
            if found.has_column
            else "Run the SQL of `environments-store migrate sql` at every subscriber first, then migrate here.",
        )
    if published.subscriptions:
        yield Finding(
            level="info" if found.has_column else "warning",
            subject="replication",
            message=f"{table_name(found)} is written by the subscription {listed(published.subscriptions)}: a new"
            " column is added here before it is added at the publisher.",
        )
    if found.heirs:
        yield Finding(
            level="warning",
            subject="inheritance",
            message=f"{table_name(found)} shares rows by inheritance with {listed(found.heirs)}: no key keeps an id"
            " from being in both.",
            remedy="Keep environments in one table.",
        )
    if found.pooled:
        yield Finding(
            level="warning",
            subject="pooler",
            message="This is a transaction pooler. The migration works through it, without its own timeouts.",
            remedy="For `migrate run`, give the database's direct address.",
        )
    for leftover in found.leftovers:
        yield Finding(
            level="warning",
            subject="leftover",
            message=f"{quoted(leftover)} was left by an interrupted start of the original, and may hold the only rows.",
            remedy="The service takes its rows over where they are missing, and keeps it under another name.",
        )
