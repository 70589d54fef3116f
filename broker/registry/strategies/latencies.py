"""How long hosts take to answer pings (moleculer protocol §9.2, Latency)."""

from collections import deque
from collections.abc import Callable


class Latencies:
    """The last elapsed times of each host, and their average. One for all strategies of a node.

    `on_use` is called when the first strategy needs it: from then on somebody has to ping.
    """

    def __init__(self) -> None:
        self.used = False
        self.on_use: Callable[[], None] = lambda: None
        self.ping_interval_s = 0.0
        self._collect = 0
        self._times: dict[str, deque[float]] = {}
        self._averages: dict[str, float] = {}

    def use(self, *, collect_count: int, ping_interval_s: float) -> None:
        """A strategy starts to ask; the first one's options count."""
        if not self.used:
            self.used, self._collect, self.ping_interval_s = True, collect_count, ping_interval_s
            self.on_use()

    def record(self, host: str, elapsed_s: float) -> None:
        """A ping was answered."""
        if not self.used:
            return
        times = self._times.setdefault(host, deque(maxlen=self._collect))
        times.append(elapsed_s)
        self._averages[host] = sum(times) / len(times)

    def average(self, host: str | None) -> float | None:
        return self._averages.get(host) if host is not None else None

    def forget(self, host: str) -> None:
        """The last node of a host is gone."""
        self._times.pop(host, None)
        self._averages.pop(host, None)
