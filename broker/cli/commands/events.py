"""Send events, and listen to them."""

import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

import anyio
import typer

from broker.broker import ServiceBroker
from broker.cli.cluster import Visit, known_nodes, on_cluster, ping_all, until_signal
from broker.cli.output import is_person, print_json, print_note, print_rows, print_text, reader_is_gone
from broker.cli.values import Meta, Pairs, check_input_is_read_once, read_object, read_params
from broker.context import ABSENT, Context
from broker.defaults import CLI_KNOWN_WAIT_S
from broker.ids import new_id
from broker.logs import encode
from broker.services.decorators import event
from broker.services.service import Service


def _sender(how: Literal["emit", "broadcast"], explanation: str) -> Callable[..., None]:
    async def command(
        visit: Visit,
        name: Annotated[str, typer.Argument(metavar="EVENT", help="The event's name, as in user.created.")],
        payload: Annotated[
            str | None,
            typer.Argument(metavar="JSON|@FILE|-", help="The payload: JSON, a file of it, or - for standard input."),
        ] = None,
        pairs: Pairs = None,
        groups: Annotated[list[str] | None, typer.Option("--group", help="Only this group; repeatable.")] = None,
        meta: Meta = None,
    ) -> None:
        check_input_is_read_once(pairs, payload, meta)
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
            await ping_all(broker, known_nodes(broker), CLI_KNOWN_WAIT_S)
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
    moment = time.time()
    milliseconds = int(moment * 1000) % 1000
    if json:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + f".{milliseconds:03d}Z"
        print_json({"time": stamp, "name": ctx.event, "sender": ctx.node_id, "payload": ctx.params}, flush=True)
    else:
        clock = time.strftime("%H:%M:%S", time.localtime(moment))
        print_text(f"{clock}.{milliseconds:03d}  {ctx.event}  {ctx.node_id}  {encode(ctx.params).decode()}")


def _listeners(broker: ServiceBroker, name: str, groups: list[str] | None) -> list[dict[str, Any]]:
    """The groups that receive an event, with their nodes."""
    nodes: dict[str, dict[str, None]] = {}
    for known in broker.registry.find_listeners(name, groups or ()):
        for member in known.members:
            nodes.setdefault(member.group, {})[member.node_id] = None
    return [{"group": group, "nodes": list(nodes[group])} for group in sorted(nodes)]
