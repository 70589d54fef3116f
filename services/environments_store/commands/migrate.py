"""The commands `migrate …`."""

import logging
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from broker.cli.output import is_person, print_error, print_rows, print_text, print_value
from services.environments_store.commands.index_wait import IndexWait
from services.environments_store.commands.options import (
    AsJson,
    CreateTable,
    DatabaseUrl,
    Level,
    Yes,
    confirm,
    read_config,
    run_command,
    typer_group,
)
from services.environments_store.commands.progress import progress
from services.environments_store.commands.showing import show_checklist, show_checks, show_plan, show_status
from services.environments_store.commands.transfer import export_to_file
from services.environments_store.database.location import read_location
from services.environments_store.defaults import OperationLimits
from services.environments_store.errors import OperationError
from services.environments_store.operations.checklist import all_hold, run_checklist
from services.environments_store.operations.list_index import build_list_index
from services.environments_store.operations.planning import plan
from services.environments_store.operations.rollback import (
    RolledBack,
    Survey,
    commands_to_undo,
    refuse_unsafe,
    roll_back,
    survey,
)
from services.environments_store.operations.verify import verify
from services.environments_store.schema.check import look
from services.environments_store.schema.migrator import migrate_once
from services.environments_store.schema.names import LIST_INDEX, counted
from services.environments_store.schema.plan import status_of
from services.environments_store.schema.sql import script

__all__ = ["app"]

app = typer_group("Check the schema, migrate it, verify the migration, or roll it back.")
logger = logging.getLogger("environments-store")

_WAIT_S = OperationLimits().wait_s
Wait = Annotated[float, typer.Option(min=0, help="Seconds to wait for transactions of other sessions.")]


@app.command("check")
def migrate_check(database_url: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Check what is missing, privileges, and blocking sessions. Exit code 1 when there is work to do."""
    config = read_config(database_url=database_url)

    async def main() -> int:
        checklist = await run_checklist(await look(config.database_url))
        show_checklist(checklist, as_json)
        return 1 if checklist.pending else 0

    run_command(main)


@app.command("plan")
def migrate_plan(database_url: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Show the steps with their locks and durations, and what is never done. Exit code 1 when there is work to do."""
    config = read_config(database_url=database_url)

    async def main() -> int:
        planned = await plan(config.database_url)
        show_plan(planned, as_json)
        return 1 if planned.pending else 0

    run_command(main)


@app.command("run")
def migrate_run(
    wait: Wait = _WAIT_S,
    create_table: CreateTable = False,
    database_url: DatabaseUrl = None,
    log_level: Level = None,
    as_json: AsJson = False,
) -> None:
    """Add the column and its index now. Exit code 1 when a step is missing afterwards, or an action is unavailable.

    It may have to wait for a transaction of another session, which it names.
    """
    config = read_config(database_url=database_url, log_level=log_level)

    async def main() -> int:
        url = config.database_url
        with progress() as report:
            work = partial(migrate_once, url, logger=logger, create_table=create_table, wait_s=wait)
            wait_for_index = IndexWait(wait, report, logger)
            status = await wait_for_index.run(url, "migrate", work)
            if status is None:
                status = status_of((await look(url)).found, details={"index": wait_for_index.given_up})
        show_status(status, as_json)
        done = status.state == "ready" and all(step.state == "done" for step in status.steps)
        if not done and (wait_for_index.given_up or status.state == "migrating"):
            print_error(f"Not complete: gave up after waiting {wait:g} s for another session (--wait).")
        return 0 if done else 1

    run_command(main)


@app.command("list-index")
def migrate_list_index(wait: Wait = _WAIT_S, database_url: DatabaseUrl = None, log_level: Level = None) -> None:
    """Build an index for pages of live environments on a large table (not part of the guide)."""
    config = read_config(database_url=database_url, log_level=log_level)

    async def main() -> int:
        url = config.database_url
        with progress() as report:
            wait_for_index = IndexWait(wait, report, logger)
            built = await wait_for_index.run(url, "list-index", partial(build_list_index, url, logger))
        if built is None:
            raise OperationError(f"The index was not built: {wait_for_index.given_up}")
        print_value({"index": LIST_INDEX, "state": built})
        return 0

    run_command(main)


@app.command("verify")
def migrate_verify(database_url: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Verify the column, the index, its speed, and the guide's six steps. Exit code 1 when a check fails."""
    config = read_config(database_url=database_url)

    async def main() -> int:
        checks = await verify(config.database_url, logger)
        show_checks(checks, as_json)
        return 0 if all_hold(checks) else 1

    run_command(main)


@app.command("sql")
def migrate_sql(database_url: DatabaseUrl = None) -> None:
    """Print the migration as SQL for a DBA, without connecting."""
    print(script(read_location(read_config(database_url=database_url).database_url).dialect), end="")


@app.command("rollback")
def migrate_rollback(
    trash: Annotated[
        Literal["keep", "remove"] | None,
        typer.Option(help="Keep deleted environments in the table, live again, or remove them from it."),
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="The file to export them to first; by default a name with the time.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Roll back even while nodes serve.")] = False,
    yes: Yes = False,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Drop the column again; the trash is kept in a file and in a table of its own."""
    config = read_config(database_url=database_url)

    async def main() -> int:
        seen = await survey(config.database_url, logger)
        if not seen.column:
            print_error(f"There is no column deletedAt in {seen.database}: nothing to roll back.")
            return 0
        refuse_unsafe(seen, trash, force)
        assert trash is not None
        confirm(_question(seen, trash), yes)
        file = export or Path(f"environments-deleted-{datetime.now(UTC):%Y%m%d-%H%M%S}.ndjson")
        # `--force` has another meaning here: the file of an earlier attempt is never replaced.
        exported = await export_to_file(config.database_url, file, "deleted", overwrite=False, option=None)
        done = await roll_back(config.database_url, trash, force=force, logger=logger)
        if done.rows != exported.exported:
            print_error(
                f"The file has {counted(exported.exported, 'record', 'records')}, but the table {done.copy} has"
                f" {counted(done.rows, 'row', 'rows')}: the table is complete."
            )
        _show_rollback(done, file, as_json)
        return 0

    run_command(main)


def _question(seen: Survey, trash: str) -> str:
    becomes = "be live again" if trash == "keep" else "be deleted from the table (a copy is kept)"
    return (
        f"Drop the column deletedAt of {seen.table} in {seen.database}? Of its"
        f" {counted(seen.total, 'environment', 'environments')} {counted(seen.deleted, 'is', 'are')} deleted, and will"
        f" {becomes}."
    )


def _show_rollback(done: RolledBack, file: Path, json: bool) -> None:
    back = commands_to_undo(done, str(file))
    row = {"table": done.table, "copy": done.copy, "rows": done.rows, "removed": done.removed}
    if json or not is_person():
        print_value({**row, "file": str(file), "wayBack": back}, json=True)
        return
    print_rows([{**row, "file": str(file)}], [*row, "file"])
    print_text("To undo the rollback:")
    for line in back:
        print_text(f"  {line}")
