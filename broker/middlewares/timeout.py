"""The deadline of a request, kept by the node that runs it too (moleculer protocol §5.5)."""

from typing import Any

import anyio

from broker.context import Context
from broker.errors import RequestTimeoutError
from broker.middleware import Next


async def timeout(call_next: Next, ctx: Context) -> Any:
    """End the handler when the caller does not wait any more. A request that comes too late is not begun.

    Raises RequestTimeoutError, which names the calling node, as JS does. A TimeoutError of the handler's own passes.
    """
    if ctx.deadline is None:
        return await call_next(ctx)
    if ctx.deadline > anyio.current_time():
        with anyio.CancelScope(deadline=ctx.deadline):  # leaves this block only when it was this scope that expired
            return await call_next(ctx)
    raise RequestTimeoutError({"action": ctx.action, "nodeID": ctx.node_id})
