"""The addresses of this machine, which INFO shows to people (moleculer protocol §3.1)."""

import socket


def ip_addresses() -> list[str]:
    """IPv4 addresses other machines may know this one by; the loopback one when there is no other.

    Asks the system for the address of the default route; nothing is sent anywhere.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1 (RFC 5737): connecting a datagram socket sends nothing
            return [probe.getsockname()[0]]
        except OSError:
            return ["127.0.0.1"]
