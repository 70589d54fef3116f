"""Run a node, and measure the way to others."""

import logging
from typing import Annotated

import typer

from broker.broker import ServiceBroker
from broker.cli import options
from broker.cli.client import known_nodes, logs, misuse, ping_all, unknown_node, with_broker
from broker.cli.output import print_rows
from broker.cli.running import run, serve
from broker.cli.targets import load_services
from broker.defaults import START_TIMEOUT_S
from broker.errors import ServiceSchemaError

logger = logging.getLogger("broker")


def run_services(
    targets: Annotated[
        list[str], typer.Argument(help="module, module:Class, file.py, file.py:Class, or a folder with those below it.")
    ],
    nats: options.NatsUrl = options.DEFAULT_NATS,
    namespace: options.Namespace = "",
    node_id: options.NodeId = None,
    protocol: options.ProtocolVersion = None,
    start_timeout: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for NATS and the services.")
    ] = START_TIMEOUT_S,
    log_level: options.LogLevel = "info",
    log_format: options.Format = "text",
) -> None:
    """Run services as a node until SIGTERM or SIGINT."""
    logs(log_level, log_format)

    async def main() -> int:
        try:
            services = load_services(targets)
        except ServiceSchemaError as error:
            if error.__cause__ is None:
                raise
            logger.error("%s", error, exc_info=error.__cause__)  # where in the user's code, for whoever writes it
            return 1
        with misuse():
            broker = ServiceBroker(node_id, namespace=namespace, transporter=nats, protocol=protocol, services=services)
        return await serve(broker, start_timeout)

    raise typer.Exit(run(main))


def ping(
    node: Annotated[str | None, typer.Argument(help="A node's id; all nodes when not given.")] = None,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for each answer.")] = 2.0,
    nats: options.NatsUrl = options.DEFAULT_NATS,
    namespace: options.Namespace = "",
    protocol: options.ProtocolVersion = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure the way to one node or to all, in milliseconds. Exit code 1 when one does not answer."""

    async def work(broker: ServiceBroker) -> None:
        known = known_nodes(broker)
        if node is not None and node not in known:
            raise unknown_node(broker, node)
        rows = []
        for node_id, pong in sorted((await ping_all(broker, [node] if node else known, timeout)).items()):
            rows.append({"node": node_id, "elapsedTime": None, "timeDiff": None, "alive": False})
            if pong is not None:
                rows[-1] |= {"elapsedTime": pong["elapsedTime"], "timeDiff": pong["timeDiff"], "alive": True}
        print_rows(rows, ["node", "elapsedTime", "timeDiff", "alive"], json=as_json)
        if not all(row["alive"] for row in rows):
            raise typer.Exit(1)

    with_broker(work, nats, namespace, protocol, node=node)
