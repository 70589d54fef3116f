"""What a call may ask for, or its action: a deadline, retries, a fallback (moleculer protocol §5.5, §12.2, §12.6)."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from broker.cancellation import settle
from broker.context import ABSENT, Context, Next
from broker.errors import RequestTimeoutError, ServiceSchemaError, text_of
from broker.middlewares.base import Target, Wrap, bound
from broker.protocol.encoding import short
from broker.services.policies import RetryPolicy, merge

logger = logging.getLogger("broker")


def as_asked(policy: RetryPolicy, again: Callable[[Context], Awaitable[Any]]) -> Wrap:
    """The fallback, around the retries, around the deadline. `again` makes the call of a context once more: it chooses
    an endpoint and makes a new id. Most calls ask for nothing, and pass all three in one step."""

    def wrap(call_next: Next, target: Target) -> Next:
        own_policy = merge(policy, target.settings.get("retry_policy"))
        own_fallback = _fallback_of(target)
        in_time = timeout(call_next)

        async def with_retries(ctx: Context) -> Any:
            try:
                return await in_time(ctx)
            except Exception as error:
                if ctx.attempt >= _retries(ctx, own_policy) or not _may_succeed(error, own_policy):
                    raise
                delay = retry_delay(own_policy, ctx.attempt + 1)
                text = short(text_of(error))
                logger.warning("The call of '%s' failed, again in %.0f ms: %s", ctx.action, delay * 1000, text)
            await anyio.sleep(delay)
            return await again(ctx)

        async def with_fallback(ctx: Context) -> Any:
            try:
                return await with_retries(ctx)
            except Exception as error:
                given = ABSENT if ctx.options is None else ctx.options.fallback
                answer = own_fallback if given is ABSENT else given
                if answer is ABSENT:
                    raise
                text = short(text_of(error))
                logger.warning("The call of '%s' failed; its fallback answers instead: %s", ctx.action, text)
                return await settle(answer(ctx, error)) if callable(answer) else answer

        def plain(ctx: Context) -> Awaitable[Any]:  # no coroutine of its own
            options = ctx.options
            if options is not None and (options.retries is not None or options.fallback is not ABSENT):
                return with_fallback(ctx)
            return call_next(ctx) if ctx.deadline is None else in_time(ctx)

        return with_fallback if own_policy.enabled or own_fallback is not ABSENT else plain

    return wrap


def timeout(call_next: Next) -> Next:
    """End a call when its deadline passes; work that comes too late is not begun. Both nodes keep the deadline.

    Raises RequestTimeoutError, which names the node that is asked, or at the callee the calling node, as JS does. A
    TimeoutError of the handler passes.
    """

    async def in_time(ctx: Context) -> Any:
        if ctx.deadline is None:
            return await call_next(ctx)
        if ctx.deadline > anyio.current_time():
            with anyio.CancelScope(deadline=ctx.deadline):  # leaves this block only when this scope expired
                return await call_next(ctx)
        raise RequestTimeoutError({"action": ctx.action, "nodeID": ctx.node_id})

    return in_time


def retry_delay(policy: RetryPolicy, number: int) -> float:
    """Seconds to wait before the retry of that number, the first being 1."""
    return float(min(policy.delay * policy.factor ** (number - 1), policy.max_delay))


def _retries(ctx: Context, policy: RetryPolicy) -> int:
    """The caller retries, never the callee for it. A stream that was sent cannot be sent again."""
    if ctx.options is None or ctx.stream is not None:
        return 0
    if ctx.options.retries is not None:
        return ctx.options.retries
    return policy.retries if policy.enabled else 0


def _may_succeed(error: Exception, policy: RetryPolicy) -> bool:
    return bool(getattr(error, "retryable", False) if policy.check is None else policy.check(error))


def _fallback_of(target: Target) -> Any:
    """The fallback of an action, at its owner. Raises ServiceSchemaError when it names something else."""
    declared = target.settings.get("fallback") if target.local else None
    if declared is None:
        return ABSENT
    function = bound(declared, target.instance)
    if function is None:
        raise ServiceSchemaError(
            f"The fallback of action '{target.name}' is neither a function nor the name of a method: {declared!r}."
        )
    return function
