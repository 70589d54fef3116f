"""Refuse params that do not fit before other code sees them (moleculer protocol §12.1)."""

from collections.abc import Awaitable, Callable
from typing import Any

from broker.context import Context, Next
from broker.middlewares.base import Target


def validation(call_next: Next, target: Target) -> Next:
    """`target.settings["check"]` raises ValidationError.

    The handler reads its typed parameters itself, so there is a check only when other code runs before it.
    """
    check: Callable[[Context], Any] | None = target.settings.get("check")
    if check is None:
        return call_next

    def checked(ctx: Context) -> Awaitable[Any]:
        check(ctx)
        return call_next(ctx)

    return checked
