"""Send events, and listen to them."""

import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

import anyio
import typer

from broker.broker import ServiceBroker
from broker.cli import options
from broker.cli.client import known_nodes, ping_all, with_broker
from broker.cli.output import is_person, print_json, print_note, print_rows, print_text, reader_is_gone
from broker.cli.values import check_input_is_read_once, read_object, read_params
from broker.context import ABSENT, Context
from broker.defaults import CLI_KNOWN_WAIT_S
from broker.ids import new_id
from broker.logs import encode
from broker.services.service import Service, event

Name = Annotated[str, typer.Argument(metavar="EVENT", help="The event's name, as in user.created.")]
Payload = Annotated[
    str | None,
    typer.Argument(metavar="JSON|@FILE|-", help="The payload: JSON, a file of it, or - for standard input."),
]


def _sender(how: Literal["emit", "broadcast"], explanation: str) -> Callable[..., None]:
    def command(
        name: Name,
        payload: Payload = None,
        pairs: options.Pairs = None,
        groups: Annotated[list[str] | None, typer.Option("--group", help="Only this group; repeatable.")] = None,
        meta: options.Meta = None,
        nats: options.NatsUrl = options.DEFAULT_NATS,
        namespace: options.Namespace = "",
        protocol: options.ProtocolVersion = None,
        as_json: options.AsJson = False,
    ) -> None:
        data, given_meta = _read(payload, pairs, meta)

        async def work(broker: ServiceBroker) -> None:
            rows = _listeners(broker, name, groups)
            await getattr(broker, how)(name, data, groups=groups, meta=given_meta)
            if not rows:
                print_note(f"No node listens to {name!r}.")
            print_rows(rows, ["group", "nodes"], json=as_json)

        with_broker(work, nats, namespace, protocol)

    command.__name__, command.__doc__ = how, explanation
    return command


emit = _sender("emit", "Send an event to one node of each group that listens; print the groups.")
broadcast = _sender("broadcast", "Send an event to every node that listens; print the groups and their nodes.")


def listen(
    pattern: Annotated[str, typer.Argument(help="Names of events; * stands for one part of a name, ** for several.")],
    count: Annotated[int, typer.Option(min=0, help="Stop after this many events; 0 for never.")] = 0,
    nats: options.NatsUrl = options.DEFAULT_NATS,
    namespace: options.Namespace = "",
    protocol: options.ProtocolVersion = None,
    as_json: options.AsJson = False,
) -> None:
    """Print events as they happen, one a line, until Ctrl-C, SIGTERM, or the first event after the reader of the output
    has gone. Takes no event away from other listeners."""
    enough = anyio.Event()
    listener = _listener(pattern, count, enough, json=as_json or not is_person())

    async def work(broker: ServiceBroker) -> None:
        # A node that answers has read before that there is a listener.
        await ping_all(broker, known_nodes(broker), CLI_KNOWN_WAIT_S)
        print_note(f"Listening to {pattern!r}; Ctrl-C ends it.")
        await enough.wait()

    with_broker(work, nats, namespace, protocol, services=[listener], until_stopped=True)


def _listener(pattern: str, count: int, enough: anyio.Event, *, json: bool) -> Service:
    """A service that prints. Its group is its own, so that emitted events come here besides, not instead."""
    seen = 0

    async def on_event(_service: Service, ctx: Context) -> None:
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

    name = f"$listen-{new_id()[:8]}"
    kind = type("Listener", (Service,), {"name": name, "on_event": event(pattern, group=name)(on_event)})
    listener: Service = kind()
    return listener


def _print_event(ctx: Context, *, json: bool) -> None:
    moment = time.time()
    milliseconds = int(moment * 1000) % 1000
    if json:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + f".{milliseconds:03d}Z"
        print_json({"time": stamp, "name": ctx.event, "sender": ctx.node_id, "payload": ctx.params}, flush=True)
        return
    clock = time.strftime("%H:%M:%S", time.localtime(moment))
    print_text(f"{clock}.{milliseconds:03d}  {ctx.event}  {ctx.node_id}  {encode(ctx.params).decode()}")


def _read(payload: str | None, pairs: list[str] | None, meta: str | None) -> tuple[Any, dict[str, Any] | None]:
    check_input_is_read_once(pairs, payload, meta)
    data = read_params(payload, pairs)
    return None if data is ABSENT else data, read_object(meta, "--meta")


def _listeners(broker: ServiceBroker, name: str, groups: list[str] | None) -> list[dict[str, Any]]:
    """The groups that an event is for, with the nodes that listen in each."""
    nodes: dict[str, list[str]] = {}
    for choices in broker.registry.find_listeners(name, groups or ()):
        for member in choices.members:
            known = nodes.setdefault(member.group, [])
            if member.node_id not in known:
                known.append(member.node_id)
    return [{"group": group, "nodes": nodes[group]} for group in sorted(nodes)]
