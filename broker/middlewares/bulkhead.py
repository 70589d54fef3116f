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
            if places.value == 0 and 0 < own.max_queue_size <= (waiting := places.statistics().tasks_waiting):
                what = {"action": ctx.action} if ctx.action else {"event": ctx.event, "service": target.service}
                size = {"size": waiting, "limit": own.max_queue_size}
                raise QueueIsFullError({**what, "nodeID": ctx.node_id, **size})
            async with places:
                return await call_next(ctx)

        return bounded

    return wrap
