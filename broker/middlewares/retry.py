"""Make a call again that may succeed the next time (moleculer protocol §12.2)."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from broker.context import Context, Next
from broker.errors import text_of
from broker.middlewares.base import Target, Wrap
from broker.protocol.encoding import short
from broker.services.policies import RetryPolicy, merge

logger = logging.getLogger("broker")


def retrying(policy: RetryPolicy, again: Callable[[Context], Awaitable[Any]]) -> Wrap:
    """`again` makes the call of a context once more: a new endpoint is chosen and a new id made.

    The caller retries, never the callee for it. A failure to find the action is not one of the endpoint, so it does not
    come by here. A call that has sent a stream cannot be made again.
    """

    def wrap(call_next: Next, target: Target) -> Next:
        own = merge(policy, target.settings.get("retry_policy"))

        async def with_retries(ctx: Context) -> Any:
            try:
                return await call_next(ctx)
            except Exception as error:
                if ctx.attempt >= _retries(ctx, own) or ctx.stream is not None or not _may_succeed(error, own):
                    raise
                delay = retry_delay(own, ctx.attempt + 1)
                logger.warning(
                    "The call of '%s' failed, again in %.0f ms: %s", ctx.action, delay * 1000, short(text_of(error))
                )
            await anyio.sleep(delay)
            return await again(ctx)

        def as_asked(ctx: Context) -> Awaitable[Any]:  # no coroutine of its own: most calls ask for no retries
            return call_next(ctx) if ctx.options is None or ctx.options.retries is None else with_retries(ctx)

        return with_retries if own.enabled else as_asked

    return wrap


def retry_delay(policy: RetryPolicy, number: int) -> float:
    """Seconds to wait before the retry of that number, the first being 1."""
    return float(min(policy.delay * policy.factor ** (number - 1), policy.max_delay))


def _retries(ctx: Context, policy: RetryPolicy) -> int:
    if ctx.options is None:
        return 0
    if ctx.options.retries is not None:
        return ctx.options.retries
    return policy.retries if policy.enabled else 0


def _may_succeed(error: Exception, policy: RetryPolicy) -> bool:
    if policy.check is not None:
        return bool(policy.check(error))
    return bool(getattr(error, "retryable", False))
