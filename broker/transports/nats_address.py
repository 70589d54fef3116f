"""Addresses of NATS servers, checked, and the credentials in them."""

from urllib.parse import unquote, urlsplit

from broker.errors import BrokerOptionsError


def checked(url: str) -> str:
    """A usable address in full. Raises BrokerOptionsError, without the address, as a password may be in it."""
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        usable = parts.scheme in ("nats", "tls", "ws", "wss") and parts.hostname and (parts.port is None or parts.port)
    except ValueError:
        usable = False
    if not usable:
        raise BrokerOptionsError(
            "The address of the NATS server is not usable. A right one looks like nats://127.0.0.1:4222, "
            "nats://user:password@host:4222 or tls://host:4222; several are separated by commas. In a password, "
            "characters such as / @ : # and ? are written as %2F %40 %3A %23 and %3F."
        )
    return parts.geturl()


def credentials(servers: list[str]) -> dict[str, str]:
    """User and password, or the token, of addresses that all have the same ones. nats-py would send them as they stand
    in the address, percent-encoding and all; to addresses with different ones it still does."""
    found = {(parts.username, parts.password) for parts in map(urlsplit, servers)}
    user, password = found.pop()
    if found or user is None:
        return {}
    return {"token": unquote(user)} if password is None else {"user": unquote(user), "password": unquote(password)}
