"""The command `environments-store`."""

import logging
from contextlib import AsyncExitStack
from functools import partial
from typing import Annotated

import typer

from broker import ServiceBroker
from broker.cli.output import print_error, use_utf8
from broker.cli.running import serve as serve_until_signal
from broker.logs import configure_logs, encode
from services.environments_store.commands.data import add_commands
from services.environments_store.commands.migrate import app as migration
from services.environments_store.commands.options import (
    AsJson,
    CreateTable,
    DatabaseUrl,
    Level,
    read_config,
    run_command,
    typer_group,
)
from services.environments_store.config import Config, masked_servers
from services.environments_store.database.large import return_large_buffers
from services.environments_store.database.location import masked
from services.environments_store.defaults import DatabaseSettings, MigrationBudgets, StoreLimits
from services.environments_store.demo import Step, as_json, run_demo
from services.environments_store.embedded import embedded_server, is_answering, loopback_port
from services.environments_store.service import EnvironmentsStore

app = typer_group("The environments-store service: soft-delete CRUD over PostgreSQL or SQLite, on a Moleculer cluster.")
app.add_typer(migration, name="migrate")

logger = logging.getLogger("environments-store")

NatsUrl = Annotated[
    str | None,
    typer.Option("--nats-url", help="NATS servers, separated by commas. Default: $NATS_URL.", show_default=False),
]
Namespace = Annotated[
    str | None, typer.Option(help="The cluster's namespace. Default: $NAMESPACE.", show_default=False)
]
NodeId = Annotated[str | None, typer.Option(help="Unique in the cluster. Default: $NODE_ID.", show_default=False)]
Format = Annotated[str | None, typer.Option(help="text or json. Default: $LOG_FORMAT.", show_default=False)]
Retention = Annotated[
    str | None,
    typer.Option(
        help="Purge the trash daily; days a record stays in it. Default: $RETENTION_DAYS.",
        show_default=False,
    ),
]

PoolSize = Annotated[
    str | None,
    typer.Option(help="PostgreSQL connections for calls. Default: $DATABASE_POOL_SIZE.", show_default=False),
]


@app.command()
def serve(
    embedded: Annotated[bool, typer.Option("--embedded", help="Start a NATS server when none answers.")] = False,
    start_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds to wait for NATS and the database.")
    ] = StoreLimits().start_timeout_s,
    nats_url: NatsUrl = None,
    create_table: CreateTable = False,
    database_url: DatabaseUrl = None,
    database_pool_size: PoolSize = None,
    namespace: Namespace = None,
    node_id: NodeId = None,
    log_level: Level = None,
    log_format: Format = None,
    retention_days: Retention = None,
) -> None:
    """Run the service until SIGTERM or SIGINT."""
    given = {"nats_url": nats_url, "database_url": database_url, "namespace": namespace, "node_id": node_id}
    config = read_config(
        **given,
        database_pool_size=database_pool_size,
        log_level=log_level,
        log_format=log_format,
        retention_days=retention_days,
    )

    async def main() -> int:
        async with AsyncExitStack() as stack:
            url = config.nats_url
            if embedded and not await is_answering(url):
                server = await stack.enter_async_context(embedded_server(loopback_port(url)))
                logger.info("Nothing answers at %s: started a NATS server at %s", masked_servers(url), server.url)
                url = server.url
            node = _node(config, url, start_timeout, create_table)
            return await serve_until_signal(node, start_timeout, database=masked(config.database_url))

    return_large_buffers()
    run_command(main)


@app.command()
def demo(as_json_lines: AsJson = False) -> None:
    """Show the guide's six steps on an embedded NATS server and a throw-away SQLite file."""
    configure_logs("warning")

    async def main() -> int:
        holds = await run_demo(partial(_show_log, as_json_lines), partial(_show_step, as_json_lines))
        if holds and not as_json_lines:
            print("\nAll six steps showed what the guide says.")
        elif not holds:
            print_error("Not all steps showed what the guide says.")
        return 0 if holds else 1

    run_command(main)


add_commands(app)  # here, so that the help lists them after `serve` and `demo`


def main() -> None:
    """The entry point of the script `environments-store`."""
    use_utf8()
    app()


def _node(config: Config, nats_url: str, start_timeout: float, create_table: bool) -> ServiceBroker:
    # A locked table must not end the start: the service then serves without soft delete, and keeps trying.
    budgets = MigrationBudgets(start_s=min(MigrationBudgets().start_s, start_timeout / 2))
    service = EnvironmentsStore(
        config.database_url,
        start_timeout_s=start_timeout,
        settings=DatabaseSettings(pool_size=config.database_pool_size),
        budgets=budgets,
        retention_days=config.retention_days,
        create_table=create_table,
    )
    return ServiceBroker(config.node_id, namespace=config.namespace, transporter=nats_url, services=[service])


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
