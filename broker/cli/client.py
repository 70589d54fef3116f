"""Commands that look at a cluster, and do something there."""

import difflib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import typer

from broker.broker import ServiceBroker
from broker.cli.output import print_error, print_note, reader_is_gone
from broker.cli.running import run
from broker.defaults import CLI_CONNECT_TIMEOUT_S
from broker.errors import BrokerOptionsError, MoleculerError
from broker.logs import LogFormat, configure_logs, encode
from broker.options import default_node_id
from broker.services.service import Service

Work = Callable[[ServiceBroker], Awaitable[None]]


def with_broker(
    work: Work,
    nats: str,
    namespace: str,
    protocol: str | None,
    *,
    services: Sequence[Service] = (),
    node: str | None = None,
    until_stopped: bool = False,
) -> None:
    """Find the nodes, or that `node` alone; then work. No node learns of it, unless there are `services`.

    An error becomes one line with its type and data, and exit code 1.

    `until_stopped`: Ctrl-C, SIGTERM, and a reader that goes away are the ways to end such work, so it leaves in order,
    with exit code 0.
    """
    logs("warning", "text")
    with misuse():
        broker = ServiceBroker(
            default_node_id(),  # that of the environment may be of a node that runs
            namespace=namespace,
            transporter=nats,
            protocol=protocol,
            services=services,
            internal_services=False,
            visitor=True,
        )

    async def main() -> int:
        async with _connected(broker):
            try:
                await broker.discover(node)
                await work(broker)
            except MoleculerError as error:
                _print_failure(error)
                return 1
            except typer.Exit as leave:
                return leave.exit_code
        return 0

    raise typer.Exit(run(lambda: _until_signal(main) if until_stopped else main()))


async def ping_all(broker: ServiceBroker, node_ids: Iterable[str], timeout: float) -> dict[str, dict[str, Any] | None]:
    """The answer of each node to a ping, None for one that does not come in time; all at once."""
    pongs: dict[str, dict[str, Any] | None] = {}

    async def ping(node_id: str) -> None:
        pongs[node_id] = await broker.ping(node_id, timeout)

    async with anyio.create_task_group() as tasks:
        for node_id in node_ids:
            tasks.start_soon(ping, node_id)
    return pongs


def known_nodes(broker: ServiceBroker) -> set[str]:
    """The nodes that are there, and those that another one knows and that have not answered."""
    return {node.id for node in broker.registry.nodes.values() if not node.local} | broker.peers.named.keys()


def unknown_node(broker: ServiceBroker, node_id: str) -> MoleculerError:
    """The error for a node that was looked for and is not there, or that did not answer."""
    if node_id in broker.peers.named:
        message = f"The node '{node_id}' did not say what it offers: it is frozen or busy."
        return MoleculerError(message, 504, "NODE_NOT_RESPONDING", {"nodeID": node_id})
    message = f"There is no node '{node_id}'.{did_you_mean(node_id, known_nodes(broker) | broker.peers.listed)}"
    return MoleculerError(message, 404, "NODE_NOT_FOUND", {"nodeID": node_id})


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence with the names that may have been meant; empty when there are no such names."""
    alike = difflib.get_close_matches(name, known)
    return f" Did you mean {' or '.join(alike)}?" if alike else ""


def logs(level: str, format: LogFormat) -> None:
    """Configure the logs. Raises typer.BadParameter."""
    try:
        configure_logs(level, format)
    except ValueError:
        raise typer.BadParameter(f"The log level {level!r} is not one of debug, info, warning, error.") from None


@contextmanager
def misuse() -> Iterator[None]:
    """Options that no broker takes are a misuse of the command, whether they are flags or in the environment."""
    try:
        yield
    except BrokerOptionsError as error:
        raise typer.BadParameter(error.message) from None


@asynccontextmanager
async def _connected(broker: ServiceBroker) -> AsyncIterator[None]:
    try:
        with anyio.fail_after(CLI_CONNECT_TIMEOUT_S):
            await broker.start()
    except TimeoutError:
        raise MoleculerError(
            f"No connection to a NATS server within {CLI_CONNECT_TIMEOUT_S:g} s; the lines above say why."
        ) from None
    try:
        yield
    finally:
        await broker.stop()


async def _until_signal(main: Callable[[], Awaitable[int]]) -> int:
    code = 0
    failure: MoleculerError | OSError | None = None
    async with anyio.create_task_group() as tasks:

        async def stop(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                task_status.started()
                async for _ in signals:
                    tasks.cancel_scope.cancel()

        await tasks.start(stop)
        try:
            code = await main()
        except BrokenPipeError:
            reader_is_gone()
        except (MoleculerError, OSError) as error:  # raised below: a task group would wrap it
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return code


def _print_failure(error: MoleculerError) -> None:
    where = f" (node {error.node_id})" if error.node_id else ""
    print_error(f"{error.name} {error.code} {error.type or ''}: {error.message}{where}")
    if error.data:
        print_note(encode(error.data).decode())
