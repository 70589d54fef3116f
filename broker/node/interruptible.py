"""Work that somebody else may end before it is done, such as a start that a stop overtakes."""

from collections.abc import Awaitable, Callable

import anyio


class Interruptible:
    """Holds one piece of work. `end` from within that work ends it too, without waiting for itself."""

    def __init__(self) -> None:
        self._scope: anyio.CancelScope | None = None
        self._over: anyio.Event | None = None

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do the work. Returns as well when it was ended: look at what it was to change."""
        self._over = anyio.Event()
        try:
            with anyio.CancelScope() as self._scope:
                await work()
        finally:
            self._scope = None
            self._over.set()

    async def end(self) -> None:
        """Cancel the work if it is under way, and return when it is over."""
        if self._scope is not None:
            self._scope.cancel()
        if self._over is not None:
            await self._over.wait()
