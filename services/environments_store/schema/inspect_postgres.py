"""The inspection of a PostgreSQL database, by catalog queries, which block no other session."""

import re

import msgspec

from services.environments_store.database.base import Row
from services.environments_store.database.failures import StatementFailure
from services.environments_store.database.postgres_session import PostgresSession
from services.environments_store.schema.inspection import Column, Index, Inspection, Publication, Rule
from services.environments_store.schema.names import BASE_COLUMNS, COLUMN, INDEX, TABLE, quoted
from services.environments_store.schema.sql import column_grants

__all__ = ["inspect", "measure"]

# to_regclass resolves the name by the search_path, as the store's queries do; information_schema would hide columns
# without privileges. A table that another session has just created may be in pg_class but not yet found by name: such a
# table does not count as one of another schema.
FACTS = """
SELECT c.oid::int8 AS oid, coalesce(n.nspname, current_schema())::text AS schema, c.relkind::text AS kind,
       coalesce(row_security_active(c.oid), false) AS row_security,
       current_setting('row_security') = 'off' AS row_security_off,
       array(SELECT v FROM (VALUES ('SELECT', 'r'), ('INSERT', 'a'), ('UPDATE', 'w'), ('DELETE', 'd')) AS x (v, c)
             WHERE NOT EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = wanted.oid AND p.polpermissive
                               AND p.polcmd::text IN ('*', x.c)
                               AND EXISTS (SELECT FROM unnest(p.polroles) r WHERE r = 0 OR pg_has_role(r, 'USAGE')))
            ) AS without_policy,
       coalesce(c.reltuples, -1)::int8 AS rows_estimate,
       coalesce(pg_has_role(c.relowner, 'USAGE'), false) AS can_alter,
       coalesce(has_schema_privilege(n.oid, 'CREATE'), false) AS can_index,
       coalesce(has_schema_privilege(current_schema(), 'CREATE'), false) AS can_create,
       coalesce(has_table_privilege(c.oid, 'DELETE'), false) AS can_delete,
       pg_is_in_recovery() AS standby, current_setting('transaction_read_only') = 'on' AS read_only,
       current_setting('server_version_num')::int AS version, current_user::text AS role,
       c.relpersistence = 'u' AS unlogged, c.relhasrules AS has_rules,
       EXISTS (SELECT FROM pg_trigger WHERE NOT tgisinternal AND tgenabled <> 'D' AND tgtype & 66 = 0 AND tgrelid IN
               (SELECT c.oid UNION ALL SELECT inhrelid FROM pg_inherits WHERE inhparent = c.oid)) AS triggers,
       array(SELECT i.oid::regclass::text FROM (SELECT inhrelid AS oid FROM pg_inherits WHERE inhparent = c.oid
                                                UNION SELECT inhparent FROM pg_inherits WHERE inhrelid = c.oid) AS i
             WHERE c.relkind = 'r' ORDER BY 1) AS heirs,
       array(SELECT h.nspname::text FROM pg_class x JOIN pg_namespace h ON h.oid = x.relnamespace
             WHERE x.relname = $2 AND x.relkind IN ('r', 'p', 'v', 'm', 'f') AND x.oid IS DISTINCT FROM c.oid
             AND has_schema_privilege(h.oid, 'USAGE') AND NOT pg_is_other_temp_schema(h.oid)
             AND (c.oid IS NOT NULL OR h.nspname <> ALL (current_schemas(true)))
             AND $3::text[] <@ array(SELECT attname::text FROM pg_attribute WHERE attrelid = x.oid AND NOT attisdropped)
             ORDER BY h.nspname) AS seen_in,
       (SELECT h.nspname FROM pg_class x JOIN pg_namespace h ON h.oid = x.relnamespace
        WHERE c.oid IS NULL AND x.relname = $2 AND x.relkind IN ('r', 'p') AND NOT has_schema_privilege(h.oid, 'USAGE')
        ORDER BY h.nspname <> 'public', h.nspname LIMIT 1)::text AS hidden_in
FROM (SELECT to_regclass($1) AS oid) AS wanted
LEFT JOIN pg_class c ON c.oid = wanted.oid LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
"""

COLUMNS = """
SELECT attname::text AS name, format_type(coalesce(nullif(t.typbasetype, 0), atttypid), atttypmod) AS type,
       attnotnull OR t.typnotnull AS not_null, atthasdef OR attidentity <> '' OR t.typdefault IS NOT NULL AS filled,
       CASE WHEN attidentity = 'a' THEN 'identity' WHEN attgenerated = 's' THEN 'stored' WHEN attgenerated <> ''
            THEN 'virtual' ELSE '' END AS generated,
       array(SELECT p FROM unnest(array['SELECT', 'INSERT', 'UPDATE']) p
             WHERE NOT has_column_privilege(attrelid, attnum, p)) AS missing
FROM pg_attribute JOIN pg_type t ON t.oid = atttypid
WHERE attrelid = $1::oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""

INDEXES = """
SELECT ic.relname::text AS name, i.indisvalid AND i.indisready AS valid, am.amname::text AS method,
       i.indisunique AS is_unique, i.indisprimary AS is_primary, NOT i.indimmediate AS deferrable,
       i.indisunique AND i.indisvalid AND i.indnkeyatts = 1 AND i.indpred IS NULL AS is_key,
       pg_get_expr(i.indpred, i.indrelid) AS predicate,
       (SELECT a.attname::text FROM pg_attribute a
        WHERE a.attrelid = i.indrelid AND a.attnum = i.indkey[0] AND a.attnum > 0) AS first_column
FROM pg_index i JOIN pg_class ic ON ic.oid = i.indexrelid JOIN pg_am am ON am.oid = ic.relam
WHERE i.indrelid = $1::oid ORDER BY ic.relname
"""

RULES = """
SELECT rulename::text AS name, CASE ev_type WHEN '2' THEN 'UPDATE' WHEN '3' THEN 'INSERT' ELSE 'DELETE' END AS event,
       is_instead AS instead
FROM pg_rewrite WHERE ev_class = $1::oid AND ev_type IN ('2', '3', '4') AND ev_enabled <> 'D' ORDER BY rulename
"""

# CREATE INDEX, VACUUM and ANALYZE hold this lock: pg_locks shows it for every role, the progress views do not.
REST = """
SELECT EXISTS (SELECT FROM pg_locks l WHERE l.locktype = 'relation' AND l.relation = $1::oid AND l.granted
               AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
               AND l.mode = 'ShareUpdateExclusiveLock' AND l.pid <> pg_backend_pid()) AS maintained,
       EXISTS (SELECT FROM pg_stats s JOIN pg_class c ON c.oid = $1::oid JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE s.schemaname = n.nspname AND s.tablename = c.relname AND s.attname = $2) AS has_statistics,
       array(SELECT o.relname::text FROM pg_class o JOIN pg_class c ON c.oid = $1::oid
             LEFT JOIN pg_index i ON i.indexrelid = o.oid
             WHERE o.relnamespace = c.relnamespace AND starts_with(o.relname, $3)
             AND i.indrelid IS DISTINCT FROM $1::oid) AS taken_names,
       published.*,
       (SELECT c.relreplident = 'f' OR EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid
                                               AND i.indimmediate AND CASE c.relreplident WHEN 'd' THEN i.indisprimary
                                               WHEN 'i' THEN i.indisreplident ELSE false END)
        FROM pg_class c WHERE c.oid = $1::oid) AS identified,
       array(SELECT s.subname::text FROM pg_subscription_rel r JOIN pg_subscription s ON s.oid = r.srsubid
             WHERE r.srrelid = $1::oid ORDER BY 1) AS subscriptions,
       array({column_grants}) AS column_grants
FROM (SELECT coalesce(array_agg(p.pubname::text ORDER BY p.pubname), '{{}}') AS publications,
             coalesce(bool_or(p.pubupdate), false) AS updates, coalesce(bool_or(p.pubdelete), false) AS deletes
      FROM pg_publication p
      WHERE p.puballtables OR EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = $1::oid)
      {of_schemas}) AS published
"""
OF_SCHEMAS = """OR EXISTS (SELECT FROM pg_publication_namespace s JOIN pg_class c ON c.relnamespace = s.pnnspid
                           WHERE s.pnpubid = p.oid AND c.oid = $1::oid)"""
FIRST_PUBLISHING_SCHEMAS = 150000
SIZE = "SELECT pg_relation_size($1::oid)"
"""It takes a reader's lock, and so waits for a session that blocks readers."""


async def inspect(session: PostgresSession, table: str = TABLE) -> Inspection:
    """Inspect the table, with no privilege but CONNECT. Raises StatementFailure."""
    facts = await session.fetch_one(FACTS, quoted(table), table, list(BASE_COLUMNS))
    if facts is None:
        raise StatementFailure("the server returned no description of itself", lost=True)
    if facts["oid"] is None:
        return _absent(facts, table, session)
    oid = facts["oid"]
    columns = tuple(_column(row) for row in await session.fetch(COLUMNS, oid))
    indexes = await session.fetch(INDEXES, oid)
    rules = await session.fetch(RULES, oid) if facts["has_rules"] else ()
    of_schemas = OF_SCHEMAS if facts["version"] >= FIRST_PUBLISHING_SCHEMAS else ""
    query = REST.format(of_schemas=of_schemas, column_grants=column_grants(str(oid)))
    rest = await session.fetch_one(query, oid, COLUMN, INDEX)
    if rest is None:
        raise StatementFailure("the server returned no description of the table", lost=True)
    return Inspection(
        dialect="postgresql",
        schema=facts["schema"],
        table=table,
        role=facts["role"],
        kind=facts["kind"],
        oid=oid,
        columns=columns,
        indexes=tuple(_index(row) for row in indexes),
        maintained=rest["maintained"],
        taken_names=frozenset(rest["taken_names"]),
        can_create=facts["can_create"],
        can_alter=facts["can_alter"],
        can_index=facts["can_index"],
        can_delete=facts["can_delete"],
        column_grants=tuple(rest["column_grants"]),
        seen_in=tuple(facts["seen_in"]),
        standby=facts["standby"],
        read_only=facts["read_only"],
        row_security=facts["row_security"],
        row_security_off=facts["row_security_off"],
        without_policy=tuple(facts["without_policy"]),
        triggers=facts["triggers"],
        rules=tuple(Rule(row["name"], row["event"], row["instead"]) for row in rules),
        publication=Publication(
            names=tuple(rest["publications"]),
            updates=rest["updates"],
            deletes=rest["deletes"],
            identified=rest["identified"],
            subscriptions=tuple(rest["subscriptions"]),
        ),
        unlogged=facts["unlogged"],
        heirs=tuple(facts["heirs"]),
        rows_estimate=facts["rows_estimate"],
        has_statistics=rest["has_statistics"],
        version=facts["version"],
        pooled=session.pooled,
    )


async def measure(session: PostgresSession, found: Inspection) -> Inspection:
    """Add the size of the table, which may have to wait for a lock. Raises StatementFailure."""
    if not found.oid:
        return found
    return msgspec.structs.replace(found, size_bytes=await session.fetch_value(SIZE, found.oid) or 0)


def _absent(facts: Row, table: str, session: PostgresSession) -> Inspection:
    return Inspection(
        dialect="postgresql",
        schema=facts["schema"] or "public",
        no_schema=facts["schema"] is None,
        table=table,
        role=facts["role"],
        kind=None,
        seen_in=tuple(facts["seen_in"]),
        hidden_in=facts["hidden_in"],
        can_create=facts["can_create"],
        standby=facts["standby"],
        read_only=facts["read_only"],
        version=facts["version"],
        pooled=session.pooled,
    )


def _column(row: Row) -> Column:
    missing = tuple(row["missing"])
    return Column(row["name"], row["type"], row["not_null"], row["filled"], row["generated"], missing)


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
        key=row["is_key"] and row["first_column"] == "id" and not row["deferrable"],
        deferrable=row["deferrable"],
        primary=row["is_primary"],
    )
