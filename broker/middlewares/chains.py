"""Everything that goes on around a handler, in one order (moleculer protocol §12.1).

| outermost first   | own action | call to a node | own event handler | |
|-------------------|------------|----------------|-------------------|-|
| throttle          |            |                | x | drops events that come too soon after another |
| debounce          |            |                | x | waits until events stop coming |
| error handler     | x          | x              | x | the broker's option `error_handler` |
| fallback          | x          | x              |   | another answer instead of an error |
| retry             | x          | x              |   | the same call again, when this node made it |
| timeout           | x          | x              |   | the deadline |
| circuit breaker   | x          | x              |   | leaves an endpoint alone that keeps failing |
| cacher            | x          |                |   | a kept result instead of a run |
| bulkhead          | x          |                | x | how many at once, how many waiting |
| validation        | x          |                |   | typed parameters, before other code sees them |
| hooks             | x          |                |   | before, after, error |
| users' own        | x          | x              | x | the first one outermost |

A chain is made once, without what its target does not use; what a call may ask for itself (retries, a fallback, a
timeout) costs one look at the call. Work is counted around all of this, so that a stop can wait for it
(`ServiceHost.run`, `OutboundCalls.call`, `InboundWork.start_listener`).
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio

from broker.context import Context, Next
from broker.middlewares.base import After, Target, compose, hooks, wrapped
from broker.middlewares.bulkhead import bulkhead
from broker.middlewares.cacher import MemoryCacher, caching
from broker.middlewares.circuit_breaker import Broadcast, CircuitBreaker
from broker.middlewares.event_rate import debounce, throttle
from broker.middlewares.handler import make_handler, make_listener, make_reader
from broker.middlewares.hooks import action_hooks, handling_errors
from broker.middlewares.retry_and_fallback import as_asked
from broker.options import BrokerOptions
from broker.protocol.codecs.json import Codec
from broker.registry.endpoints import Endpoint
from broker.registry.registry import Registry
from broker.services.policies import BulkheadPolicy, CircuitBreakerPolicy, RetryPolicy, announced_policies, merge
from broker.services.schema import ActionDefinition, EventDefinition


class Chains:
    """Makes the chains of one broker: one for each action, event handler and endpoint."""

    def __init__(
        self,
        options: BrokerOptions,
        registry: Registry,
        codec: Codec,
        cacher: MemoryCacher | None,
        after: After,
        broadcast: Broadcast,
    ) -> None:
        self._registry = registry
        self._codec = codec
        self._users = {
            kind: hooks(options.middlewares, kind) for kind in ("local_action", "remote_action", "local_event")
        }
        retries = merge(RetryPolicy(), options.retry_policy)
        breaker = merge(CircuitBreakerPolicy(), options.circuit_breaker)
        self.breaker = CircuitBreaker(breaker, anyio.current_time, after, broadcast, registry.endpoint_on)
        self.has_users_code = bool(
            options.error_handler or self._users["remote_action"] or retries.check or breaker.check
        )
        """Whether functions of the user run around calls to other nodes, in the task of the caller."""
        on_error = handling_errors(options.error_handler)
        asked = as_asked(retries, lambda ctx: ctx.broker.call_again(ctx))
        gate = bulkhead(merge(BulkheadPolicy(), options.bulkhead))
        self._local_action = (on_error, asked, self.breaker.wrap, caching(cacher, _run_rest), gate)
        self._remote_action = (on_error, asked, self.breaker.wrap)
        self._local_event = (throttle(anyio.current_time), debounce(after, _run_rest), on_error, gate)

    def local_action(self, definition: ActionDefinition, service: Any) -> Next:
        """The chain of an action of this node. Raises ServiceSchemaError or BrokerOptionsError for a setting that does
        not fit."""
        name, handler = definition.name, make_handler(definition, self._codec)
        own = {"raw_name": definition.raw_name, "cache": definition.extra.get("cache")}
        target = Target(
            name,
            definition.service,
            local=True,
            settings={**definition.settings, **own},
            instance=service,
            endpoint=partial(self._registry.own.get, name),
        )
        chain = action_hooks(compose(self._users["local_action"], handler), target)
        if chain is not handler and definition.parameters is not None:
            chain = _validated(chain, make_reader(definition.parameters, name, self._codec))
        return wrapped(self._local_action, chain, target)

    def remote_action(self, endpoint: Endpoint, send: Next) -> Next:
        """The chain of calls to an endpoint of another node."""
        settings = announced_policies(endpoint.info)
        target = Target(endpoint.name, endpoint.service, local=False, settings=settings, endpoint=lambda: endpoint)
        return wrapped(self._remote_action, compose(self._users["remote_action"], send), target)

    def local_event(self, definition: EventDefinition, service: Any) -> Next:
        """The chain of an event handler of this node."""
        target = Target(definition.name, definition.service, local=True, settings=definition.settings, instance=service)
        return wrapped(self._local_event, compose(self._users["local_event"], make_listener(definition)), target)


def _validated(call_next: Next, read: Callable[[Context], Any]) -> Next:
    """The handler reads its parameters itself: a check for other code that runs before it."""

    def checked(ctx: Context) -> Awaitable[Any]:
        read(ctx)
        return call_next(ctx)

    return checked


def _run_rest(chain: Next, ctx: Context) -> None:
    ctx.broker.run_rest(chain, ctx)
