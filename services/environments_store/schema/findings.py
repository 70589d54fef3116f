"""All findings about an inspected database, each with its remedy."""

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
    """All findings, the most severe first."""
    return (*faults_of(found), *_about_index(found), *_about_the_rest(found))


def _about_index(found: Inspection) -> Iterator[Finding]:
    if found.kind is None:
        return
    action = next_action(found, MigrationBudgets())
    if action.kind == "leave":
        yield Finding(level="warning", subject="index", message=f"The index is missing: {action.detail}.")
    elif action.kind == "wait":
        yield Finding(
            level="info", subject="index", message=f"{quoted(action.name)} is not valid yet: {action.detail}."
        )
    elif action.kind == "drop":
        yield Finding(
            level="warning",
            subject="index",
            message=f"{quoted(action.name)} is INVALID after an interrupted build: it slows writes and serves no read.",
            remedy="The service drops it and builds it again.",
        )
    for index in found.indexes:
        if not index.valid and (index.name != action.name or action.kind == "none"):
            yield Finding(
                level="warning",
                subject="index",
                message=f"{quoted(index.name)} is INVALID: it slows writes and serves no read. The service does not"
                " drop it, because it is another index than its own.",
                remedy=f"When no session is building it, run: {drop_index(found.schema, index.name)};",
            )
        if index.on_column and index.unique:
            yield Finding(
                level="warning",
                subject="index",
                message=f"{quoted(index.name)} is unique: two environments deleted in the same millisecond collide.",
                remedy=f"Run: {drop_index(found.schema, index.name)};",
            )
    if INDEX in found.taken_names:
        yield Finding(
            level="info",
            subject="index",
            message=f"The name {quoted(INDEX)} is already taken; a number is appended to the index's name.",
        )


def _about_the_rest(found: Inspection) -> Iterator[Finding]:
    """Findings that affect neither callers nor the migration now."""
    for twin in found.twins:
        yield Finding(
            level="warning",
            subject="twin",
            message=f"There is a column {quoted(twin)}, probably from SQL without quotes; it is not used.",
            remedy=f"Check its contents, then run: ALTER TABLE {table_name(found)} DROP COLUMN {quoted(twin)};",
        )
    if found.has_column and not found.deleted_at_zone:
        yield Finding(
            level="info",
            subject="timestamp",
            message=f"{quoted(COLUMN)} is a TIMESTAMP without time zone. It contains UTC and is served as UTC.",
            remedy=f"To change it, run: {to_timestamptz(found.schema, found.table)}; then start the service, which "
            "builds the index again.",
        )
    if found.column_grants:
        when = "lack them on the new column" if found.has_column else "will lack them on the new column"
        yield Finding(
            level="warning" if found.has_column else "info",
            subject="column-grants",
            message=f"Roles with privileges on single columns of {table_name(found)} {when}.",
            remedy=f"As its owner run{'' if found.has_column else ' after adding it'}: {' '.join(found.column_grants)}",
        )
    if found.kind is not None and found.seen_in:
        empty = found.dialect == "postgresql" and found.size_bytes == 0
        yield Finding(
            level="warning" if empty else "info",
            subject="elsewhere",
            message=f"There is also a table {quoted(found.table)} in schema {listed(found.seen_in)}; the service uses"
            f" {table_name(found)}{', which is empty' if empty else ''}.",
            remedy=f"To use the other one, run: ALTER ROLE {quoted(found.role)} SET search_path ="
            f" {quoted(found.seen_in[0])};",
        )
    published = found.publication
    if published.names:
        yield Finding(
            level="info" if found.has_column else "warning",
            subject="replication",
            message=f"{table_name(found)} is published by {listed(published.names)} (logical replication): subscribers"
            " need a new column before the publisher has it, or replication stops at the next change.",
            remedy=None
            if found.has_column
            else "Run the SQL of `environments-store migrate sql` on every subscriber first, then migrate here.",
        )
    if published.subscriptions:
        yield Finding(
            level="info" if found.has_column else "warning",
            subject="replication",
            message=f"{table_name(found)} is written by the subscription {listed(published.subscriptions)}: a new"
            " column has to be added here before it is added on the publisher.",
        )
    if found.heirs:
        yield Finding(
            level="warning",
            subject="inheritance",
            message=f"{table_name(found)} shares rows by inheritance with {listed(found.heirs)}: no key prevents the"
            " same id in both.",
            remedy="Move all environments to one table.",
        )
    if found.pooled:
        yield Finding(
            level="warning",
            subject="pooler",
            message="The connection goes through a transaction pooler. The migration works, but cannot set timeouts.",
            remedy="Give `migrate run` the direct address of the database.",
        )
    for leftover in found.leftovers:
        yield Finding(
            level="warning",
            subject="leftover",
            message=f"An interrupted start of the original left {quoted(leftover)}, which may hold the only rows.",
            remedy="The service copies its rows to an empty table, and keeps it under another name.",
        )
