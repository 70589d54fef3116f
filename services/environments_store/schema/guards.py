"""What can silently prevent a write: triggers, rules and policies; and foreign keys that prevent deletions."""

from typing import Literal, NamedTuple

from services.environments_store.database.base import Database
from services.environments_store.schema.names import TABLE

__all__ = ["KEPT", "Event", "Holder", "read_guards", "read_holders"]

Event = Literal["INSERT", "UPDATE", "DELETE"]
KEPT = (
    "The database keeps deleted environments in the table ({}) without an error: nothing was changed."
    " `environments-store doctor` names the trigger, rule or policy: drop or disable it, or choose --trash=keep."
)

# BEFORE and INSTEAD OF triggers; all triggers with $2. tgtype and ev_type are PostgreSQL's own bits and digits.
_POSTGRESQL = f"""
SELECT 'trigger ' || quote_ident(tgname) AS guard FROM pg_trigger
WHERE tgrelid = to_regclass('{TABLE}') AND NOT tgisinternal AND tgenabled <> 'D' AND (tgtype & 66 <> 0 OR $2)
  AND tgtype & CASE $1 WHEN 'INSERT' THEN 4 WHEN 'DELETE' THEN 8 ELSE 16 END <> 0
UNION ALL
SELECT 'rule ' || quote_ident(rulename) FROM pg_rewrite
WHERE ev_class = to_regclass('{TABLE}') AND ev_type = CASE $1 WHEN 'INSERT' THEN '3' WHEN 'DELETE' THEN '4' ELSE '2' END
UNION ALL
SELECT coalesce('policy ' || quote_ident(polname), 'row level security') FROM pg_class
LEFT JOIN pg_policy ON polrelid = pg_class.oid
  AND polcmd IN ('*', CASE $1 WHEN 'INSERT' THEN 'a' WHEN 'DELETE' THEN 'd' ELSE 'w' END)
WHERE pg_class.oid = to_regclass('{TABLE}') AND row_security_active(pg_class.oid)
UNION ALL
SELECT CASE relkind WHEN 'v' THEN 'view ' WHEN 'p' THEN 'partitioned table ' ELSE 'foreign table ' END
  || quote_ident(relname) FROM pg_class WHERE oid = to_regclass('{TABLE}') AND relkind <> 'r'
ORDER BY 1
"""
_SQLITE = f"""
SELECT 'trigger ' || name AS guard FROM sqlite_master
WHERE type = 'trigger' AND tbl_name = '{TABLE}' COLLATE NOCASE
  AND substr(sql, 1, instr(upper(sql), 'BEGIN')) LIKE '%' || $1 || '%' AND $2 IS NOT NULL ORDER BY 1
"""


async def read_guards(database: Database, event: Event, *, afterwards: bool = False) -> tuple[str, ...]:
    """The triggers, rules and policies that may have discarded this kind of write, or undone it `afterwards`, as in
    `trigger keep`."""
    rows = await database.fetch(_SQLITE if database.dialect == "sqlite" else _POSTGRESQL, event, afterwards)
    return tuple(row["guard"] for row in rows)


class Holder(NamedTuple):
    """A foreign key that refers to environments and prevents their deletion."""

    constraint: str
    table: str
    condition: str
    """Whether a row `r` of that table refers to an environment `e`."""


_HOLDERS = f"""
SELECT conname AS constraint, conrelid::regclass::text AS table, string_agg(
  format('r.%I = e.%I', own.attname, theirs.attname), ' AND ') AS condition
FROM pg_constraint CROSS JOIN unnest(conkey, confkey) AS pairs (own_key, their_key)
JOIN pg_attribute own ON own.attrelid = conrelid AND own.attnum = own_key
JOIN pg_attribute theirs ON theirs.attrelid = confrelid AND theirs.attnum = their_key
WHERE contype = 'f' AND confrelid = to_regclass('{TABLE}') AND confdeltype IN ('a', 'r')
GROUP BY conname, conrelid ORDER BY 1, 2
"""


async def read_holders(database: Database) -> tuple[Holder, ...]:
    """Empty on SQLite, which enforces foreign keys only on connections that enable them; the service's do not."""
    if database.dialect == "sqlite":
        return ()
    rows = await database.fetch(_HOLDERS)
    return tuple(Holder(row["constraint"], row["table"], row["condition"]) for row in rows)
