"""The commands of `broker`, each an async function of its options."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from typing import Annotated, Any, Literal, NoReturn

import anyio
import typer
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from broker.broker import ServiceBroker
from broker.cli.cluster import Cluster, Visit, check_is_offered, known_nodes, on_cluster, unknown_node
from broker.cli.files import STANDARD, holds_values, read_bytes, read_values, size_of, write
from broker.cli.output import (
    is_person,
    make_table,
    print_json,
    print_note,
    print_rows,
    print_text,
    print_value,
    reader_is_gone,
)
from broker.cli.running import serve, until_signal
from broker.cli.targets import load_services
from broker.cli.values import check_input_is_read_once, read_object, read_params
from broker.context import ABSENT, Context
from broker.defaults import CLI_KNOWN_WAIT_S, CLI_WAIT_S, START_TIMEOUT_S
from broker.errors import MoleculerClientError, ServiceSchemaError
from broker.ids import new_id
from broker.logs import LogFormat, LogLevel, configure_logs, encode, timestamp
from broker.services.decorators import event
from broker.services.service import Service

Row = dict[str, Any]

Documents = Annotated[
    list[str] | None, typer.Argument(metavar="JSON|@FILE|-", help="JSON, a file of it, or - for standard input.")
]
Pairs = Annotated[
    list[str] | None, typer.Option("--param", "-p", help="key=value or key=@FILE, the value JSON or text; repeatable.")
]
Meta = Annotated[str | None, typer.Option(help="Meta as a JSON object, or @FILE.")]
Everything = Annotated[bool, typer.Option("--all", help="Include internal ones, such as $node.")]

logger = logging.getLogger("broker")


@on_cluster
async def run(
    cluster: Cluster,
    targets: Annotated[list[str], typer.Argument(help="A module or file.py, either with :Class, or a folder.")],
    node_id: Annotated[str | None, typer.Option(envvar=["NODE_ID", "BROKER_NODE_ID"], help="This node's id.")] = None,
    start_timeout: Annotated[float, typer.Option(min=0, help="Seconds that the start may take.")] = START_TIMEOUT_S,
    log_level: Annotated[LogLevel, typer.Option(envvar="LOG_LEVEL", case_sensitive=False)] = "info",
    log_format: Annotated[LogFormat, typer.Option(envvar="LOG_FORMAT")] = "text",
) -> int:
    """Run services as a node until SIGTERM or SIGINT."""
    configure_logs(log_level, log_format)
    try:
        services = load_services(targets)
    except ServiceSchemaError as error:
        if error.__cause__ is None:
            raise
        logger.error("%s", error, exc_info=error.__cause__)  # with the place in the user's code
        return 1
    return await serve(cluster.make_broker(node_id, services), start_timeout)


# Calls


@on_cluster
async def call(
    visit: Visit,
    action: Annotated[str, typer.Argument(help="The full name, as in environments-store.list.")],
    params: Documents = None,
    pairs: Pairs = None,
    meta: Meta = None,
    node: Annotated[str | None, typer.Option(help="Call this node.")] = None,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for the answer; 0 for no limit.")] = CLI_WAIT_S,
    stream_in: Annotated[str | None, typer.Option(metavar="FILE", help="Send a file, or - for standard input.")] = None,
    stream_out: Annotated[str, typer.Option(metavar="FILE", help="Where to write a stream that is the answer.")] = "-",
    values: Annotated[bool, typer.Option("--values", help="Send JSON values, one a line, as in .ndjson.")] = False,
) -> None:
    """Call an action and print its result. A stream of values is printed as JSON, one a line."""
    check_input_is_read_once(pairs, *(params or ()), meta, stream_in)
    given, given_meta = read_params(params, pairs), read_object(meta, "--meta")
    async with visit.broker(node=node) as broker:
        check_is_offered(broker, action, node)
        stream = None
        with _transfer("Sending", size_of(stream_in), hidden=stream_in is None) as sent:
            if stream_in is not None:
                stream = (read_values if values or holds_values(stream_in) else read_bytes)(stream_in, sent)
            result = await broker.call(action, given, meta=given_meta, node_id=node, timeout=timeout, stream=stream)
        await _show(result, stream_out, json=visit.json)


async def _show(result: Any, file: str, *, json: bool) -> None:
    if hasattr(result, "__aiter__"):
        async with result:
            with _transfer("Receiving", hidden=file == STANDARD and is_person()) as received:
                await write(result, file, received)
        return
    print_value(result, json=json)
    if file != STANDARD:
        raise MoleculerClientError("The answer is not a stream: no file was written.", 400, "NO_STREAM")


@contextmanager
def _transfer(description: str, total: int | None = None, *, hidden: bool = False) -> Iterator[Callable[[int], None]]:
    """A function that takes the number of bytes moved, and shows a person the progress on standard error."""
    console = Console(stderr=True)
    if hidden or not console.is_terminal or console.is_dumb_terminal:
        yield lambda _bytes: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as shown:
        task = shown.add_task(description, total=total)
        yield lambda moved: shown.update(task, advance=moved)


# Events


def _sender(how: Literal["emit", "broadcast"], explanation: str) -> Callable[..., None]:
    async def command(
        visit: Visit,
        name: Annotated[str, typer.Argument(metavar="EVENT", help="The event's name, as in user.created.")],
        payload: Documents = None,
        pairs: Pairs = None,
        groups: Annotated[list[str] | None, typer.Option("--group", help="Only this group; repeatable.")] = None,
        meta: Meta = None,
    ) -> None:
        check_input_is_read_once(pairs, *(payload or ()), meta)
        data, given_meta = read_params(payload, pairs), read_object(meta, "--meta")
        async with visit.broker() as broker:
            rows = _listeners(broker, name, groups)
            send = broker.emit if how == "emit" else broker.broadcast
            await send(name, None if data is ABSENT else data, groups=groups, meta=given_meta)
            if not rows:
                print_note(f"No node listens to {name!r}.")
            print_rows(rows, ["group", "nodes"], json=visit.json)

    command.__name__, command.__doc__ = how, explanation
    return on_cluster(command)


emit = _sender("emit", "Send an event to one node of each group that listens; print the groups.")
broadcast = _sender("broadcast", "Send an event to every node that listens; print the groups and their nodes.")


@on_cluster
async def listen(
    visit: Visit,
    pattern: Annotated[str, typer.Argument(help="Names of events; * stands for one part of a name, ** for several.")],
    count: Annotated[int, typer.Option(min=0, help="Stop after this many events; 0 for no limit.")] = 0,
) -> None:
    """Print events as they happen, one a line, until Ctrl-C, SIGTERM, or the first event after the reader of the output
    has gone. Other listeners receive their events all the same."""
    enough = anyio.Event()
    listener = _listener(pattern, count, enough, json=visit.json or not is_person())
    with until_signal():
        async with visit.broker(services=[listener]) as broker:
            # A node that answers has received before that there is a listener.
            await asyncio.gather(*(broker.ping(node_id, CLI_KNOWN_WAIT_S) for node_id in known_nodes(broker)))
            print_note(f"Listening to {pattern!r}; Ctrl-C ends it.")
            await enough.wait()


def _listener(pattern: str, count: int, enough: anyio.Event, *, json: bool) -> Service:
    """A service that prints events. It has a group of its own, so that it takes no emitted event from others."""
    group = f"$listen-{new_id()[:8]}"
    seen = 0

    class Listener(Service):
        name = group

        @event(pattern, group=group)
        async def on_event(self, ctx: Context) -> None:
            nonlocal seen
            if enough.is_set():
                return
            seen += 1
            try:
                _print_event(ctx, json=json)
            except BrokenPipeError:
                reader_is_gone()
                enough.set()
            if seen == count:
                enough.set()

    return Listener()


def _print_event(ctx: Context, *, json: bool) -> None:
    if json:
        facts = {"time": timestamp(time.time()), "name": ctx.event, "sender": ctx.node_id, "payload": ctx.params}
        print_json(facts, flush=True)
    else:
        clock = datetime.now().isoformat(timespec="milliseconds").partition("T")[2]
        print_text(f"{clock}  {ctx.event}  {ctx.node_id}  {encode(ctx.params).decode()}")


def _listeners(broker: ServiceBroker, name: str, groups: list[str] | None) -> list[dict[str, Any]]:
    """The groups that receive an event, with their nodes."""
    nodes: dict[str, dict[str, None]] = {}
    for known in broker.registry.find_listeners(name, groups or ()):
        for member in known.members:
            nodes.setdefault(member.group, {})[member.node_id] = None
    return [{"group": group, "nodes": list(nodes[group])} for group in sorted(nodes)]


# Lists


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
        print_rows(rows, ["id", "client", "protocol", "hostname", "services", "cpu", "available"], json=visit.json)


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
        ids = [node] if node else sorted(known)
        pongs = await asyncio.gather(*(broker.ping(node_id, timeout) for node_id in ids))
        rows = [
            {"node": node_id, **{key: pong and pong[key] for key in ("elapsedTime", "timeDiff")}, "alive": bool(pong)}
            for node_id, pong in zip(ids, pongs, strict=True)
        ]
        print_rows(rows, ["node", "elapsedTime", "timeDiff", "alive"], json=visit.json)
        return 0 if all(pongs) else 1


SERVICE_COLUMNS = ["name", "version", "actions", "nodes"]


@on_cluster
async def services(
    visit: Visit,
    watch: Annotated[bool, typer.Option("--watch", help="Go on, and show changes as they happen.")] = False,
    everything: Everything = False,
) -> None:
    """List the services of the cluster. With --watch and piped, one JSON object for each change, a line each."""
    json = visit.json or not is_person()
    with until_signal() if watch else nullcontext():
        async with visit.broker() as broker:
            if watch:
                await _watch(broker, everything=everything, json=json)
            rows = _services(broker, everything=everything)
            print_rows(rows if json else _counted(rows), SERVICE_COLUMNS, json=json)


@on_cluster
async def actions(visit: Visit, everything: Everything = False) -> None:
    """List the actions of the cluster with their parameters."""
    async with visit.broker() as broker:
        rows = []
        for name, known in sorted(broker.registry.actions.items()):
            endpoints = [endpoint for endpoint in known.members if not endpoint.local]
            if endpoints and (everything or not name.startswith("$")):
                params = endpoints[0].info.get("params")
                row = {"name": name, "nodes": [endpoint.node_id for endpoint in endpoints]}
                rows.append({**row, "params": params if isinstance(params, dict) else {}})
        print_rows(rows, ["name", "nodes", "params"], json=visit.json)


async def _watch(broker: ServiceBroker, *, everything: bool, json: bool) -> NoReturn:
    known: dict[str, Row] = {}
    with nullcontext() if json else Live(console=Console(), auto_refresh=False) as live:
        while True:
            rows = _services(broker, everything=everything)
            now = {row["name"]: row for row in rows}
            if live is not None:
                live.update(make_table(_counted(rows), SERVICE_COLUMNS), refresh=True)
            for change in _changes(known, now) if live is None else ():
                print_json({"time": timestamp(time.time()), **change}, flush=True)
            known = now
            await broker.registry_changed()


def _changes(before: dict[str, Row], now: dict[str, Row]) -> Iterator[Row]:
    for name in sorted(before.keys() | now.keys()):
        row = now.get(name)
        if row is None:
            yield {"change": "removed", **before[name], "nodes": []}
        elif row != before.get(name):
            yield {"change": "changed" if name in before else "added", **row}


def _services(broker: ServiceBroker, *, everything: bool) -> list[Row]:
    found: dict[str, Row] = {}
    for node in broker.registry.nodes.values():
        for service in node.services if node.available and not node.local else ():
            name = service["fullName"]
            if everything or not name.startswith("$"):
                row = found.setdefault(name, {"name": name, "nodes": [], "actions": []})
                row["nodes"].append(node.id)
                offered = service.get("actions")
                row["actions"] = sorted(offered) if isinstance(offered, dict) else []
                row["version"] = service.get("version")
    return [found[name] for name in sorted(found)]


def _counted(rows: list[Row]) -> list[Row]:
    """Rows for a table: the names of actions have a command of their own."""
    return [{**row, "actions": len(row["actions"])} for row in rows]
