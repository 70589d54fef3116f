"""Look at a PostgreSQL database: catalog queries only, which take no lock that anybody could wait for."""

import re

from services.environments_store.database.base import Row
from services.environments_store.database.failures import StatementFailure
from services.environments_store.database.postgres_session import PostgresSession
from services.environments_store.schema.inspection import Column, Index, Inspection
from services.environments_store.schema.names import COLUMN, INDEX, TABLE, quoted

__all__ = ["inspect"]

# to_regclass resolves the name by the search_path, as the store's queries do; information_schema would show only what
# the role may touch, and take a missing right for a missing column.
FACTS = """
SELECT c.oid::int8 AS oid, coalesce(n.nspname, current_schema())::text AS schema, c.relkind::text AS kind,
       coalesce(row_security_active(c.oid), false) AS row_security,
       NOT EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid AND p.polpermissive AND p.polcmd IN ('*', 'r') AND
                   EXISTS (SELECT FROM unnest(p.polroles) r WHERE r = 0 OR pg_has_role(r, 'USAGE'))) AS no_policy,
       coalesce(c.reltuples, -1)::int8 AS rows_estimate,
       coalesce(pg_has_role(c.relowner, 'USAGE'), false) AS can_alter,
       coalesce(has_schema_privilege(n.oid, 'CREATE'), false) AS can_index,
       coalesce(has_schema_privilege(current_schema(), 'CREATE'), false) AS can_create,
       pg_is_in_recovery() AS standby, current_setting('transaction_read_only') = 'on' AS read_only,
       current_setting('server_version_num')::int AS version, current_user::text AS role,
       array(SELECT p FROM unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE']) p
             WHERE c.oid IS NOT NULL AND NOT CASE p WHEN 'DELETE' THEN has_table_privilege(c.oid, p)
                                                  ELSE has_any_column_privilege(c.oid, p) END) AS missing_grants,
       (SELECT h.nspname FROM pg_class x JOIN pg_namespace h ON h.oid = x.relnamespace
        WHERE c.oid IS NULL AND x.relname = $2 AND x.relkind IN ('r', 'p') AND NOT has_schema_privilege(h.oid, 'USAGE')
        ORDER BY h.nspname <> 'public', h.nspname LIMIT 1)::text AS hidden_in
FROM (SELECT to_regclass($1) AS oid) AS wanted
LEFT JOIN pg_class c ON c.oid = wanted.oid LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
"""

COLUMNS = """
SELECT attname::text AS name, format_type(atttypid, atttypmod) AS type, attnotnull AS not_null
FROM pg_attribute WHERE attrelid = $1::oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""

INDEXES = """
SELECT ic.relname::text AS name, i.indisvalid AND i.indisready AS valid, am.amname::text AS method,
       i.indisunique AS is_unique, pg_get_expr(i.indpred, i.indrelid) AS predicate,
       (SELECT a.attname::text FROM pg_attribute a
        WHERE a.attrelid = i.indrelid AND a.attnum = i.indkey[0] AND a.attnum > 0) AS first_column
FROM pg_index i JOIN pg_class ic ON ic.oid = i.indexrelid JOIN pg_am am ON am.oid = ic.relam
WHERE i.indrelid = $1::oid ORDER BY ic.relname
"""

# Who holds this lock builds an index, vacuums or analyses: pg_locks shows it of every role, the progress views do not.
REST = """
SELECT EXISTS (SELECT FROM pg_locks l WHERE l.locktype = 'relation' AND l.relation = $1::oid AND l.granted
               AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
               AND l.mode = 'ShareUpdateExclusiveLock' AND l.pid <> pg_backend_pid()) AS maintained,
       EXISTS (SELECT FROM pg_stats s JOIN pg_class c ON c.oid = $1::oid JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE s.schemaname = n.nspname AND s.tablename = c.relname AND s.attname = $2) AS has_statistics,
       array(SELECT o.relname::text FROM pg_class o JOIN pg_class c ON c.oid = $1::oid
             LEFT JOIN pg_index i ON i.indexrelid = o.oid
             WHERE o.relnamespace = c.relnamespace AND starts_with(o.relname, $3)
             AND i.indrelid IS DISTINCT FROM $1::oid) AS taken_names
"""


async def inspect(session: PostgresSession, table: str = TABLE) -> Inspection:
    """Everything the plan depends on. Needs no right but to connect. Raises StatementFailure."""
    facts = await session.fetch_one(FACTS, quoted(table), table)
    if facts is None:
        raise StatementFailure("the server described itself with nothing", lost=True)
    if facts["oid"] is None:
        return _absent(facts, table, session)
    oid = facts["oid"]
    columns = await session.fetch(COLUMNS, oid)
    indexes = await session.fetch(INDEXES, oid)
    rest = await session.fetch_one(REST, oid, COLUMN, INDEX)
    if rest is None:
        raise StatementFailure("the server described the table with nothing", lost=True)
    return Inspection(
        dialect="postgresql",
        schema=facts["schema"],
        table=table,
        role=facts["role"],
        kind=facts["kind"],
        oid=oid,
        columns=tuple(Column(row["name"], row["type"], row["not_null"]) for row in columns),
        indexes=tuple(_index(row) for row in indexes),
        maintained=rest["maintained"],
        taken_names=frozenset(rest["taken_names"]),
        can_create=facts["can_create"],
        can_alter=facts["can_alter"],
        can_index=facts["can_index"],
        missing_grants=tuple(facts["missing_grants"]),
        standby=facts["standby"],
        read_only=facts["read_only"],
        row_security=facts["row_security"],
        rows_hidden=facts["row_security"] and facts["no_policy"],
        rows_estimate=facts["rows_estimate"],
        has_statistics=rest["has_statistics"],
        version=facts["version"],
        pooled=session.pooled,
    )


def _absent(facts: Row, table: str, session: PostgresSession) -> Inspection:
    return Inspection(
        dialect="postgresql",
        schema=facts["schema"] or "public",
        no_schema=facts["schema"] is None,
        table=table,
        role=facts["role"],
        kind=None,
        hidden_in=facts["hidden_in"],
        can_create=facts["can_create"],
        standby=facts["standby"],
        read_only=facts["read_only"],
        version=facts["version"],
        pooled=session.pooled,
    )


def _index(row: Row) -> Index:
    predicate = row["predicate"]
    return Index(
        name=row["name"],
        first_column=row["first_column"],
        valid=row["valid"],
        btree=row["method"] == "btree",
        unique=row["is_unique"],
        partial=predicate is not None,
        narrowed=predicate is not None and re.sub(r"[()]", "", predicate) != f"{quoted(COLUMN)} IS NOT NULL",
    )
