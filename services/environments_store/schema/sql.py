"""The SQL of the migration: the guide's manual statements, made safe."""

from collections.abc import Sequence

from services.environments_store.database.base import Dialect
from services.environments_store.schema.names import COLUMN, INDEX, LIST_INDEX, TABLE, qualified, quoted

__all__ = [
    "TIMEOUTS",
    "add_column",
    "add_key",
    "column_grants",
    "create_index",
    "create_list_index",
    "create_tables",
    "drop_index",
    "script",
    "to_timestamptz",
]

CREATE_ENVIRONMENTS = (
    'CREATE TABLE IF NOT EXISTS {table} ("id" VARCHAR(255), "environment" JSON, "environmentUuid" VARCHAR(255), '
    '"timestamp" DECIMAL, "deletedAt" {moment} DEFAULT NULL, "createdAt" {moment} NOT NULL, '
    '"updatedAt" {moment} NOT NULL, PRIMARY KEY ("id"))'
)
CREATE_METADATA = (
    'CREATE TABLE IF NOT EXISTS {table} ("key" VARCHAR(255), "value" TEXT NOT NULL, '
    '"createdAt" {moment} NOT NULL, "updatedAt" {moment} NOT NULL, PRIMARY KEY ("key"))'
)
TIMEOUTS = "SET lock_timeout = '250ms'; SET statement_timeout = '5s';"
"""Before a statement that needs an exclusive lock: other sessions queue behind its wait, so it must be short."""
KEY = "environments_id_key"
MOMENTS: dict[Dialect, str] = {"postgresql": "TIMESTAMP WITH TIME ZONE", "sqlite": "DATETIME"}

POSTGRES_SCRIPT = """\
-- Adds the {column} column and its index to {table}. Existing rows do not change; all of them are live.
-- Run it as the owner of the table, statement by statement and in no transaction (psql -f does that): PostgreSQL
-- refuses CREATE INDEX CONCURRENTLY in a transaction. Take the backup before, not at the same time: pg_dump holds
-- a lock that the first step waits for.

-- 1. The column, in a millisecond. "canceled due to lock timeout" changes nothing: a long transaction reads the
--    table; run this again. Without the timeout, other sessions would queue behind the wait.
{timeouts}
{add_column};

-- 2. Privileges. A role with privileges on single columns has none on the new column, so the service could read but not
--    delete softly. Run the statements that this prints; no row means that there is no such role.
{column_grants};

-- 3. The index, built while other sessions read and write. It waits for older transactions, so no timeout may end it.
SET lock_timeout = 0;
SET statement_timeout = 0;
--    An interrupted build leaves an INVALID index, which IF NOT EXISTS takes for a valid one. If this shows a row
SELECT indexrelid::regclass AS invalid_index FROM pg_index WHERE indrelid = '{table}'::regclass AND NOT indisvalid;
--    and no session is building it now, remove it first: {drop_index};
--    For the same reason it has no IF NOT EXISTS: an error is better than an invalid index.
-- squawk-ignore prefer-robust-stmts
{create_index};

-- 4. Statistics of the new column; without them the planner assumes that nearly every row is deleted.
ANALYZE {table} ({column});

-- 5. Check: one row, of type timestamp with time zone, and one row with valid = t.
SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
WHERE attrelid = '{table}'::regclass AND attname = '{name}' AND NOT attisdropped;
SELECT indexrelid::regclass AS index, indisvalid AND indisready AS valid FROM pg_index
WHERE indrelid = '{table}'::regclass AND indexrelid::regclass::text LIKE '%{index}%';
"""

# The grants that a role has on "updatedAt", which the service reads, inserts and updates, and lacks on the new column.
COLUMN_GRANTS = """\
SELECT format('GRANT %s ON %s TO %s;',
              string_agg(format('%s (%I)', privilege_type, '{name}'), ', ' ORDER BY privilege_type),
              '{table}'::regclass, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END) AS column_grants
FROM (SELECT grantee, privilege_type FROM pg_attribute, aclexplode(attacl)
      WHERE attrelid = '{table}'::regclass AND attname = 'updatedAt'
      EXCEPT SELECT grantee, privilege_type FROM pg_attribute, aclexplode(attacl)
      WHERE attrelid = '{table}'::regclass AND attname = '{name}') AS lacking
WHERE grantee = 0 OR NOT has_table_privilege(grantee, '{table}'::regclass, privilege_type)
GROUP BY grantee ORDER BY grantee"""

SQLITE_SCRIPT = """\
-- Adds the {column} column and its index to {table}. Existing rows do not change; all of them are live.
-- SQLite has no ADD COLUMN IF NOT EXISTS: "duplicate column name" means that it is there already, and nothing changed.

BEGIN IMMEDIATE;
{add_column};
-- Only deleted rows are in the index: one over all rows would mislead the planner about the live ones.
{create_index};
COMMIT;
ANALYZE {table};

-- Check: a line for {name}.
PRAGMA table_info({table});
"""


def create_tables(dialect: Dialect, schema: str = "public") -> tuple[str, ...]:
    """Both tables as the newest original creates them, and the index."""
    environments, metadata = (_name(dialect, schema, name) for name in (TABLE, "metadata"))
    moment = MOMENTS[dialect]
    return (
        CREATE_ENVIRONMENTS.format(table=environments, moment=moment),
        CREATE_METADATA.format(table=metadata, moment=moment),
        create_index(dialect, schema, concurrently=False),
    )


def add_column(dialect: Dialect, schema: str = "public", table: str = TABLE) -> str:
    name = _name(dialect, schema, table)
    if dialect == "sqlite":
        return f"ALTER TABLE {name} ADD COLUMN {quoted(COLUMN)} DATETIME NULL DEFAULT NULL"
    return f"ALTER TABLE {name} ADD COLUMN IF NOT EXISTS {quoted(COLUMN)} TIMESTAMPTZ NULL DEFAULT NULL"


def create_index(
    dialect: Dialect, schema: str = "public", table: str = TABLE, *, name: str = INDEX, concurrently: bool = True
) -> str:
    """The guide's index; on SQLite of deleted rows only, since the planner would use a full one for the live rows.

    Without IF NOT EXISTS on PostgreSQL, which takes an INVALID index, or one of another table, for a good one.
    """
    on = f"ON {_name(dialect, schema, table)} ({quoted(COLUMN)})"
    if dialect == "sqlite":
        return f"CREATE INDEX IF NOT EXISTS {quoted(name)} {on} WHERE {quoted(COLUMN)} IS NOT NULL"
    return f"CREATE INDEX {'CONCURRENTLY ' if concurrently else ''}{quoted(name)} {on}"


def add_key(dialect: Dialect, schema: str, table: str, *, primary: bool, instead_of: Sequence[str] = ()) -> str:
    """A unique index on `id`, built concurrently, with `primary` as the primary key. It replaces the deferrable keys
    `instead_of`, beside which ON CONFLICT accepts no other."""
    on = _name(dialect, schema, table)
    if dialect == "sqlite":
        return f'CREATE UNIQUE INDEX "{KEY}" ON {on} ("id")'
    changes = [f"DROP CONSTRAINT {quoted(name)}" for name in instead_of]
    changes += [f'ADD PRIMARY KEY USING INDEX "{KEY}"'] if primary else []
    index = f'CREATE UNIQUE INDEX CONCURRENTLY "{KEY}" ON {on} ("id")'
    return f"{index}; ALTER TABLE {on} {', '.join(changes)}" if changes else index


def column_grants(table: str) -> str:
    """A query for the GRANTs on the column that roles lack. `table` is a name for SQL, or an oid."""
    return COLUMN_GRANTS.format(table=table.replace("'", "''"), name=COLUMN)


def create_list_index(dialect: Dialect, schema: str = "public", table: str = TABLE) -> str:
    """An index in the order of the list of live environments, so that a page needs no sort. It covers all rows, so
    neither a soft delete nor a rollback changes it."""
    name = _name(dialect, schema, table)
    if dialect == "sqlite":
        return f'CREATE INDEX IF NOT EXISTS {quoted(LIST_INDEX)} ON {name} ("createdAt", "id")'
    return f'CREATE INDEX CONCURRENTLY {quoted(LIST_INDEX)} ON {name} ("createdAt", id COLLATE "C")'


def to_timestamptz(schema: str, table: str = TABLE) -> str:
    """Change the guide's TIMESTAMP to TIMESTAMPTZ. In UTC and without an index on the column this rewrites no row and
    takes a millisecond; otherwise it would lock the table for long."""
    change = f"ALTER TABLE {qualified(schema, table)} ALTER COLUMN {quoted(COLUMN)} TYPE TIMESTAMPTZ"
    return f"{drop_index(schema)}; SET TimeZone = 'UTC'; {TIMEOUTS} {change}"


def drop_index(schema: str, name: str = INDEX) -> str:
    return f"DROP INDEX CONCURRENTLY IF EXISTS {qualified(schema, name)}"


def script(dialect: Dialect, schema: str = "public") -> str:
    """The commented script that `migrate sql` prints."""
    template = SQLITE_SCRIPT if dialect == "sqlite" else POSTGRES_SCRIPT
    return template.format(
        table=_name(dialect, schema, TABLE),
        column=quoted(COLUMN),
        name=COLUMN,
        index=INDEX,
        timeouts=TIMEOUTS,
        add_column=add_column(dialect, schema),
        create_index=create_index(dialect, schema),
        drop_index=drop_index(schema),
        column_grants=column_grants(_name(dialect, schema, TABLE)),
    )


def _name(dialect: Dialect, schema: str, table: str) -> str:
    return quoted(table) if dialect == "sqlite" else qualified(schema, table)
