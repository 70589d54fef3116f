"""Bound how many calls of an action, or runs of an event handler, go on at once (moleculer protocol §12.5)."""

from typing import Any

import anyio

from broker.context import Context, Next
from broker.errors import QueueIsFullError
from broker.middlewares.base import Target, Wrap
from broker.services.policies import BulkheadPolicy, merge


def bulkhead(policy: BulkheadPolicy) -> Wrap:
    """Raises QueueIsFullError, which may be retried, when too many wait."""

    def wrap(call_next: Next, target: Target) -> Next:
        own = merge(policy, target.settings.get("bulkhead"))
        if not own.enabled:
            return call_next
        places = anyio.Semaphore(own.concurrency, fast_acquire=True)

        async def bounded(ctx: Context) -> Any:
            if places.value == 0:
                waiting = places.statistics().tasks_waiting
                if 0 < own.max_queue_size <= waiting:
                    raise QueueIsFullError(_describe(ctx, target) | {"size": waiting, "limit": own.max_queue_size})
            async with places:
                return await call_next(ctx)

        return bounded

    return wrap


def _describe(ctx: Context, target: Target) -> dict[str, Any]:
    if ctx.action is not None:
        return {"action": ctx.action, "nodeID": ctx.node_id}
    return {"event": ctx.event, "service": target.service, "nodeID": ctx.node_id}
