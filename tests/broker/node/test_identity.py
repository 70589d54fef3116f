"""What a node says of its machine: the load, a percent of all cores since the last look, and an address."""

import ipaddress
import socket
from pathlib import Path
from typing import Any

import pytest

from broker.node import identity
from broker.node.identity import CPUMeter, ip_addresses


@pytest.fixture
def stat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "stat"
    monkeypatch.setattr(identity, "_STAT", file)
    return file


def test_the_share_of_busy_time(stat: Path) -> None:
    stat.write_text("cpu  100 0 100 700 100 0 0 0 0 0\ncpu0 1 2 3\n")
    meter = CPUMeter()
    stat.write_text("cpu  125 0 100 750 125 0 0 0 0 0\n")  # 100 ticks passed, 75 of them idle
    assert meter.percent() == 25
    stat.write_text("cpu  225 0 100 750 125 0 0 0 0 0\n")
    assert meter.percent() == 100


def test_no_time_has_passed(stat: Path) -> None:
    stat.write_text("cpu  1 0 1 7 1 0 0 0 0 0\n")
    assert CPUMeter().percent() is None


@pytest.mark.parametrize("text", [None, "nothing of use\n"])
def test_the_system_does_not_tell(stat: Path, text: str | None) -> None:
    if text is not None:
        stat.write_text(text)
    assert CPUMeter().percent() is None


def test_c26_the_load_of_this_machine_is_an_integer_percent_or_unknown() -> None:
    percent = CPUMeter().percent()
    assert percent is None or (isinstance(percent, int) and 0 <= percent <= 100)


def test_there_is_an_ipv4_address() -> None:
    (address,) = ip_addresses()
    assert ipaddress.IPv4Address(address)


def test_without_a_network_it_is_the_loopback_address(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unconnected(socket.socket):
        def connect(self, address: Any) -> None:
            raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "socket", Unconnected)
    assert ip_addresses() == ["127.0.0.1"]
