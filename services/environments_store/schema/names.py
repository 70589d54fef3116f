"""The names in the database that are promises: the original's and the guide's. All of them need their quotes."""

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
"""No promise of the guide's: made only when somebody asks for it."""
BASE_COLUMNS = ("id", "environment", "environmentUuid", "timestamp", "createdAt", "updatedAt")
"""What every generation of the original has: a table without them is somebody else's."""


def quoted(name: str) -> str:
    """An identifier for SQL, in both dialects."""
    return '"' + name.replace('"', '""') + '"'


def migration_name(node_id: str) -> str:
    """What PostgreSQL shows of the connection of a migration: of a longer name it keeps 63 bytes."""
    return f"environments-store migrate {node_id}"[:63]


def counted(number: int, one: str, many: str) -> str:
    """`1 environment`, `2 environments`, with a comma for each thousand."""
    return f"{number:,} {one if number == 1 else many}"


def qualified(schema: str, name: str) -> str:
    return f"{quoted(schema)}.{quoted(name)}"


def backup_name(table: str) -> str:
    """What the original calls its copy of a table while it rebuilds it at every start."""
    return f"{table}_backup"
