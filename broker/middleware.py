"""Middlewares: plain functions around a handler, composed once when an action is registered."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from broker.context import Context

Next = Callable[[Context], Awaitable[Any]]
"""The rest of the chain."""

Middleware = Callable[[Next, Context], Awaitable[Any]]
"""`async def around(call_next, ctx)`: do something, `return await call_next(ctx)`, do something."""


def compose(middlewares: Sequence[Middleware], handler: Next) -> Next:
    """The handler inside all middlewares, the first one outermost."""
    for middleware in reversed(middlewares):
        handler = partial(middleware, handler)
    return handler
