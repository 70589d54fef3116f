"""What users' middlewares hear of the life of a broker and its services."""

import logging
from collections.abc import Sequence
from typing import Any

from broker.cancellation import ASKED_ONLY
from broker.middlewares.base import hooks, settle

logger = logging.getLogger("broker")

ENDINGS = ("stopping", "stopped", "service_stopping", "service_stopped")


class Lifecycle:
    """Runs the hooks: the first middleware's first, except for what ends something, then the last one's first."""

    def __init__(self, middlewares: Sequence[Any]) -> None:
        self._hooks = {name: hooks(middlewares, name) for name in (*ENDINGS, "starting", "started")}
        self._hooks |= {name: hooks(middlewares, name) for name in ("created", "service_starting", "service_started")}

    def created(self, broker: Any) -> None:
        for hook in self._hooks["created"]:
            hook(broker)

    async def tell(self, name: str, subject: Any) -> None:
        """An exception of a beginning passes and fails it; an ending goes on, with a log entry."""
        if name not in ENDINGS:
            for hook in self._hooks[name]:
                with ASKED_ONLY:
                    await settle(hook(subject))
            return
        for hook in reversed(self._hooks[name]):
            try:
                with ASKED_ONLY:
                    await settle(hook(subject))
            except Exception:
                logger.exception("The hook '%s' of a middleware failed", name)
