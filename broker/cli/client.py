"""Commands that join a cluster, do something there, and leave."""

import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
import typer

from broker.broker import ServiceBroker
from broker.cli.logs import LogFormat, configure_logs
from broker.cli.output import print_error
from broker.cli.running import run
from broker.defaults import CLI_CONNECT_TIMEOUT_S
from broker.errors import MoleculerError
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

    `until_stopped`: Ctrl-C and SIGTERM are the way to end such work, so it leaves in order, with exit code 0.
    """
    logs("warning", "text")

    async def main() -> int:
        async with _connected(nats, namespace, protocol, services) as broker:
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


@asynccontextmanager
async def _connected(nats: str, namespace: str, protocol: str | None, services: Sequence[Service]) -> Any:
    broker = ServiceBroker(
        namespace=namespace, transporter=nats, protocol=protocol, services=services, internal_services=False
    )
    try:
        with anyio.fail_after(CLI_CONNECT_TIMEOUT_S):
            await broker.start()
    except TimeoutError:
        raise MoleculerError(
            f"No connection to a NATS server within {CLI_CONNECT_TIMEOUT_S:g} s; the lines above say why."
        ) from None
    try:
        yield broker
    finally:
        await broker.stop()


async def _until_signal(main: Callable[[], Awaitable[int]]) -> int:
    code = 0
    failure: MoleculerError | None = None
    async with anyio.create_task_group() as tasks:

        async def stop(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                task_status.started()
                async for _ in signals:
                    tasks.cancel_scope.cancel()

        await tasks.start(stop)
        try:
            code = await main()
        except MoleculerError as error:  # raised below: a task group would wrap it
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return code


def _print_failure(error: MoleculerError) -> None:
    where = f" (node {error.node_id})" if error.node_id else ""
    print_error(f"{error.name} {error.code} {error.type or ''}: {error.message}{where}")
    if error.data:
        sys.stderr.write(msgspec.json.encode(error.data, enc_hook=str).decode() + "\n")
