"""A Python node as a process of its own: `python -m tests.interop.python_node NATS_URL NAMESPACE NODE_ID`.

Prints `ready` when it has started; stops on SIGTERM. If it cannot start, or has to stop, it prints the reason and exits
with 1.
"""

import signal
import sys

import anyio

from broker import MoleculerError, ServiceBroker
from tests.interop.services import python_services


async def serve(*arguments: str) -> None:
    nats_url, namespace, node_id = arguments
    async with ServiceBroker(node_id, namespace=namespace, transporter=nats_url, services=python_services()) as broker:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        async with anyio.create_task_group() as tasks:

            async def stop_on_signal() -> None:
                with anyio.open_signal_receiver(signal.SIGTERM) as signals:
                    async for _ in signals:
                        tasks.cancel_scope.cancel()

            tasks.start_soon(stop_on_signal)
            await broker.wait_stopped()


def main() -> None:
    try:
        anyio.run(serve, *sys.argv[1:])
    except* MoleculerError as errors:
        sys.exit(str(errors.exceptions[0]))


if __name__ == "__main__":
    main()
