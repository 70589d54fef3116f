"""Commands that join a cluster, do something there, and leave."""

import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import anyio
import typer

from broker.broker import ServiceBroker
from broker.cli.logs import LogFormat, configure_logs
from broker.cli.output import encode, print_error, print_note, reader_is_gone
from broker.cli.running import run
from broker.defaults import CLI_CONNECT_TIMEOUT_S
from broker.errors import BrokerOptionsError, MoleculerError
from broker.service import Service

Work = Callable[[ServiceBroker], Awaitable[None]]


def with_broker(
    work: Work,
    nats: str,
    namespace: str,
    protocol: str | None,
    *,
    services: Sequence[Service] = (),
    until_stopped: bool = False,
) -> None:
    """Join, work, leave. An error becomes one line with its type and data, and exit code 1.

    `until_stopped`: Ctrl-C, SIGTERM, and a reader that goes away are the ways to end such work, so it leaves in order,
    with exit code 0.
    """
    logs("warning", "text")
    with misuse():
        broker = ServiceBroker(
            namespace=namespace, transporter=nats, protocol=protocol, services=services, internal_services=False
        )

    async def main() -> int:
        async with _connected(broker):
            try:
                await work(broker)
            except MoleculerError as error:
                _print_failure(error)
                return 1
            except typer.Exit as leave:
                return leave.exit_code
        return 0

    raise typer.Exit(run(lambda: _until_signal(main) if until_stopped else main()))


async def wait_for_action(broker: ServiceBroker, action: str) -> None:
    """Give nodes of the other protocol version, found later, their time; then the call says what is missing."""
    with anyio.move_on_after(CLI_CONNECT_TIMEOUT_S):
        while action not in broker.registry.actions:
            await broker.registry_changed()


def logs(level: str, format: LogFormat) -> None:
    """Configure the logs. Raises typer.BadParameter."""
    try:
        configure_logs(level, format)
    except ValueError:
        raise typer.BadParameter(f"The log level {level!r} is none of debug, info, warning, error.") from None


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
