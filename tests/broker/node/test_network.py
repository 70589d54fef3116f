"""INFO tells an address of this machine, and finding it sends nothing."""

import ipaddress
import socket
from typing import Any

import pytest

from broker.node.network import ip_addresses


def test_there_is_an_ipv4_address() -> None:
    (address,) = ip_addresses()
    assert ipaddress.IPv4Address(address)


def test_without_a_network_it_is_the_loopback_address(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unconnected(socket.socket):
        def connect(self, address: Any) -> None:
            raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "socket", Unconnected)
    assert ip_addresses() == ["127.0.0.1"]
