"""Which database a URL means."""

from services.environments_store.database.base import Database
from services.environments_store.database.location import read_location
from services.environments_store.defaults import DatabaseSettings

__all__ = ["open_database"]


def open_database(url: str, settings: DatabaseSettings | None = None) -> Database:
    """The database of a URL, not connected yet: `await database.open()` does that.

    `postgresql://…` (or `postgres://…`), `sqlite:///relative/path`, `sqlite:////absolute/path`, the latter two also
    with `?mode=ro`. Raises ConfigError for anything else.
    """
    location = read_location(url)
    settings = settings or DatabaseSettings()
    # Imported when needed: a node on one database does not load the other's driver.
    if location.path is not None:
        from services.environments_store.database.sqlite import SqliteDatabase

        return SqliteDatabase(location.path, settings, read_only=location.read_only)
    from services.environments_store.database.postgres import PostgresDatabase

    return PostgresDatabase(url, settings)
