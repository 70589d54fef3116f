"""Call an action, with streams in and out."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from broker.broker import ServiceBroker
from broker.cli.cluster import Visit, did_you_mean, on_cluster, unknown_node
from broker.cli.files import STANDARD, holds_values, read_bytes, read_values, size_of, write
from broker.cli.output import is_person, print_value
from broker.cli.values import Meta, Pairs, check_input_is_read_once, read_object, read_params
from broker.defaults import CLI_WAIT_S
from broker.errors import MoleculerClientError, ServiceNotFoundError


@on_cluster
async def call(
    visit: Visit,
    action: Annotated[str, typer.Argument(help="The full name, as in environments-store.list.")],
    params: Annotated[
        str | None,
        typer.Argument(metavar="JSON|@FILE|-", help="The parameters: JSON, a file of it, or - for standard input."),
    ] = None,
    pairs: Pairs = None,
    meta: Meta = None,
    node: Annotated[str | None, typer.Option(help="Call this node.")] = None,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for the answer; 0 for no limit.")] = CLI_WAIT_S,
    stream_in: Annotated[
        str | None, typer.Option("--stream-in", metavar="FILE", help="Send a file along, - for standard input.")
    ] = None,
    stream_out: Annotated[
        str, typer.Option("--stream-out", metavar="FILE", help="Where to write the answer when it is a stream.")
    ] = STANDARD,
    values: Annotated[
        bool, typer.Option("--values", help="The file to send holds JSON values, one a line, as .ndjson files do.")
    ] = False,
) -> None:
    """Call an action and print its result. A stream of values is printed as JSON, one a line."""
    check_input_is_read_once(pairs, params, meta, stream_in)
    given, given_meta = read_params(params, pairs), read_object(meta, "--meta")
    async with visit.broker(node=node) as broker:
        _check_is_offered(broker, action, node)
        with ExitStack() as shown:
            stream = None
            if stream_in is not None:
                sent = shown.enter_context(_transfer("Sending", size_of(stream_in)))
                read = read_values if values or holds_values(stream_in) else read_bytes
                stream = read(stream_in, sent)
            result = await broker.call(action, given, meta=given_meta, node_id=node, timeout=timeout, stream=stream)
        await _show(result, stream_out, json=visit.json)


def _check_is_offered(broker: ServiceBroker, action: str, node_id: str | None) -> None:
    """Raises an error that suggests similar names: all nodes that were found have said what they offer."""
    if node_id is not None and node_id not in broker.registry.nodes:
        raise unknown_node(broker, node_id)
    offered = {name for name, known in broker.registry.actions.items() if known.members}
    if action in offered:
        return
    error = ServiceNotFoundError({"action": action, "nodeID": node_id} if node_id else {"action": action})
    error.message += did_you_mean(action, offered)
    if broker.peers.named:
        error.message += f" These nodes did not say what they offer: {', '.join(sorted(broker.peers.named))}."
    raise error


async def _show(result: Any, file: str, *, json: bool) -> None:
    if hasattr(result, "__aiter__"):
        async with result:
            with _transfer("Receiving", hidden=file == STANDARD and is_person()) as received:
                await write(result, file, received)
        return
    print_value(result, json=json)
    if file != STANDARD:
        raise MoleculerClientError(
            "The answer is not a stream; it was printed, and no file was written.", 400, "NO_STREAM"
        )


@contextmanager
def _transfer(description: str, total: int | None = None, *, hidden: bool = False) -> Iterator[Callable[[int], None]]:
    """A function that takes the number of bytes moved, and shows the progress to a person on standard error until the
    end. `hidden` when the terminal shows the bytes themselves."""
    console = Console(stderr=True)
    if hidden or not console.is_terminal or console.is_dumb_terminal:
        yield lambda _bytes: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as shown:
        task = shown.add_task(description, total=total)
        yield lambda moved: shown.update(task, advance=moved)
