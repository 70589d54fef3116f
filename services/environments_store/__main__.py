"""The command `environments-store`: run the service, try it, migrate and count."""

import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Annotated, Any

import typer

from broker import BrokerOptionsError, ServiceBroker
from broker.cli.logs import configure_logs
from broker.cli.output import encode, is_person, print_error, print_rows, print_value
from broker.cli.running import run
from broker.cli.running import serve as serve_until_signal
from services.environments_store.config import Config, load_config, masked_servers
from services.environments_store.defaults import MigrationBudgets, StoreLimits
from services.environments_store.demo import Step, as_json, run_demo
from services.environments_store.embedded import embedded_server, is_answering, loopback_port
from services.environments_store.errors import ConfigError
from services.environments_store.operations import count, migration_script
from services.environments_store.schema.check import Report, check
from services.environments_store.schema.migrator import migrate_once
from services.environments_store.schema.status import SchemaStatus
from services.environments_store.schema.status import Step as SchemaStep
from services.environments_store.service import EnvironmentsStore

app = typer.Typer(
    help="The environments-store service: soft-delete CRUD over PostgreSQL or SQLite, on a Moleculer cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
migration = typer.Typer(help="Look at the schema, bring it up to date, or print the SQL.", no_args_is_help=True)
app.add_typer(migration, name="migrate")

logger = logging.getLogger("environments-store")

NatsUrl = Annotated[
    str | None,
    typer.Option("--nats-url", help="NATS servers, separated by commas.  [env: NATS_URL]", show_default=False),
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option("--database-url", help="postgresql://… or sqlite:///path  [env: DATABASE_URL]", show_default=False),
]
Namespace = Annotated[str | None, typer.Option(help="The cluster's namespace.  [env: NAMESPACE]", show_default=False)]
NodeId = Annotated[str | None, typer.Option(help="Unique in the cluster.  [env: NODE_ID]", show_default=False)]
Level = Annotated[str | None, typer.Option(help="debug, info, warning or error.  [env: LOG_LEVEL]", show_default=False)]
Format = Annotated[str | None, typer.Option(help="text or json.  [env: LOG_FORMAT]", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, also on a terminal.")]


@app.command()
def serve(
    embedded: Annotated[bool, typer.Option("--embedded", help="Start a NATS server when none answers.")] = False,
    start_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds to wait for NATS and the database.")
    ] = StoreLimits().start_timeout_s,
    nats_url: NatsUrl = None,
    database_url: DatabaseUrl = None,
    namespace: Namespace = None,
    node_id: NodeId = None,
    log_level: Level = None,
    log_format: Format = None,
) -> None:
    """Run the service until SIGTERM or SIGINT."""
    given = {"nats_url": nats_url, "database_url": database_url, "namespace": namespace, "node_id": node_id}
    config = _config(**given, log_level=log_level, log_format=log_format)

    async def main() -> int:
        async with AsyncExitStack() as stack:
            url = config.nats_url
            if embedded and not await is_answering(url):
                server = await stack.enter_async_context(embedded_server(loopback_port(url)))
                logger.info("Nothing answers at %s: started a NATS server at %s", masked_servers(url), server.url)
                url = server.url
            return await serve_until_signal(_node(config, url, start_timeout), start_timeout)

    _run(main)


@app.command()
def demo(as_json_lines: AsJson = False) -> None:
    """Show the guide's six steps on an embedded NATS server and a throw-away SQLite file."""
    configure_logs("warning")

    async def main() -> int:
        holds = await run_demo(partial(_show_log, as_json_lines), partial(_show_step, as_json_lines))
        if holds and not as_json_lines:
            print("\nAll six steps showed what the guide says.")
        elif not holds:
            print_error("Not every step showed what the guide says.")
        return 0 if holds else 1

    _run(main)


@migration.command("check")
def migrate_check(database_url: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Look at the schema and change nothing. Exit code 1 when something is missing."""
    config = _config(database_url=database_url)

    async def main() -> int:
        report = await check(config.database_url)
        _show_report(report, as_json)
        return 1 if report.pending else 0

    _run(main)


@migration.command("run")
def migrate_run(database_url: DatabaseUrl = None, log_level: Level = None, as_json: AsJson = False) -> None:
    """Add the column and its index now. Exit code 1 when something is still missing then."""
    config = _config(database_url=database_url, log_level=log_level)

    async def main() -> int:
        status = await migrate_once(config.database_url, logger=logger)
        _show_status(status, as_json)
        return 0 if status.state == "ready" and all(step.state == "done" for step in status.steps) else 1

    _run(main)


@migration.command("sql")
def migrate_sql(database_url: DatabaseUrl = None) -> None:
    """Print the migration as SQL for a DBA, without connecting."""
    print(migration_script(_config(database_url=database_url).database_url), end="")


@app.command()
def stats(
    recent_days: Annotated[
        int, typer.Option(min=0, max=36_500, help="Deletions of how many days count as recent.")
    ] = StoreLimits().recent_days,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Count the environments: total, active, deleted, and recently deleted."""
    config = _config(database_url=database_url)

    async def main() -> int:
        counts = await count(config.database_url, recent_days, logger)
        if as_json or not is_person():
            print_value(counts, json=True)
        else:
            print_rows([counts], list(counts))
        return 0

    _run(main)


def main() -> None:
    """The entry point of the script `environments-store`."""
    app()


def _config(**flags: Any) -> Config:
    """The settings, with logs going to standard error from here on. A wrong one ends the command with one line."""
    try:
        config = load_config(os.environ, **flags)
    except ConfigError as error:
        print_error(str(error))
        raise typer.Exit(2) from None
    configure_logs(config.log_level, config.log_format)
    return config


def _node(config: Config, nats_url: str, start_timeout: float) -> ServiceBroker:
    # A table that is locked must not end the start: the service then serves without soft delete, and tries on.
    budgets = MigrationBudgets(start_s=min(MigrationBudgets().start_s, start_timeout / 2))
    service = EnvironmentsStore(config.database_url, start_timeout_s=start_timeout, budgets=budgets)
    return ServiceBroker(config.node_id, namespace=config.namespace, transporter=nats_url, services=[service])


def _run(main: Callable[[], Awaitable[int]]) -> None:
    async def guarded() -> int:
        try:
            return await main()
        except (ConfigError, BrokerOptionsError) as error:
            print_error(str(error))
            return 2 if isinstance(error, ConfigError) else 1

    raise typer.Exit(run(guarded))


def _show_report(report: Report, json: bool) -> None:
    if json or not is_person():
        print_value(report, json=True)
        return
    print(f"{report.table} in {report.database}")
    _show_steps(report.steps)
    for finding in report.findings:
        print(f"{finding.level}: {finding.message}{f' {finding.remedy}' if finding.remedy else ''}")


def _show_status(status: SchemaStatus, json: bool) -> None:
    if json or not is_person():
        print_value(status, json=True)
        return
    print(f"{status.dialect}: {status.state}{f' ({status.error})' if status.error else ''}")
    _show_steps(status.steps)


def _show_steps(steps: Sequence[SchemaStep]) -> None:
    rows = [{"step": step.name, "state": step.state, "detail": step.detail} for step in steps]
    print_rows(rows, ["step", "state", "detail"])


def _show_log(json: bool, line: str) -> None:
    if not json:
        print(f"log     {line}")


def _show_step(json: bool, step: Step) -> None:
    if json:
        print(as_json(step).decode(), flush=True)
        return
    print(f"\n{step.number}. {step.title}")
    print(f"call    {step.action} {encode(step.params).decode()}")
    print(f"answer  {encode(step.answer).decode()}")
    print(f"{'shown' if step.holds else 'FAILED':7} {step.shows}", flush=True)


if __name__ == "__main__":
    main()
