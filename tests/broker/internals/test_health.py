"""`$node.health` has the shape of the captured one."""

import sys
from typing import Any

import anyio
import pytest

from broker.internals.health import STARTED, health
from tests.support.transits import captured_packet

CLIENT = {"type": "python", "version": "1", "langVersion": "3"}


def test_health_has_every_part_that_a_js_node_shows() -> None:
    shown = health(CLIENT, ["10.0.0.1"])
    assert _keys(shown) == _keys(captured_packet("5", 133)["data"])
    assert shown["client"] == CLIENT
    assert shown["net"] == {"ip": ["10.0.0.1"]}


def test_figures_are_plausible() -> None:
    shown = health(CLIENT, [])
    assert 0 <= shown["cpu"]["utilization"] <= 100
    assert 0 < shown["mem"]["free"] <= shown["mem"]["total"]
    assert shown["mem"]["percent"] == pytest.approx(shown["mem"]["free"] * 100 / shown["mem"]["total"])
    assert shown["process"]["memory"]["rss"] > 1_000_000
    assert shown["process"]["uptime"] > 0
    assert shown["os"]["uptime"] > 0
    assert shown["time"]["iso"].endswith("Z")
    assert shown["time"]["utc"].endswith(" GMT")


@pytest.mark.anyio
async def test_the_uptime_counts_on_the_clock_of_the_event_loop() -> None:
    before, uptime, after = anyio.current_time(), health(CLIENT, [])["process"]["uptime"], anyio.current_time()
    assert 0 < before - STARTED <= uptime + 0.01  # an event loop's clock may be a tick behind
    assert uptime <= after - STARTED + 0.01


def test_a_password_on_the_command_line_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "--nats-url", "nats://user:hidden@host:4222"])
    assert health(CLIENT, [])["process"]["argv"] == ["python", "--nats-url", "nats://***@host:4222"]


def _keys(value: Any) -> Any:
    return {key: _keys(inner) for key, inner in value.items()} if isinstance(value, dict) else None
