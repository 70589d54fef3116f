"""How long this process runs: times that `$node` tells count from its start, not from 1970 (moleculer protocol §10)."""

import time

STARTED = time.monotonic()
"""When this process started, on the event loop's clock. The broker is loaded within the first moments."""


def uptime_s() -> float:
    """Seconds since the start of this process."""
    return time.monotonic() - STARTED
