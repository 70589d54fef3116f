"""A node as a process: started within a time, stopped cleanly by SIGTERM and SIGINT."""

import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import NoReturn

import anyio
from anyio.abc import TaskGroup, TaskStatus

from broker.broker import ServiceBroker
from broker.cli.output import print_error, reader_is_gone
from broker.errors import MoleculerError
from broker.logs import name_node
from broker.masking import masked_text
from broker.protocol.packets import PROTOCOLS

logger = logging.getLogger("broker")


def run(main: Callable[[], Awaitable[int | None]]) -> int:
    """Run an async main on the fastest event loop there is; its result is the exit code, None for 0.

    Errors of the broker, and an output that cannot be written, end it with one line and exit code 1; a reader that went
    away, with no line.
    """
    try:
        return anyio.run(main, backend_options={"use_uvloop": _has_uvloop()}) or 0
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


async def serve(broker: ServiceBroker, start_timeout: float, **uses: str) -> int:
    """Start a node and run it until a signal stops it. Returns the exit code: 0 after a signal; 1 when the node could
    not start within `start_timeout` seconds or had to stop by itself. A second signal ends the process at once, with 1.

    The log names what the node is connected to: `uses` adds to that.
    """
    name_node(broker.node_id)
    async with anyio.create_task_group() as tasks:
        stopping = anyio.Event()
        await tasks.start(_stop_at_a_signal, broker, tasks, stopping)
        code = 0
        if await _start(broker, start_timeout, stopping):
            _log_start(broker, uses)
            try:
                await broker.wait_stopped()
            except MoleculerError as error:
                print_error(str(error))
                code = 1
            finally:
                await broker.stop()
        else:
            code = int(not stopping.is_set())
        if stopping.is_set():
            logger.info("The node has stopped")
        tasks.cancel_scope.cancel()
    return code


async def _start(broker: ServiceBroker, timeout: float, stopping: anyio.Event) -> bool:
    """Whether the node started. A line says why it did not, unless a signal stopped it."""
    try:
        with anyio.move_on_after(timeout):
            await broker.start()
            return True
    except MoleculerError as error:
        if not stopping.is_set():
            print_error(str(error))
    except Exception as error:  # of a service: its traceback is for the author
        logger.error("The node could not start", exc_info=error)
    else:
        print_error(f"The node could not start within {timeout:g} s; the lines above say what it waits for.")
    return False


def _log_start(broker: ServiceBroker, uses: dict[str, str]) -> None:
    options, services = broker.options, [service["fullName"] for service in broker.registry.local.services]
    facts = {
        "namespace": repr(options.namespace),
        "protocol": options.protocol or " and ".join(sorted(PROTOCOLS)),
        "NATS": masked_text(str(options.transporter)),
        "services": ", ".join(name for name in services if not name.startswith("$")),
        **uses,
    }
    logger.info("Node '%s' started; %s", broker.node_id, "; ".join(f"{name}: {fact}" for name, fact in facts.items()))


async def _stop_at_a_signal(
    broker: ServiceBroker, tasks: TaskGroup, stopping: anyio.Event, *, task_status: TaskStatus[None]
) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            if stopping.is_set():
                _exit_at_once()
            stopping.set()
            logger.info(
                "%s received; running calls have %g s to end, then the services stop. A second signal ends the process "
                "at once",
                number.name,
                broker.options.shutdown_timeout,
            )
            tasks.start_soon(broker.stop)


def _exit_at_once() -> NoReturn:
    """Wait neither for services nor for their threads."""
    print_error("Stopped at once, by a second signal: calls that were running are lost.")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _has_uvloop() -> bool:
    """Whether the extra `speed` is installed; anyio loads it by itself."""
    return importlib.util.find_spec("uvloop") is not None
