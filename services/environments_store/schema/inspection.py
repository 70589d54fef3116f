"""What was found in a database, as data. Nothing here connects, changes or decides."""

import msgspec

from services.environments_store.database.base import Dialect
from services.environments_store.schema.names import BASE_COLUMNS, COLUMN

__all__ = ["Column", "Index", "Inspection"]

ZONED = "timestamp with time zone"
UNZONED = "timestamp without time zone"


class Column(msgspec.Struct, frozen=True):
    name: str
    type: str
    not_null: bool = False


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """An index of the table. `narrowed`: its predicate leaves deleted rows out, so it cannot answer for all of them."""

    name: str
    first_column: str | None
    valid: bool = True
    btree: bool = True
    unique: bool = False
    partial: bool = False
    narrowed: bool = False

    @property
    def serves(self) -> bool:
        """Whether it answers the trash queries: any name will do. A unique one is a mistake waiting to happen."""
        return self.on_column and self.valid and self.btree and not self.unique and not self.narrowed

    @property
    def on_column(self) -> bool:
        return self.first_column == COLUMN


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
    """Somebody else is building an index on the table, or a VACUUM or ANALYZE of it runs."""
    taken_names: frozenset[str] = frozenset()
    """Names like our index's that belong to something else in the schema."""
    leftovers: tuple[str, ...] = ()
    """SQLite: copies of tables that a killed start of the original left behind."""
    can_create: bool = True
    can_alter: bool = True
    can_index: bool = True
    missing_grants: tuple[str, ...] = ()
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
    rows_hidden: bool = False
    """It hides all of them, as no policy shows this role any."""
    rows_estimate: int = 0
    has_statistics: bool = False
    version: int = 0
    pooled: bool = False

    @property
    def deleted_at(self) -> Column | None:
        return next((column for column in self.columns if column.name == COLUMN), None)

    @property
    def needed_grants(self) -> tuple[str, ...]:
        """Those of `missing_grants` without which hardly anything works; DELETE is for what goes for ever."""
        return tuple(grant for grant in self.missing_grants if grant != "DELETE")

    @property
    def soft_delete(self) -> bool:
        """Whether the column is there, with a type that queries can use and room for "not deleted"."""
        column = self.deleted_at
        if column is None or column.not_null:
            return False
        return self.dialect == "sqlite" or _plain(column.type) in (ZONED, UNZONED)

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
    def writable(self) -> bool:
        return not (self.standby or self.read_only)

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
