"""Every statement of the store, by name: one set for each dialect and each shape of the table.

The set is chosen by the last inspection of the schema, never by guessing; without the column every row counts as live.
All sets give the same columns (NULL for `deletedAt` and for a document that is not there or not asked for) and take the
same arguments. No `SELECT *`: the order of columns differs between tables.
"""

from services.environments_store.queries.base import Listing, Queries, SoftDelete
from services.environments_store.queries.postgresql import POSTGRESQL, POSTGRESQL_TIMESTAMP, POSTGRESQL_WITHOUT
from services.environments_store.queries.sqlite import SQLITE, SQLITE_WITHOUT
from services.environments_store.schema.status import SchemaStatus

__all__ = ["Listing", "Queries", "SoftDelete", "choose"]


def choose(status: SchemaStatus) -> Queries:
    """The set that fits the table as it was last seen."""
    queries = _of_columns(status)
    return queries if status.dated else queries._replace(listing=queries.undated_listing)


def _of_columns(status: SchemaStatus) -> Queries:
    if status.dialect == "sqlite":
        return SQLITE if status.soft_delete else SQLITE_WITHOUT
    if not status.soft_delete:
        return POSTGRESQL_WITHOUT
    return POSTGRESQL if status.deleted_at_zone else POSTGRESQL_TIMESTAMP
