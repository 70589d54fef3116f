"""The last internal events of a node, for services that have stopped by then (moleculer protocol §4.2, §7.4)."""

import logging
from collections.abc import Callable
from typing import Any

import anyio

from broker.cancellation import ASKED_ONLY
from broker.context import Context
from broker.registry import Registry

logger = logging.getLogger("broker")

LAST_EVENTS = ("$transporter.disconnected", "$broker.stopped")


class Farewell:
    """Remembers who listens to the last events while services are still registered, and tells them in the end."""

    def __init__(self, registry: Registry) -> None:
        self._listeners = {
            event: [
                member.event
                for choices in registry.find_listeners(event)
                for member in choices.members
                if member.event is not None
            ]
            for event in LAST_EVENTS
        }

    async def tell(self, event: str, make_context: Callable[[], Context], timeout_s: float) -> None:
        """Run the handlers of an event one after the other, each as long as `timeout_s`. Failures are logged."""
        for definition in self._listeners[event]:
            with anyio.move_on_after(timeout_s):
                await _run(definition.handler, make_context())


async def _run(handler: Any, ctx: Context) -> None:
    try:
        with ASKED_ONLY:
            await handler(ctx)
    except Exception:
        logger.exception("A handler of '%s' failed", ctx.event)
