"""The commands `stats`, `backup`, `export`, `import`, `purge` and `doctor`."""

import logging
from contextlib import aclosing
from pathlib import Path
from typing import Annotated

import typer

from broker.cli.output import is_person, print_error, print_note, print_rows, print_text, print_value
from services.environments_store.commands.options import AsJson, DatabaseUrl, Yes, confirm, read_config, run_command
from services.environments_store.commands.progress import progress
from services.environments_store.commands.showing import show_diagnosis, show_forecast
from services.environments_store.commands.transfer import export_to_file, export_to_stdout, import_from
from services.environments_store.defaults import OperationLimits, StoreLimits
from services.environments_store.errors import OperationError
from services.environments_store.operations.backup import back_up
from services.environments_store.operations.doctor import examine
from services.environments_store.operations.exporting import Selection
from services.environments_store.operations.importing import OnConflict
from services.environments_store.operations.opening import count, open_table
from services.environments_store.operations.purge import Purge
from services.environments_store.schema.names import counted

__all__ = ["add_commands"]

logger = logging.getLogger("environments-store")
_LIMITS = OperationLimits()

Overwrite = Annotated[bool, typer.Option("--force", help="Replace the file when it exists.")]


def stats(
    recent_days: Annotated[
        int, typer.Option(min=0, max=36_500, help="The number of days that count as recent.")
    ] = StoreLimits().recent_days,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Count the environments: total, active, deleted, and recently deleted."""
    config = read_config(database_url=database_url)

    async def main() -> int:
        counts = await count(config.database_url, recent_days, logger)
        if as_json or not is_person():
            print_value(counts, json=True)
        else:
            print_rows([counts], list(counts))
        return 0

    run_command(main)


def backup(
    file: Annotated[Path, typer.Argument(help="The file to write.")],
    force: Overwrite = False,
    pg_bin: Annotated[
        Path | None, typer.Option(help="The folder of pg_dump and pg_restore, when they are not on PATH.")
    ] = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Back up the tables (by pg_dump, or VACUUM INTO for SQLite), and verify the backup by reading it back."""
    config = read_config(database_url=database_url)

    async def main() -> int:
        done = await back_up(config.database_url, file, overwrite=force, programs=pg_bin)
        if as_json or not is_person():
            print_value(done, json=True)
            return 0
        rows = ", ".join(f"{table} {rows}" for table, rows in done.tables.items())
        print_rows([{"file": done.file, "bytes": done.bytes, "rows": rows}], ["file", "bytes", "rows"])
        print_text(f"To restore: {done.restore}")
        return 0

    run_command(main)


def export(
    file: Annotated[Path, typer.Argument(help="The file to write; - for standard output.")],
    deleted: Annotated[bool, typer.Option("--deleted", help="Export the trash instead of the live ones.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Export live and deleted ones.")] = False,
    force: Overwrite = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Write records as NDJSON, one a line: the live ones, the trash, or all. Exit code 1 when a row is damaged."""
    config = read_config(database_url=database_url)
    selection: Selection = "all" if everything else "deleted" if deleted else "live"

    async def main() -> int:
        if str(file) == "-":
            done = await export_to_stdout(config.database_url, selection)
        else:
            done = await export_to_file(config.database_url, file, selection, overwrite=force)
            print_value(done)
        if done.damaged:
            many = counted(done.damaged, "record has", "records have")
            print_error(f"{many} a damaged document, exported as null. `environments-store doctor` names the ids.")
        return 1 if done.damaged else 0

    run_command(main)


def import_(
    file: Annotated[Path, typer.Argument(help="The file to read; - for standard input.")],
    on_conflict: Annotated[OnConflict, typer.Option(help="What to do with a record whose id exists already.")] = "skip",
    yes: Yes = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Import records from NDJSON, or an environment from a Mockoon file: all of them, or none if a line is bad."""
    config = read_config(database_url=database_url)

    async def main() -> int:
        if on_conflict == "replace":
            confirm(f"Replace every existing environment that is also in '{file}'?", yes)
        done = await import_from(config.database_url, file, on_conflict)
        print_value(done._asdict())
        return 0

    run_command(main)


def purge(
    older_than: Annotated[
        int, typer.Option(min=0, max=36_500, help="Days since the deletion. Less than 1 needs --force.")
    ] = _LIMITS.purge_days,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count by month, and delete nothing.")] = False,
    batch_size: Annotated[
        int, typer.Option(min=1, max=_LIMITS.purge_batch_max, help="Rows of one DELETE.")
    ] = _LIMITS.purge_batch,
    force: Annotated[bool, typer.Option("--force", help="Purge even what was deleted less than a day ago.")] = False,
    yes: Yes = False,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Permanently delete old environments from the trash, in small batches, even while the service runs."""
    config = read_config(database_url=database_url)

    async def main() -> int:
        if older_than < _LIMITS.purge_days_min and not (force or dry_run):
            raise OperationError("This would purge what was deleted less than a day ago. Pass --force if you mean it.")
        async with open_table(config.database_url, logger, writes=not dry_run) as opened:
            work = await Purge.older_than(older_than, opened.database, opened.shape)
            forecast = await work.forecast()
            if dry_run:
                show_forecast(work.cutoff, forecast, as_json)
                return 0
            if forecast.candidates:
                many = counted(forecast.candidates, "environment", "environments")
                confirm(
                    f"Permanently delete {many} from {opened.location.label}, deleted before {work.cutoff}?",
                    yes,
                )
            deleted = 0
            with progress() as report:
                async with aclosing(work.batches(batch_size)) as batches:
                    async for changes in batches:
                        deleted += len(changes)
                        report("purge environments", deleted, forecast.candidates)
            kept = {"kept": [one._asdict() for one in work.examples]} if work.examples else {}
            print_value({"deleted": deleted, "remaining": await work.remaining(), **kept}, json=as_json)
            if work.kept:
                many = counted(work.kept, "environment", "environments")
                print_note(f"The database refused to delete {many}. `environments-store doctor` says why.")
        return 0

    run_command(main)


def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Do not read every document.")] = False,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Find problems in schema, server and rows, with their remedies. Exit code 1 when there is one."""
    config = read_config(database_url=database_url)

    async def main() -> int:
        with progress() as report:
            diagnosis = await examine(
                config.database_url,
                logger,
                documents=not quick,
                on_progress=lambda done: report("read documents", done, None),
            )
        show_diagnosis(diagnosis, as_json)
        return 0 if diagnosis.healthy else 1

    run_command(main)


def add_commands(app: typer.Typer) -> None:
    """Add these commands to a program."""
    for command in (stats, backup, export, purge, doctor):
        app.command()(command)
    app.command("import")(import_)
