"""The service as an operator runs it: the command `environments-store serve` as a process of its own."""

import contextlib
from collections.abc import AsyncIterator

from tests.support.processes import Process, start_python

__all__ = ["store_process"]


@contextlib.asynccontextmanager
async def store_process(
    database_url: str, nats_url: str, namespace: str, node_id: str, *flags: str, warm: bool = True
) -> AsyncIterator[Process]:
    """Runs the service, stopped at the end of the block. A caller waits until it sees `environments-store`."""
    settings = {"DATABASE_URL": database_url, "NATS_URL": nats_url, "NAMESPACE": namespace, "NODE_ID": node_id}
    command = ("-m", "services.environments_store", "serve", *flags)
    async with start_python(*command, environment=settings, name=f"environments-store {node_id}", warm=warm) as process:
        yield process
