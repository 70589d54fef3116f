"""How busy the machine is, for heartbeats (moleculer protocol §4.4)."""

from pathlib import Path

_STAT = Path("/proc/stat")


class CPUMeter:
    """The share of all cores' time that was used since the last look, as an integer percent."""

    def __init__(self) -> None:
        self._last = _read()

    def percent(self) -> int | None:
        """None where the system does not tell (elsewhere than on Linux), and when no time has passed."""
        last, self._last = self._last, _read()
        if last is None or self._last is None:
            return None
        total, idle = self._last[0] - last[0], self._last[1] - last[1]
        return round(100 * (total - idle) / total) if total > 0 else None


def _read() -> tuple[int, int] | None:
    """Total and idle time of all cores since boot, in ticks."""
    try:
        ticks = [int(field) for field in _STAT.read_text().split("\n", 1)[0].split()[1:]]
    except (OSError, ValueError):
        return None
    idle = ticks[3] + ticks[4]  # idle and waiting for disks
    return sum(ticks[:8]), idle
