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
| bulkhead          | x          |                | x | so many at once, so many waiting |
| validation        | x          |                |   | typed parameters |
| hooks             | x          |                |   | before, after, error |
| users' own        | x          | x              | x | the first one outermost |

What a target does not use is left out of its chain when the chain is made, once, so it costs nothing; what a call may
ask for itself, retries, a fallback and a timeout, takes one look at the call when it does not. Who is in work
is counted around all of this, so that a stop can wait for it (`ServiceHost.run`, `OutboundCalls.call`,
`InboundWork.start_listener`).
"""

from collections.abc import Awaitable, Sequence
from typing import Any

import anyio

from broker.context import ABSENT, Context, Next
from broker.middlewares.base import Target, Wrap, around_with, hooks, wrapped
from broker.middlewares.bulkhead import bulkhead
from broker.middlewares.cacher import MemoryCacher
from broker.middlewares.caching import caching
from broker.middlewares.circuit import After
from broker.middlewares.circuit_breaker import Broadcast, CircuitBreaker
from broker.middlewares.event_rate import debounce, throttle
from broker.middlewares.fallback import fallback
from broker.middlewares.handler import make_handler, make_listener, make_reader
from broker.middlewares.hooks import action_hooks, handling_errors
from broker.middlewares.retry import retrying
from broker.middlewares.timeout import timeout
from broker.middlewares.validation import validation
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
        users = {name: hooks(options.middlewares, name) for name in ("local_action", "remote_action", "local_event")}
        self._users_around_actions = bool(users["local_action"])
        handle_errors = handling_errors(options.error_handler)
        retries = merge(RetryPolicy(), options.retry_policy)
        breaker = merge(CircuitBreakerPolicy(), options.circuit_breaker)
        self.breaker = CircuitBreaker(breaker, after, broadcast, registry.endpoint_on)
        self.has_users_code = bool(
            options.error_handler or users["remote_action"] or retries.check is not None or breaker.check is not None
        )
        """Whether functions of the user run around calls to other nodes, in the task of the caller."""
        as_asked = _as_asked(retries)
        gate = bulkhead(merge(BulkheadPolicy(), options.bulkhead))
        self._local_action: Sequence[Wrap] = (
            handle_errors,
            as_asked,
            self.breaker.wrap,
            caching(cacher, _run_rest, timeout),
            gate,
            validation,
            action_hooks,
            around_with(users["local_action"]),
        )
        self._remote_action: Sequence[Wrap] = (
            handle_errors,
            as_asked,
            self.breaker.wrap,
            around_with(users["remote_action"]),
        )
        self._local_event: Sequence[Wrap] = (
            throttle(anyio.current_time),
            debounce(after, _run_rest),
            handle_errors,
            gate,
            around_with(users["local_event"]),
        )

    def local_action(self, definition: ActionDefinition, service: Any) -> Next:
        """The chain of an action of this node. Raises ServiceSchemaError or BrokerOptionsError for a setting that does
        not fit."""
        in_between = self._users_around_actions or bool(definition.settings.get("hooks") or service.hooks)
        parameters = definition.parameters if in_between else None
        settings = {
            **definition.settings,
            "cache": definition.extra.get("cache"),
            "raw_name": definition.raw_name,
            "check": make_reader(parameters, definition.name, self._codec) if parameters else None,
        }
        target = Target(
            name=definition.name,
            service=definition.service,
            local=True,
            settings=settings,
            instance=service,
            endpoint=lambda: self._registry.own.get(definition.name),
        )
        return wrapped(self._local_action, make_handler(definition, self._codec), target)

    def remote_action(self, endpoint: Endpoint, send: Next) -> Next:
        """The chain of calls to an endpoint of another node."""
        target = Target(
            name=endpoint.name,
            service=endpoint.service,
            local=False,
            settings=announced_policies(endpoint.info),
            endpoint=lambda: endpoint,
        )
        return wrapped(self._remote_action, send, target)

    def local_event(self, definition: EventDefinition, service: Any) -> Next:
        """The chain of an event handler of this node."""
        target = Target(
            name=definition.name,
            service=definition.service,
            local=True,
            settings=definition.settings,
            instance=service,
        )
        return wrapped(self._local_event, make_listener(definition), target)


def _as_asked(retries: RetryPolicy) -> Wrap:
    """The fallback, the retries and the timeout. Most calls ask for none of them, and pass all three at once."""
    retry = retrying(retries, _call_again)

    def wrap(call_next: Next, target: Target) -> Next:
        in_time = timeout(call_next, target)
        around = fallback(retry(in_time, target), target)
        has_fallback = target.local and target.settings.get("fallback") is not None
        if has_fallback or merge(retries, target.settings.get("retry_policy")).enabled:
            return around

        def as_asked(ctx: Context) -> Awaitable[Any]:
            options = ctx.options
            if options is not None and (options.retries is not None or options.fallback is not ABSENT):
                return around(ctx)
            return call_next(ctx) if ctx.deadline is None else in_time(ctx)

        return as_asked

    return wrap


def _call_again(ctx: Context) -> Awaitable[Any]:
    return ctx.broker.call_again(ctx)


def _run_rest(chain: Next, ctx: Context) -> None:
    ctx.broker.run_rest(chain, ctx)
