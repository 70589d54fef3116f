"""The same services declared in JavaScript and in Python: every naming rule, visibility and setting of §3.2 and §9."""

from collections.abc import Mapping
from typing import Any

from broker import Context, Service, action, event

__all__ = ["NAMES", "TWINS", "twins"]

TWINS = """
const run = () => true;
broker.createService({ name: "posts", version: 2, metadata: { m: [1] }, actions: { find: run, other: { name: "renamed",
    handler: run } } });
broker.createService({ name: "users", version: "staging", actions: { find: run } });
broker.createService({ name: "nover", version: 3, settings: { $noVersionPrefix: true }, actions: { find: run } });
broker.createService({ name: "nopre", version: 4, settings: { $noServiceNamePrefix: true, $cache: true },
    actions: { call: { name: "direct.call", handler: run } } });
broker.createService({ name: "secret", settings: { $secureSettings: ["password", "db.password", "no.such"], open: 1,
    password: "p", db: { host: "h", password: "p" } } });
broker.createService({ name: "seen", actions: {
    everywhere: { visibility: "published", handler: run }, peers: { visibility: "public", handler: run },
    here: { visibility: "protected", handler: run }, inside: { visibility: "private", handler: run },
    slow: { timeout: 1500, rest: "GET /slow", cache: { ttl: 5 }, handler: run } } });
broker.createService({ name: "listener", version: 1, events: {
    "user.*": { handler() {} }, "order.**": { group: "mail", handler() {} }, "$node.connected": { handler() {} },
    "pre*.k": { handler() {} }, "pre**": { handler() {} }, "q.?": { handler() {} } } });
"""
NAMES = ("posts", "users", "nover", "nopre", "secret", "seen", "listener")


class Posts(Service):
    name = "posts"
    version = 2
    metadata: Mapping[str, Any] = {"m": [1]}

    @action
    async def find(self, ctx: Context) -> bool:
        return True

    @action(name="renamed")
    async def other(self, ctx: Context) -> bool:
        return True


class Users(Service):
    name = "users"
    version = "staging"

    @action
    async def find(self, ctx: Context) -> bool:
        return True


class NoVersion(Service):
    name = "nover"
    version = 3
    settings: Mapping[str, Any] = {"$noVersionPrefix": True}

    @action
    async def find(self, ctx: Context) -> bool:
        return True


class NoPrefix(Service):
    name = "nopre"
    version = 4
    settings: Mapping[str, Any] = {"$noServiceNamePrefix": True, "$cache": True}

    @action(name="direct.call")
    async def call(self, ctx: Context) -> bool:
        return True


class Secret(Service):
    name = "secret"
    settings: Mapping[str, Any] = {
        "$secureSettings": ["password", "db.password", "no.such"],
        "open": 1,
        "password": "p",
        "db": {"host": "h", "password": "p"},
    }


class Visible(Service):
    name = "seen"

    @action(visibility="published")
    async def everywhere(self, ctx: Context) -> bool:
        return True

    @action(visibility="public")
    async def peers(self, ctx: Context) -> bool:
        return True

    @action(visibility="protected")
    async def here(self, ctx: Context) -> bool:
        return True

    @action(visibility="private")
    async def inside(self, ctx: Context) -> bool:
        return True

    @action(timeout=1.5, rest="GET /slow", cache={"ttl": 5}, fallback=lambda ctx, error: "never sent")
    async def slow(self, ctx: Context) -> bool:
        return True


class Listener(Service):
    name = "listener"
    version = 1

    @event("user.*")
    async def on_user(self, ctx: Context) -> None: ...

    @event("order.**", group="mail")
    async def on_order(self, ctx: Context) -> None: ...

    @event("$node.connected")
    async def on_node(self, ctx: Context) -> None: ...

    @event("pre*.k")
    async def on_part(self, ctx: Context) -> None: ...

    @event("pre**")
    async def on_beginning(self, ctx: Context) -> None: ...

    @event("q.?")
    async def on_letter(self, ctx: Context) -> None: ...


def twins() -> list[Service]:
    """What TWINS creates on a JS node."""
    return [Posts(), Users(), NoVersion(), NoPrefix(), Secret(), Visible(), Listener()]
