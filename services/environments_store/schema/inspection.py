"""What was found in a database, as data. Nothing here connects, changes or decides."""

from collections.abc import Mapping

import msgspec

from services.environments_store.database.base import Dialect
from services.environments_store.schema.names import BASE_COLUMNS, COLUMN
from services.environments_store.schema.status import Capability

__all__ = ["ROW_NUMBER", "Column", "Index", "Inspection", "Publication", "Refusal", "Rule"]

ZONED = "timestamp with time zone"
UNZONED = "timestamp without time zone"
ROW_NUMBER = "rowid"
"""What stands for the index of a SQLite table whose key is the number of the row."""
_BYTES_A_ROW = 340
"""Measured: a million small rows take 340 MB. Large documents are stored beside the table."""


class Column(msgspec.Struct, frozen=True):
    """`filled`: a new row gets a value in it by itself. `generated`: how, when no statement may give it one.
    `missing`: which of SELECT, INSERT and UPDATE this role lacks."""

    name: str
    type: str
    not_null: bool = False
    filled: bool = False
    generated: str = ""
    missing: tuple[str, ...] = ()


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """An index of the table. `narrowed`: its predicate leaves deleted rows out, so it cannot answer for all of them.
    `key`: it keeps `id` unique at once, so that ON CONFLICT can rely on it; `deferrable`: not at once."""

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
        """Whether it answers the trash queries: any name will do. A unique one is a mistake waiting to happen."""
        return self.on_column and self.valid and self.btree and not self.unique and not self.narrowed

    @property
    def on_column(self) -> bool:
        return self.first_column == COLUMN


class Rule(msgspec.Struct, frozen=True):
    """A rule of PostgreSQL's: `event` is INSERT, UPDATE or DELETE; `instead` of it something else is done."""

    name: str
    event: str
    instead: bool


class Refusal(msgspec.Struct, frozen=True):
    """What PostgreSQL says to a statement that it does not take."""

    state: str
    message: str


class Publication(msgspec.Struct, frozen=True, kw_only=True):
    """Logical replication of the table. `identified`: a changed row can be told from others at a subscriber."""

    names: tuple[str, ...] = ()
    updates: bool = False
    deletes: bool = False
    identified: bool = True
    subscriptions: tuple[str, ...] = ()
    """Those that write into this table."""


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """One look at the table and at what this role may do with it."""

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
    """Another session is building an index on the table, or a VACUUM or ANALYZE of it runs."""
    taken_names: frozenset[str] = frozenset()
    """Names like our index's that belong to something else in the schema."""
    leftovers: tuple[str, ...] = ()
    """SQLite: copies of tables that a killed start of the original left behind."""
    can_create: bool = True
    can_alter: bool = True
    can_index: bool = True
    can_delete: bool = True
    column_grants: tuple[str, ...] = ()
    """The GRANTs on the column that roles need which have their rights column by column."""
    seen_in: tuple[str, ...] = ()
    """Other schemas that this role may use, with such a table."""
    hidden_in: str | None = None
    """A schema with such a table that this role may not use, when it sees none."""
    no_schema: bool = False
    """PostgreSQL: the search_path of this role names no schema that is there and that it may use."""
    standby: bool = False
    read_only: bool = False
    read_only_reason: str = ""
    """SQLite: what cannot be written, in words."""
    row_security: bool = False
    """Row level security decides which rows this role sees."""
    row_security_off: bool = False
    """And PostgreSQL refuses every statement that it would decide on."""
    without_policy: tuple[str, ...] = ()
    """Those of SELECT, INSERT, UPDATE and DELETE for which no policy lets this role do anything."""
    rules: tuple[Rule, ...] = ()
    triggers: bool = False
    """Triggers run after a row was stored or deleted, when the statement has said already what it gives back."""
    publication: Publication = Publication()
    unlogged: bool = False
    heirs: tuple[str, ...] = ()
    """Tables that inherit from it, or that it inherits from."""
    rows_estimate: int = 0
    """The planner's, -1 when it has none."""
    size_bytes: int = 0
    has_statistics: bool = False
    version: int = 0
    pooled: bool = False
    refusals: Mapping[Capability, Refusal] | None = None
    """What PostgreSQL said to statements of the service, by what they are needed for; None when not asked."""

    @property
    def deleted_at(self) -> Column | None:
        return next((column for column in self.columns if column.name == COLUMN), None)

    @property
    def has_column(self) -> bool:
        """Whether the column is there, with a type that queries can use and room for "not deleted"."""
        column = self.deleted_at
        if column is None or column.not_null:
            return False
        return self.dialect == "sqlite" or _plain(column.type) in (ZONED, UNZONED)

    @property
    def soft_delete(self) -> bool:
        """Whether queries may name it: a column that was just added may have no grant yet."""
        return self.has_column and self.deleted_at is not None and "SELECT" not in self.deleted_at.missing

    @property
    def deleted_at_zone(self) -> bool:
        column = self.deleted_at
        return column is None or _plain(column.type) != UNZONED

    @property
    def dated(self) -> bool:
        """Whether every row surely has a `createdAt`."""
        return any(column.name == "createdAt" and column.not_null for column in self.columns)

    @property
    def twins(self) -> tuple[str, ...]:
        """Columns that differ from ours in capitals only, as SQL without quotes makes them."""
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
        """The index that reads pages of live environments in their order, valid or not."""
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
        """Whether the table may undo a write in the same statement, which gives its row back all the same."""
        return self.triggers or bool(self.rules)

    @property
    def rows(self) -> int:
        """How many there are about: the planner's number, or one from the size of the file."""
        return self.rows_estimate if self.rows_estimate >= 0 else self.size_bytes // _BYTES_A_ROW

    @property
    def needs_statistics(self) -> bool:
        """Until the column is analysed the planner takes nearly every row for deleted."""
        if not self.soft_delete or self.has_statistics or self.rows_estimate <= 0:
            return False
        if self.row_security or not self.can_alter:
            # Only an owner may analyse; row security hides the statistics that there are.
            return False
        return self.dialect == "postgresql" or (self.index is not None and not self.index.partial)


def _plain(type_name: str) -> str:
    """The type without its precision: `timestamp(3) with time zone` is one with a zone too."""
    name, _, rest = type_name.partition("(")
    return name + rest.partition(")")[2] if rest else name
