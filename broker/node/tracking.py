"""What is under way, so that a stop can wait for it (moleculer protocol §12.8)."""

import anyio


class Tracker:
    """Counts. Whoever begins must end."""

    def __init__(self) -> None:
        self.count = 0
        self._idle: anyio.Event | None = None

    def begin(self) -> None:
        self.count += 1

    def end(self) -> None:
        self.count -= 1
        if not self.count and self._idle is not None:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Return when nothing is under way."""
        while self.count:
            self._idle = anyio.Event()
            await self._idle.wait()
