"""Addresses of NATS servers: checked, with the credentials in them, and in the order in which they are tried."""

import random
from ipaddress import ip_address
from urllib.parse import unquote, urlsplit

from broker.errors import BrokerOptionsError


def checked(url: str) -> str:
    """A usable address in full. Raises BrokerOptionsError, without the address, as a password may be in it."""
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        if parts.scheme in ("nats", "tls", "ws", "wss") and parts.hostname and parts.port != 0:
            return parts.geturl()
    except ValueError:
        pass
    raise BrokerOptionsError(
        "The address of the NATS server is not usable. A right one looks like nats://127.0.0.1:4222, "
        "nats://user:password@host:4222 or tls://host:4222; several are separated by commas. In a password, "
        "characters such as / @ : # and ? are written as %2F %40 %3A %23 and %3F."
    )


def credentials(server: str) -> dict[str, str]:
    """User and password, or the token, in an address. nats-py would send them percent-encoded."""
    parts = urlsplit(server)
    if parts.username is None:
        return {}
    user = unquote(parts.username)
    return {"token": user} if parts.password is None else {"user": user, "password": unquote(parts.password)}


class Servers:
    """The servers that a node may connect to: those of its list, and those that they advertise."""

    def __init__(self, listed: list[str]) -> None:
        self.listed = listed
        self._advertised: list[str] = []
        self._host = ""
        """The name of the server that advertised them."""
        self._tried: dict[str, int] = {}
        self._tries = 0

    def in_turn(self) -> list[str]:
        """Each of them once, the one that was tried last at the end. Advertised addresses come after the list: they
        are often those of a network that the node cannot reach."""
        servers = [*self.listed, *self._advertised]
        random.shuffle(servers)
        return sorted(servers, key=lambda server: (server in self._advertised, self._tried.get(server, 0)))

    def tried(self, server: str) -> None:
        """Note that an attempt to connect to a server begins."""
        self._tries += 1
        self._tried[server] = self._tries

    def advertise(self, server: str, addresses: list[str]) -> None:
        """Take what one server says of its cluster, in place of what another has said. Credentials are those of the
        list."""
        parts = urlsplit(server)
        if parts.scheme not in ("nats", "tls"):  # the addresses are for these
            return
        if not _is_ip(parts.hostname):
            self._host = parts.hostname or ""
        user, at, _ = parts.netloc.rpartition("@")
        known = {urlsplit(one).netloc.rpartition("@")[2] for one in self.listed}
        self._advertised = [parts._replace(netloc=user + at + one).geturl() for one in addresses if one not in known]
        self._tried = {one: self._tried[one] for one in [*self.listed, *self._advertised] if one in self._tried}

    def certified_as(self, server: str) -> str | None:
        """The name that a certificate must have when it is not that of the address: servers advertise numbers."""
        return self._host or None if server in self._advertised and _is_ip(urlsplit(server).hostname) else None


def _is_ip(host: str | None) -> bool:
    try:
        return bool(ip_address(host or ""))
    except ValueError:
        return False
