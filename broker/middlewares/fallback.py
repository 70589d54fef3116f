"""Another answer when a call fails for good (moleculer protocol §12.6)."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from broker.context import ABSENT, Context, Next
from broker.errors import ServiceSchemaError, text_of
from broker.middlewares.base import Target, bound, settle
from broker.protocol.encoding import short

logger = logging.getLogger("broker")


def fallback(call_next: Next, target: Target) -> Next:
    """The call's own fallback, a value or a function of (context, error); else the one of the action, at its owner."""
    own = _own_fallback(target)

    async def with_fallback(ctx: Context) -> Any:
        try:
            return await call_next(ctx)
        except Exception as error:
            asked = own if ctx.options is None or ctx.options.fallback is ABSENT else ctx.options.fallback
            logger.warning(
                "The call of '%s' failed; its fallback answers instead: %s", ctx.action, short(text_of(error))
            )
            return await settle(asked(ctx, error)) if callable(asked) else asked

    def as_asked(ctx: Context) -> Awaitable[Any]:  # no coroutine of its own: most calls ask for no fallback
        return call_next(ctx) if ctx.options is None or ctx.options.fallback is ABSENT else with_fallback(ctx)

    return as_asked if own is None else with_fallback


def _own_fallback(target: Target) -> Callable[..., Any] | None:
    """Raises ServiceSchemaError when the action names what is no method."""
    declared = target.settings.get("fallback") if target.local else None
    if declared is None:
        return None
    function = bound(declared, target.instance)
    if function is None:
        raise ServiceSchemaError(
            f"The fallback of action '{target.name}' is neither a function nor the name of a method: {declared!r}."
        )
    return function
