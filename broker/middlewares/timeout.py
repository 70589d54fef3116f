"""The deadline of a call, kept by the node that makes it and by the one that runs it (moleculer protocol §5.5)."""

from collections.abc import Awaitable
from typing import Any

import anyio

from broker.context import Context, Next
from broker.errors import RequestTimeoutError
from broker.middlewares.base import Target


def timeout(call_next: Next, target: Target) -> Next:
    """End the call when its deadline passes. Work that comes too late is not begun.

    Raises RequestTimeoutError, which names the node that is asked, or at the callee the calling node, as JS does. A
    TimeoutError of a handler's own passes.
    """

    def in_time(ctx: Context) -> Awaitable[Any]:  # no coroutine of its own: most calls have no deadline
        return call_next(ctx) if ctx.deadline is None else _until(ctx.deadline, call_next, ctx)

    return in_time


async def _until(deadline: float, call_next: Next, ctx: Context) -> Any:
    if deadline > anyio.current_time():
        with anyio.CancelScope(deadline=deadline):  # leaves this block only when it was this scope that expired
            return await call_next(ctx)
    raise RequestTimeoutError({"action": ctx.action, "nodeID": ctx.node_id})
