"""What the store needs of a database: one small Protocol, held by PostgreSQL and SQLite alike."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, NamedTuple, Protocol

Dialect = Literal["postgresql", "sqlite"]


class Row(Protocol):
    """A row: values by column name or by position, as asyncpg.Record and sqlite3.Row both give them."""

    def __getitem__(self, key: Any, /) -> Any: ...


class Documents(NamedTuple):
    """The statements that get the documents of a list: see `Database.stream`."""

    alone: str
    """The whole row with an id, its `environment` in pieces: a row for each, in order."""
    together: str | None = None
    """The rows with the ids that stand for `{}`, a large document left out. None where the query of the list may read
    the documents itself; SQLite would keep the largest that it has met for as long as the list is open."""


class Queries(Protocol):
    """Statements with `$1`, `$2`… as placeholders, in both dialects.

    Every method raises only errors of `services.environments_store.errors`: DatabaseUnavailableError when the
    connection is lost or refused (OutcomeUnknownError when that happened during a write), DatabaseReadOnlyError,
    MissingColumnError for a column that is not there, DatabaseError for the rest.
    """

    async def fetch(self, query: str, *arguments: object) -> Sequence[Row]:
        """All rows of a query."""

    async def fetch_one(self, query: str, *arguments: object) -> Row | None:
        """The first row of a query or of a write with RETURNING; None when there is none."""

    async def execute(self, query: str, *arguments: object) -> int:
        """Run a write and return how many rows it touched."""


class Database(Queries, Protocol):
    """A pool of connections to one database. Writes outside `transaction` commit by themselves."""

    dialect: Dialect
    on_full: Callable[[], None]
    """Called when a server allows this node no connection, as others have all of them."""

    async def open(self) -> None:
        """Be ready for queries. A server is connected to by the first of them; a file is opened now, and raises
        DatabaseUnavailableError or DatabaseError when it cannot be."""

    async def close(self) -> None:
        """Close every connection. Closing twice is quiet."""

    def transaction(self) -> AbstractAsyncContextManager[Queries]:
        """One transaction that may write: committed at the end of the block, rolled back when it raises.

        READ COMMITTED on PostgreSQL, BEGIN IMMEDIATE on SQLite, so that no write in it can meet a stale snapshot.
        """

    def stream(
        self, query: str, *arguments: object, batch: int, paced: bool = False, documents: Documents | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[Sequence[Row]]]:
        """The rows of one query in batches of at most `batch`, all of one snapshot, fetched as they are asked for.

        `paced`: by a reader that may be slow. Such streams never hold the last connections, which others need.
        `documents`: the query has a column `large`; a row that has it true is read by its id, as a batch of its own.
        """

    async def refresh(self) -> None:
        """Forget what connections remember of the schema: call it after a migration changed the table."""
