"""The clock that `$node` counts from."""

import anyio
import pytest

from broker.internals.uptime import STARTED, uptime_s

pytestmark = pytest.mark.anyio


async def test_uptime_counts_on_the_clock_of_the_event_loop() -> None:
    before = anyio.current_time() - STARTED
    uptime = uptime_s()
    after = anyio.current_time() - STARTED
    assert 0 < before <= uptime + 0.01  # an event loop's clock may be a tick behind
    assert uptime <= after + 0.01
