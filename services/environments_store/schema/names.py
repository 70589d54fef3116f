"""The names in the database, which the original and the guide define. All of them need quotes."""

__all__ = [
    "BASE_COLUMNS",
    "COLUMN",
    "INDEX",
    "LIST_INDEX",
    "METADATA_TABLE",
    "TABLE",
    "backup_name",
    "counted",
    "migration_name",
    "qualified",
    "quoted",
]

TABLE = "environments"
METADATA_TABLE = "metadata"
COLUMN = "deletedAt"
INDEX = "environments_deleted_at_idx"
LIST_INDEX = "environments_created_at_idx"
"""Not part of the guide: built only by `migrate list-index`."""
BASE_COLUMNS = ("id", "environment", "environmentUuid", "timestamp", "createdAt", "updatedAt")
"""The columns of every generation of the original: a table without them belongs to another application."""


def quoted(name: str) -> str:
    """An identifier for SQL, in both dialects."""
    return '"' + name.replace('"', '""') + '"'


def migration_name(node_id: str) -> str:
    """The application name of a migration's connection; PostgreSQL truncates it to 63 bytes."""
    return f"environments-store migrate {node_id}"[:63]


def counted(number: int, one: str, many: str) -> str:
    """`1 environment`, `2 environments`, with a comma for each thousand."""
    return f"{number:,} {one if number == 1 else many}"


def qualified(schema: str, name: str) -> str:
    return f"{quoted(schema)}.{quoted(name)}"


def backup_name(table: str) -> str:
    """The original's name for its copy of a table while it rebuilds it at every start."""
    return f"{table}_backup"
