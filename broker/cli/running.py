"""A command as a process: its event loop, its signals, its exit code."""

import asyncio
import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import anyio

from broker.broker import ServiceBroker
from broker.cli.output import print_error, reader_is_gone
from broker.errors import MoleculerError
from broker.logs import name_node
from broker.masking import masked_text

logger = logging.getLogger("broker")


def run(main: Callable[[], Awaitable[int | None]]) -> int:
    """Run an async main on the fastest event loop there is; its result is the exit code, None for 0.

    Errors of the broker, and an output that cannot be written, end it with one line and exit code 1; a reader that went
    away, with no line.
    """
    has_uvloop = importlib.util.find_spec("uvloop") is not None
    try:
        return anyio.run(main, backend_options={"use_uvloop": has_uvloop}) or 0
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


@contextmanager
def until_signal() -> Iterator[None]:
    """Ctrl-C, SIGTERM, and a reader of the output that goes away end the block; then the program goes on."""
    with anyio.CancelScope() as scope:
        _on_signal(lambda _number: scope.cancel())
        try:
            yield
        except BrokenPipeError:
            reader_is_gone()


async def serve(broker: ServiceBroker, start_timeout: float, **uses: str) -> int:
    """Start a node and run it until a signal stops it. Returns the exit code: 0 after a signal; 1 when the node could
    not start within `start_timeout` seconds or had to stop by itself. A second signal ends the process at once, with 1.

    The log names what the node is connected to: `uses` adds to that.
    """
    name_node(broker.node_id)
    stopping = anyio.Event()
    async with anyio.create_task_group() as tasks:

        def stop(number: signal.Signals) -> None:
            if stopping.is_set():  # wait neither for services nor for their threads
                logger.error("Stopped at once, by a second signal: calls that were running are lost")
                sys.stdout.flush()
                os._exit(1)
            stopping.set()
            logger.info(
                "%s received; running calls have %g s to end, then the services stop. A second signal ends the process "
                "at once",
                number.name,
                broker.options.shutdown_timeout,
            )
            tasks.start_soon(broker.stop)

        _on_signal(stop)
        code = 1
        if await _start(broker, start_timeout, stopping):
            _log_start(broker, uses)
            try:
                await broker.wait_stopped()
                code = 0
            except MoleculerError as error:
                logger.error("%s", error)
            finally:
                await broker.stop()
    if stopping.is_set():
        logger.info("The node has stopped")
        code = 0
    return code


async def _start(broker: ServiceBroker, timeout: float, stopping: anyio.Event) -> bool:
    """Whether the node started. A line says why it did not, unless a signal stopped it."""
    try:
        with anyio.move_on_after(timeout):
            await broker.start()
            return True
    except MoleculerError as error:
        if not stopping.is_set():
            logger.error("%s", error)
    except Exception as error:  # of a service: its traceback is for the author
        logger.error("The node could not start", exc_info=error)
    else:
        logger.error("The node could not start within %g s; the lines above say what it waits for", timeout)
    return False


def _log_start(broker: ServiceBroker, uses: dict[str, str]) -> None:
    names = [service["fullName"] for service in broker.registry.local.services]
    facts = {
        "namespace": repr(broker.options.namespace),
        "protocol": broker.options.protocol or "4 and 5",
        "NATS": masked_text(str(broker.options.transporter)),
        "services": ", ".join(name for name in names if not name.startswith("$")),
        **uses,
    }
    logger.info("Node '%s' started; %s", broker.node_id, "; ".join(f"{name}: {fact}" for name, fact in facts.items()))


def _on_signal(function: Callable[[signal.Signals], None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, function, number)
