"""The command `broker`: run services, and talk to a cluster from the shell."""

import sys
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import anyio
import msgspec
import typer

from broker.broker import ServiceBroker
from broker.cli.logs import LogFormat, configure_logs
from broker.cli.output import is_person, print_error, print_rows, print_value
from broker.cli.running import run, serve
from broker.cli.targets import load_services
from broker.context import ABSENT
from broker.defaults import CLI_CONNECT_TIMEOUT_S, CLI_WAIT_S, START_TIMEOUT_S
from broker.errors import MoleculerError

app = typer.Typer(
    help="Run Moleculer services, and talk to a cluster from the shell.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

NatsUrl = Annotated[str, typer.Option("--nats-url", envvar="NATS_URL", help="NATS servers, separated by commas.")]
Namespace = Annotated[str, typer.Option(envvar="NAMESPACE", help="The cluster's namespace.")]
NodeId = Annotated[str | None, typer.Option("--node-id", envvar="NODE_ID", help="This node's id; made when not given.")]
ProtocolVersion = Annotated[
    str | None,
    typer.Option("--protocol", envvar="BROKER_PROTOCOL", help="4 or 5: speak with Moleculer 0.14 or 0.15 alone."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, also on a terminal.")]
Everything = Annotated[bool, typer.Option("--all", help="Internal ones too, such as $node.")]
LogLevel = Annotated[str, typer.Option("--log-level", envvar="LOG_LEVEL", help="debug, info, warning or error.")]
Format = Annotated[LogFormat, typer.Option("--log-format", envvar="LOG_FORMAT", help="text or json.")]

DEFAULT_NATS = "nats://127.0.0.1:4222"


@app.command("run")
def run_services(
    targets: Annotated[list[str], typer.Argument(help="module, module:Class, file.py, file.py:Class or a folder")],
    nats: NatsUrl = DEFAULT_NATS,
    namespace: Namespace = "",
    node_id: NodeId = None,
    protocol: ProtocolVersion = None,
    start_timeout: Annotated[float, typer.Option(help="Seconds to wait for NATS and the services.")] = START_TIMEOUT_S,
    log_level: LogLevel = "info",
    log_format: Format = "text",
) -> None:
    """Run services as a node until SIGTERM or SIGINT."""
    _configure_logs(log_level, log_format)

    async def main() -> int:
        services = load_services(targets)
        broker = ServiceBroker(node_id, namespace=namespace, transporter=nats, protocol=protocol, services=services)
        return await serve(broker, start_timeout)

    raise typer.Exit(run(main))


@app.command()
def call(
    action: Annotated[str, typer.Argument(help="The full name, as in environments-store.list.")],
    params: Annotated[str | None, typer.Argument(help="The parameters as JSON.")] = None,
    pairs: Annotated[
        list[str] | None, typer.Option("--param", "-p", help="key=value, the value JSON or else text; repeatable.")
    ] = None,
    meta: Annotated[str | None, typer.Option(help="Meta as a JSON object.")] = None,
    node: Annotated[str | None, typer.Option(help="Ask exactly this node.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer; 0 for ever.")] = CLI_WAIT_S,
    nats: NatsUrl = DEFAULT_NATS,
    namespace: Namespace = "",
    protocol: ProtocolVersion = None,
    as_json: AsJson = False,
) -> None:
    """Call an action and print its result."""
    given = _params(params, pairs or [])
    given_meta = _object(meta, "--meta") if meta else None

    async def work(broker: ServiceBroker) -> None:
        await _wait_for_action(broker, action)
        result = await broker.call(action, given, meta=given_meta, node_id=node, timeout=timeout)
        print_value(result, json=as_json)

    _with_broker(work, nats, namespace, protocol)


@app.command()
def nodes(
    nats: NatsUrl = DEFAULT_NATS, namespace: Namespace = "", protocol: ProtocolVersion = None, as_json: AsJson = False
) -> None:
    """List the nodes of the cluster."""

    async def work(broker: ServiceBroker) -> None:
        known = [node for node in broker.registry.nodes.values() if not node.local]
        rows = [
            {
                "id": node.id,
                "client": f"{node.client.get('type', '?')} {node.client.get('version', '?')}",
                "protocol": node.ver,
                "hostname": node.hostname,
                "services": [service["fullName"] for service in node.services if not _is_internal(service["fullName"])],
                "cpu": node.cpu,
                "available": node.available,
            }
            for node in sorted(known, key=lambda node: node.id)
        ]
        print_rows(rows, ["id", "client", "protocol", "hostname", "services", "cpu", "available"], json=as_json)

    _with_broker(work, nats, namespace, protocol)


@app.command()
def services(
    everything: Everything = False,
    nats: NatsUrl = DEFAULT_NATS,
    namespace: Namespace = "",
    protocol: ProtocolVersion = None,
    as_json: AsJson = False,
) -> None:
    """List the services of the cluster."""

    async def work(broker: ServiceBroker) -> None:
        found: dict[str, dict[str, Any]] = {}
        for node in broker.registry.nodes.values():
            for service in node.services if node.available and not node.local else ():
                if _is_internal(service["fullName"]) and not everything:
                    continue
                row = found.setdefault(service["fullName"], {"name": service["fullName"], "nodes": [], "actions": []})
                row["nodes"].append(node.id)
                actions = service.get("actions")
                row["actions"] = sorted(actions) if isinstance(actions, dict) else []
                row["version"] = service.get("version")
        rows = [found[name] for name in sorted(found)]
        table = [{**row, "actions": len(row["actions"])} for row in rows] if is_person() else rows
        print_rows(rows if as_json else table, ["name", "version", "actions", "nodes"], json=as_json)

    _with_broker(work, nats, namespace, protocol)


@app.command()
def actions(
    everything: Everything = False,
    nats: NatsUrl = DEFAULT_NATS,
    namespace: Namespace = "",
    protocol: ProtocolVersion = None,
    as_json: AsJson = False,
) -> None:
    """List the actions of the cluster with their parameters."""

    async def work(broker: ServiceBroker) -> None:
        rows = []
        for name, choices in sorted(broker.registry.actions.items()):
            endpoints = [endpoint for endpoint in choices.members if not endpoint.local]
            if endpoints and (everything or not _is_internal(name)):
                params = endpoints[0].info.get("params")
                rows.append(
                    {
                        "name": name,
                        "nodes": [endpoint.node_id for endpoint in endpoints],
                        "params": params if isinstance(params, dict) else {},
                    }
                )
        table = [{**row, "params": list(row["params"])} for row in rows] if is_person() else rows
        print_rows(rows if as_json else table, ["name", "nodes", "params"], json=as_json)

    _with_broker(work, nats, namespace, protocol)


@app.command()
def ping(
    node: Annotated[str | None, typer.Argument(help="A node's id; all nodes when not given.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for each answer.")] = 2.0,
    nats: NatsUrl = DEFAULT_NATS,
    namespace: Namespace = "",
    protocol: ProtocolVersion = None,
    as_json: AsJson = False,
) -> None:
    """Measure the way to one node or to all, in milliseconds. Exit code 1 when one does not answer."""

    async def work(broker: ServiceBroker) -> None:
        known = sorted(known.id for known in broker.registry.nodes.values() if not known.local)
        rows = []
        for node_id in [node] if node else known:
            pong = await broker.ping(node_id, timeout)
            rows.append({"node": node_id, "elapsedTime": None, "timeDiff": None, "alive": False})
            if pong is not None:
                rows[-1] |= {"elapsedTime": pong["elapsedTime"], "timeDiff": pong["timeDiff"], "alive": True}
        print_rows(rows, ["node", "elapsedTime", "timeDiff", "alive"], json=as_json)
        if not all(row["alive"] for row in rows):
            raise typer.Exit(1)

    _with_broker(work, nats, namespace, protocol)


def main() -> None:
    """The entry point of the script `broker`."""
    app()


@asynccontextmanager
async def _connected(nats: str, namespace: str, protocol: str | None) -> Any:
    broker = ServiceBroker(namespace=namespace, transporter=nats, protocol=protocol, internal_services=False)
    try:
        with anyio.fail_after(CLI_CONNECT_TIMEOUT_S):
            await broker.start()
    except TimeoutError:
        raise MoleculerError(f"There is no NATS server to connect to within {CLI_CONNECT_TIMEOUT_S:g} s.") from None
    try:
        yield broker
    finally:
        await broker.stop()


def _with_broker(
    work: Callable[[ServiceBroker], Awaitable[None]], nats: str, namespace: str, protocol: str | None
) -> None:
    """Join the cluster, do something, leave. An error becomes one line with its type and data, and exit code 1."""
    _configure_logs("warning", "text")

    async def main() -> int:
        async with _connected(nats, namespace, protocol) as broker:
            try:
                await work(broker)
            except MoleculerError as error:
                where = f" (node {error.node_id})" if error.node_id else ""
                print_error(f"{error.name} {error.code} {error.type or ''}: {error.message}{where}")
                if error.data:
                    print(msgspec.json.encode(error.data, enc_hook=str).decode(), file=sys.stderr)
                return 1
            except typer.Exit as leave:
                return leave.exit_code
        return 0

    raise typer.Exit(run(main))


async def _wait_for_action(broker: ServiceBroker, action: str) -> None:
    """Give nodes of the other protocol version, found later, their time; then the call says what is missing."""
    with anyio.move_on_after(CLI_CONNECT_TIMEOUT_S):
        while action not in broker.registry.actions:
            await broker.registry_changed()


def _is_internal(name: str) -> bool:
    """Every node has these, and hardly anybody looks for them."""
    return name.startswith("$")


def _params(text: str | None, pairs: list[str]) -> Any:
    if text is None and not pairs:
        return ABSENT
    params = _json(text, "The parameters") if text is not None else {}
    if pairs and not isinstance(params, dict):
        raise typer.BadParameter("-p adds to an object, and the parameters given are none.")
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise typer.BadParameter(f"-p takes key=value, not {pair!r}.")
        try:
            params[key] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            params[key] = value
    return params


def _object(text: str, what: str) -> dict[str, Any]:
    value = _json(text, what)
    if not isinstance(value, dict):
        raise typer.BadParameter(f"{what} must be a JSON object.")
    return value


def _json(text: str, what: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise typer.BadParameter(f"{what} must be JSON: {error}") from None


def _configure_logs(level: str, format: LogFormat) -> None:
    try:
        configure_logs(level, format)
    except ValueError:
        raise typer.BadParameter(f"The log level {level!r} is none of debug, info, warning, error.") from None


if __name__ == "__main__":
    main()
