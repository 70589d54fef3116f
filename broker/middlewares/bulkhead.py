"""Run no more than so many calls of an action, or runs of an event handler, at once (moleculer protocol §12.5)."""

from collections import deque
from typing import Any

import anyio

from broker.context import Context, Next
from broker.errors import QueueIsFullError
from broker.middlewares.base import Target, Wrap
from broker.services.policies import BulkheadPolicy, merge


class Gate:
    """Lets `concurrency` in; the next wait in a queue, first come, first served, that holds `max_queue_size`."""

    def __init__(self, policy: BulkheadPolicy) -> None:
        self.inside = 0
        self._policy = policy
        self._queue: deque[anyio.Event] = deque()

    @property
    def full(self) -> bool:
        """Whether there is no room to wait any more."""
        bound = self._policy.max_queue_size
        return self.inside >= self._policy.concurrency and 0 < bound <= len(self._queue)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    async def enter(self) -> None:
        """Return when it is our turn. Who is inside must leave."""
        if self.inside < self._policy.concurrency:
            self.inside += 1
            return
        turn = anyio.Event()
        self._queue.append(turn)
        try:
            await turn.wait()  # who leaves hands the place over, so that nobody can slip in between
        except BaseException:
            if turn.is_set():
                self.leave()
            else:
                self._queue.remove(turn)
            raise

    def leave(self) -> None:
        if self._queue:
            self._queue.popleft().set()
        else:
            self.inside -= 1


def bulkhead(policy: BulkheadPolicy) -> Wrap:
    """Raises QueueIsFullError, which may be retried, when too many wait."""

    def wrap(call_next: Next, target: Target) -> Next:
        own = merge(policy, target.settings.get("bulkhead"))
        if not own.enabled:
            return call_next
        gate = Gate(own)

        async def bounded(ctx: Context) -> Any:
            if gate.full:
                raise QueueIsFullError(_describe(ctx, target) | {"size": gate.waiting, "limit": own.max_queue_size})
            await gate.enter()
            try:
                return await call_next(ctx)
            finally:
                gate.leave()

        return bounded

    return wrap


def _describe(ctx: Context, target: Target) -> dict[str, Any]:
    if ctx.action is not None:
        return {"action": ctx.action, "nodeID": ctx.node_id}
    return {"event": ctx.event, "service": target.service, "nodeID": ctx.node_id}
