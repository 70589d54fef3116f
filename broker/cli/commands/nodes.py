"""Run a node, list nodes, and measure the way to them."""

import logging
from typing import Annotated, Any

import typer

from broker.cli.cluster import Cluster, Visit, known_nodes, on_cluster, ping_all, unknown_node
from broker.cli.output import print_rows
from broker.cli.running import serve
from broker.cli.targets import load_services
from broker.defaults import START_TIMEOUT_S
from broker.errors import ServiceSchemaError
from broker.logs import LogFormat, configure_logs

logger = logging.getLogger("broker")


@on_cluster
async def run(
    cluster: Cluster,
    targets: Annotated[
        list[str], typer.Argument(help="module, module:Class, file.py, file.py:Class, or a folder with its subfolders.")
    ],
    node_id: Annotated[
        str | None, typer.Option(envvar=["NODE_ID", "BROKER_NODE_ID"], help="This node's id; made when not given.")
    ] = None,
    start_timeout: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for NATS and the services.")
    ] = START_TIMEOUT_S,
    log_level: Annotated[str, typer.Option(envvar="LOG_LEVEL", help="debug, info, warning or error.")] = "info",
    log_format: Annotated[LogFormat, typer.Option(envvar="LOG_FORMAT", help="text or json.")] = "text",
) -> int:
    """Run services as a node until SIGTERM or SIGINT."""
    try:
        configure_logs(log_level, log_format)
    except ValueError:
        raise typer.BadParameter(f"The log level {log_level!r} is not one of debug, info, warning, error.") from None
    try:
        services = load_services(targets)
    except ServiceSchemaError as error:
        if error.__cause__ is None:
            raise
        logger.error("%s", error, exc_info=error.__cause__)  # with the place in the user's code
        return 1
    return await serve(cluster.make_broker(node_id, services), start_timeout)


@on_cluster
async def nodes(visit: Visit) -> None:
    """List the nodes of the cluster."""
    async with visit.broker() as broker:
        rows: list[dict[str, Any]] = [
            {
                "id": node.id,
                "client": f"{node.client.get('type', '?')} {node.client.get('version', '?')}",
                "protocol": node.ver,
                "hostname": node.hostname,
                "services": [name for service in node.services if not (name := service["fullName"]).startswith("$")],
                "cpu": node.cpu,
                "available": node.available,
            }
            for node in broker.registry.nodes.values()
            if not node.local
        ]
        # Another node knows these, and they have not answered.
        rows += [{"id": name, "protocol": ver, "available": False} for name, ver in broker.peers.named.items()]
        rows.sort(key=lambda row: row["id"])
        columns = ["id", "client", "protocol", "hostname", "services", "cpu", "available"]
        print_rows(rows, columns, json=visit.json)


@on_cluster
async def ping(
    visit: Visit,
    node: Annotated[str | None, typer.Argument(help="A node's id; all nodes when not given.")] = None,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for each answer.")] = 2.0,
) -> int:
    """Measure the way to one node or to all, in milliseconds. Exit code 1 when one does not answer."""
    async with visit.broker(node=node) as broker:
        known = known_nodes(broker)
        if node is not None and node not in known:
            raise unknown_node(broker, node)
        pongs = await ping_all(broker, [node] if node else known, timeout)
        rows = [
            {"node": node_id, **{key: pong and pong[key] for key in ("elapsedTime", "timeDiff")}, "alive": bool(pong)}
            for node_id, pong in pongs.items()
        ]
        print_rows(rows, ["node", "elapsedTime", "timeDiff", "alive"], json=visit.json)
        return 0 if all(pongs.values()) else 1
