"""The user's own handler of errors, around all else (moleculer protocol §12.1)."""

from collections.abc import Callable
from typing import Any

from broker.context import Context, Next
from broker.middlewares.base import Target, Wrap, settle


def handling_errors(handler: Callable[[BaseException, Context], Any] | None) -> Wrap:
    """Hands every error to `handler`: what it returns is the result, what it raises is the error."""

    def wrap(call_next: Next, target: Target) -> Next:
        if handler is None:
            return call_next

        async def handled(ctx: Context) -> Any:
            try:
                return await call_next(ctx)
            except Exception as error:
                return await settle(handler(error, ctx))

        return handled

    return wrap
