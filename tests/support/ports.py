"""Free ports on the loopback address."""

import socket

__all__ = ["LOOPBACK", "free_port"]

LOOPBACK = "127.0.0.1"


def free_port() -> int:
    """A port that nobody listens on now.

    Another process can take it before its user does. Servers that can choose a port by themselves (nats-server)
    should; this is for those that cannot, and for an address at which nothing answers.
    """
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
