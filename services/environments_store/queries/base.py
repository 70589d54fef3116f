"""The names of the statements, and what each takes: `$1`, `$2`… in this order."""

from typing import NamedTuple

from services.environments_store.database.base import Documents

__all__ = ["Listing", "Queries", "SoftDelete"]


class Listing(NamedTuple):
    """One list, with documents and without. `first` takes limit; each of `after` limit and the uuid to go on after:
    together, in this order, they give the rest of the list. A large document is left out, and its row has `large`."""

    first: str
    after: tuple[str, ...]
    first_light: str
    after_light: tuple[str, ...]


class SoftDelete(NamedTuple):
    """The statements that need the column. All take the uuid, but for `listing`; `delete` returns its `transaction`."""

    listing: Listing
    remove: str
    restore: str
    delete: str


class Queries(NamedTuple):
    """`stats` takes days; `create` and `update` uuid and document; `listing` see there; the rest the uuid."""

    get: str
    get_by_environment_uuid: str
    look: str
    """Also for a row of a listing whose document was left out."""
    documents: Documents
    """Those of the rows of a listing that is streamed."""
    look_light: str
    lock: str
    listing: Listing
    """By `createdAt`, then `id`."""
    undated_listing: Listing
    """The same for a table whose `createdAt` may be NULL: such rows are in the database's own order, first on SQLite
    and last on PostgreSQL, by id. No comparison of a date finds them."""
    create: str
    update: str
    delete_any: str
    stats: str
    soft_delete: SoftDelete | None
    committed: str | None
    """Returns whether a `transaction` was `committed`, NULL while it runs. SQLite needs none: it reports every
    outcome."""
    settle: str | None
    """Runs deferred constraints and triggers now. None where there are none."""
    no_limit: int | None
    """The value of `limit` for no limit."""
