"""The result of an inspection, as data."""

from collections.abc import Mapping

import msgspec

from services.environments_store.database.base import Dialect
from services.environments_store.schema.names import BASE_COLUMNS, COLUMN
from services.environments_store.schema.status import Capability

__all__ = ["ROW_NUMBER", "Column", "Index", "Inspection", "Publication", "Refusal", "Rule"]

ZONED = "timestamp with time zone"
UNZONED = "timestamp without time zone"
ROW_NUMBER = "rowid"
"""The index name for a SQLite table whose key is the row number, which has no index."""
_BYTES_A_ROW = 340
"""Measured: a million small rows take 340 MB. Large documents are stored out of line."""


class Column(msgspec.Struct, frozen=True):
    """`filled`: a new row gets a value by default. `generated`: the kind of a column that no statement may set.
    `missing`: the privileges of SELECT, INSERT and UPDATE that this role lacks."""

    name: str
    type: str
    not_null: bool = False
    filled: bool = False
    generated: str = ""
    missing: tuple[str, ...] = ()


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """An index of the table. `narrowed`: its predicate excludes some deleted rows, so it cannot serve the trash.
    `key`: it keeps `id` unique immediately, as ON CONFLICT needs; `deferrable`: only at the end of a transaction."""

    name: str
    first_column: str | None
    valid: bool = True
    btree: bool = True
    unique: bool = False
    partial: bool = False
    narrowed: bool = False
    key: bool = False
    deferrable: bool = False
    primary: bool = False

    @property
    def serves(self) -> bool:
        """Whether it serves the trash queries, whatever its name. A unique one would make deletions collide."""
        return self.on_column and self.valid and self.btree and not self.unique and not self.narrowed

    @property
    def on_column(self) -> bool:
        return self.first_column == COLUMN


class Rule(msgspec.Struct, frozen=True):
    """A PostgreSQL rule: `event` is INSERT, UPDATE or DELETE; `instead` for a rule that replaces it."""

    name: str
    event: str
    instead: bool


class Refusal(msgspec.Struct, frozen=True):
    """PostgreSQL's error for a statement that it does not plan."""

    state: str
    message: str


class Publication(msgspec.Struct, frozen=True, kw_only=True):
    """Logical replication of the table. `identified`: it has a replica identity."""

    names: tuple[str, ...] = ()
    updates: bool = False
    deletes: bool = False
    identified: bool = True
    subscriptions: tuple[str, ...] = ()
    """The subscriptions that write to this table."""


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """The table at one moment, and what this role may do with it."""

    dialect: Dialect
    schema: str
    table: str
    role: str = ""
    kind: str | None = "r"
    """PostgreSQL's relkind, `r` for an ordinary table; None when there is no such table."""
    oid: int = 0
    columns: tuple[Column, ...] = ()
    indexes: tuple[Index, ...] = ()
    maintained: bool = False
    """Another session runs CREATE INDEX, VACUUM or ANALYZE on the table."""
    taken_names: frozenset[str] = frozenset()
    """Names like the index's that other relations of the schema have."""
    leftovers: tuple[str, ...] = ()
    """SQLite: backup tables that a killed start of the original left behind."""
    can_create: bool = True
    can_alter: bool = True
    can_index: bool = True
    can_delete: bool = True
    column_grants: tuple[str, ...] = ()
    """The GRANTs on the column for roles with privileges on single columns."""
    seen_in: tuple[str, ...] = ()
    """Other schemas with such a table that this role may use."""
    hidden_in: str | None = None
    """Without a visible table: a schema with such a table that this role may not use."""
    no_schema: bool = False
    """PostgreSQL: the search_path of this role has no existing schema that it may use."""
    standby: bool = False
    read_only: bool = False
    read_only_reason: str = ""
    """SQLite: a sentence about what cannot be written."""
    row_security: bool = False
    """Row level security decides which rows this role sees."""
    row_security_off: bool = False
    """The setting row_security is off, so PostgreSQL refuses every statement that policies would filter."""
    without_policy: tuple[str, ...] = ()
    """The commands of SELECT, INSERT, UPDATE and DELETE that no policy allows this role."""
    rules: tuple[Rule, ...] = ()
    triggers: bool = False
    """There are AFTER triggers, which run when RETURNING has already been computed."""
    publication: Publication = Publication()
    unlogged: bool = False
    heirs: tuple[str, ...] = ()
    """Tables that inherit from it, or that it inherits from."""
    rows_estimate: int = 0
    """The planner's estimate, -1 when it has none."""
    size_bytes: int = 0
    has_statistics: bool = False
    version: int = 0
    pooled: bool = False
    refusals: Mapping[Capability, Refusal] | None = None
    """PostgreSQL's errors for statements of the service, by what they are needed for; None when not tried."""

    @property
    def deleted_at(self) -> Column | None:
        return next((column for column in self.columns if column.name == COLUMN), None)

    @property
    def has_column(self) -> bool:
        """Whether there is a usable column: of a timestamp type, and nullable."""
        column = self.deleted_at
        if column is None or column.not_null:
            return False
        return self.dialect == "sqlite" or _plain(column.type) in (ZONED, UNZONED)

    @property
    def soft_delete(self) -> bool:
        """Whether queries may name the column: a new one may lack its grant."""
        return self.has_column and self.deleted_at is not None and "SELECT" not in self.deleted_at.missing

    @property
    def deleted_at_zone(self) -> bool:
        column = self.deleted_at
        return column is None or _plain(column.type) != UNZONED

    @property
    def dated(self) -> bool:
        """Whether every row has a `createdAt`."""
        return any(column.name == "createdAt" and column.not_null for column in self.columns)

    @property
    def twins(self) -> tuple[str, ...]:
        """Columns that differ from `deletedAt` only in case, as created by SQL without quotes."""
        return tuple(c.name for c in self.columns if c.name != COLUMN and c.name.lower() == COLUMN.lower())

    @property
    def missing_columns(self) -> tuple[str, ...]:
        there = {column.name for column in self.columns}
        return tuple(name for name in BASE_COLUMNS if name not in there)

    @property
    def index(self) -> Index | None:
        """The index that serves the trash queries."""
        return next((index for index in self.indexes if index.serves), None)

    @property
    def list_index(self) -> Index | None:
        """The index for pages of live environments, valid or not."""
        return next((index for index in self.indexes if index.first_column == "createdAt" and index.btree), None)

    @property
    def has_key(self) -> bool:
        return any(index.key for index in self.indexes) and not self.deferrable_keys

    @property
    def has_primary_key(self) -> bool:
        return any(index.primary and not index.deferrable for index in self.indexes)

    @property
    def deferrable_keys(self) -> tuple[str, ...]:
        return tuple(index.name for index in self.indexes if index.deferrable and index.first_column == "id")

    @property
    def writable(self) -> bool:
        return not (self.standby or self.read_only)

    @property
    def may_undo(self) -> bool:
        """Whether the table may undo a write whose statement has returned the row."""
        return self.triggers or bool(self.rules)

    @property
    def rows(self) -> int:
        """About how many rows there are: the planner's estimate, or one from the size of the table."""
        return self.rows_estimate if self.rows_estimate >= 0 else self.size_bytes // _BYTES_A_ROW

    @property
    def needs_statistics(self) -> bool:
        """Without statistics of the column the planner assumes that nearly every row is deleted."""
        if not self.soft_delete or self.has_statistics or self.rows_estimate <= 0:
            return False
        if self.row_security or not self.can_alter:
            # Only the owner may analyse, and row security hides existing statistics.
            return False
        return self.dialect == "postgresql" or (self.index is not None and not self.index.partial)


def _plain(type_name: str) -> str:
    """The type without its precision: `timestamp(3) with time zone` has a time zone too."""
    name, _, rest = type_name.partition("(")
    return name + rest.partition(")")[2] if rest else name
