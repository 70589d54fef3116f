"""All steps of the migration of a SQLite file, to be run inside one transaction."""

from collections.abc import Awaitable, Callable, Sequence

import msgspec

from services.environments_store.database.base import Row
from services.environments_store.schema.backup_tables import put_back, rename_missing
from services.environments_store.schema.index import free_name
from services.environments_store.schema.inspection import Inspection
from services.environments_store.schema.names import METADATA_TABLE, backup_name
from services.environments_store.schema.plan import obstacle_to_column
from services.environments_store.schema.sql import add_column, create_index, create_tables

__all__ = ["Done", "bring_up_to_date"]

Run = Callable[..., Awaitable[Sequence[Row]]]
Look = Callable[[], Awaitable[Inspection]]


class Done(msgspec.Struct, frozen=True):
    """`added`: the column was missing. `notes`: what was done about copies left behind, for the log."""

    added: bool
    notes: tuple[str, ...]


async def bring_up_to_date(run: Run, look: Look, table: str, *, may_add: bool = True) -> Done:
    """Do what is missing, looking anew before each step. The column comes before the rows of a copy, so that their
    `deletedAt` comes with them. Without `may_add` it is left away when somebody has taken it away."""
    names = (table, METADATA_TABLE)
    notes = [await rename_missing(run, name, backup_name(name)) for name in names]
    found = await look()
    for statement in create_tables("sqlite")[:2]:
        await run(statement)
    missing = found.kind is not None and not found.soft_delete and obstacle_to_column(found) is None
    added = missing and may_add
    if added:
        await run(add_column("sqlite", table=table))
    notes += [await put_back(run, name, backup_name(name)) for name in names]
    found = await look()
    if found.soft_delete and found.kind == "r" and found.index is None:
        await run(create_index("sqlite", table=table, name=free_name(found)))
    return Done(added, tuple(note for note in notes if note))
