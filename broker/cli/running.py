"""A node as a process: started within a time, stopped cleanly by SIGTERM and SIGINT."""

import contextlib
import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import NoReturn

import anyio

from broker.broker import ServiceBroker
from broker.cli.output import print_error, reader_is_gone
from broker.errors import MoleculerError
from broker.logs import name_node

logger = logging.getLogger("broker")


def run(main: Callable[[], Awaitable[int]]) -> int:
    """Run an async main on the fastest event loop there is; its result is the exit code.

    Errors of the broker, and an output that cannot be written, end it with one line and exit code 1; a reader that went
    away, with no line.
    """
    try:
        return anyio.run(main, backend_options={"use_uvloop": _has_uvloop()})
    except MoleculerError as error:
        print_error(str(error))
    except BrokenPipeError:
        reader_is_gone()
    except OSError as error:
        print_error(str(error))
        reader_is_gone()
    except KeyboardInterrupt:
        return 130
    return 1


async def serve(broker: ServiceBroker, start_timeout: float) -> int:
    """Start a node, wait for a signal to stop it, stop it. Gives the exit code: 0 after a signal.

    1 when it could not start within `start_timeout` seconds, when it had to stop by itself, and at once at a second
    signal; a line says why.
    """
    name_node(broker.node_id)
    async with anyio.create_task_group() as tasks:
        stop = anyio.Event()
        await tasks.start(_wait_for_signal, stop)
        code = await _serve_until(broker, stop, start_timeout)
        tasks.cancel_scope.cancel()
    return code


async def _serve_until(broker: ServiceBroker, stop: anyio.Event, start_timeout: float) -> int:
    if not await _start_unless(broker, stop, start_timeout):
        return 0 if stop.is_set() else 1
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_set_when_stopped, broker, stop)
            await stop.wait()
            tasks.cancel_scope.cancel()
    finally:
        await broker.stop()
    try:
        await broker.wait_stopped()
    except MoleculerError as error:
        print_error(str(error))
        return 1
    return 0


async def _start_unless(broker: ServiceBroker, stop: anyio.Event, start_timeout: float) -> bool:
    """Whether the node started before the time was over and before a signal came."""
    started = False

    async def start() -> None:
        nonlocal started
        try:
            with anyio.fail_after(start_timeout):
                await broker.start()
            started = True
        except TimeoutError:
            print_error(f"The node could not start within {start_timeout:g} s; the lines above say what it waits for.")
        finally:
            tasks.cancel_scope.cancel()

    async def give_up() -> None:
        await stop.wait()
        tasks.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(start)
            tasks.start_soon(give_up)
    except* MoleculerError as group:
        print_error(str(group.exceptions[0]))
    except* Exception as group:  # a service's own; where it comes from is for whoever writes that service
        logger.error("The node could not start", exc_info=group.exceptions[0])
    return started


async def _wait_for_signal(stop: anyio.Event, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            if stop.is_set():
                _exit_at_once()
            stop.set()


def _exit_at_once() -> NoReturn:
    """A second signal: wait for nothing any more, neither for services nor for the threads that they have."""
    print_error("Stopped at once, by a second signal: calls that were running are lost.")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


async def _set_when_stopped(broker: ServiceBroker, stop: anyio.Event) -> None:
    with contextlib.suppress(MoleculerError):  # asked again, and printed, when everything is closed
        await broker.wait_stopped()
    stop.set()


def _has_uvloop() -> bool:
    """Whether the extra `speed` is installed; anyio loads it by itself."""
    return importlib.util.find_spec("uvloop") is not None
