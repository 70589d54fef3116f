"""Example services for the tests of the broker."""

from typing import Annotated, Any

import anyio
from msgspec import Meta, Raw, Struct

from broker import Context, Service, action, event
from broker import errors as broker_errors
from broker.errors import MoleculerError, RemoteError

__all__ = ["Echo", "Gate", "Listener", "Math", "Relay"]


class Point(Struct):
    x: int
    y: int = 0


class Math(Service):
    """Typed parameters and every kind of failure."""

    name = "math"

    @action
    async def add(self, ctx: Context, a: int, b: int, c: Annotated[int, Meta(le=10)] = 0) -> int:
        return a + b + c

    @action
    async def fail(self, ctx: Context) -> None:
        """Raise the error that the params describe."""
        given = ctx.params
        kind: Any = getattr(broker_errors, given["name"], None)
        if kind is None:
            raise RemoteError(given["name"], given["message"], given.get("code"), given.get("type"), given.get("data"))
        data = given.get("data")
        if given["name"] == "BrokerDisconnectedError":
            raise kind(given["message"])
        if given.get("from_data"):
            raise kind(data)
        raise kind(given["message"], data=data)

    @action
    async def crash(self, ctx: Context) -> None:
        raise ZeroDivisionError("by zero")

    @action
    async def odd(self, ctx: Context) -> Any:
        """Returns a result, meta or error data that cannot be encoded as JSON."""
        match ctx.params["where"]:
            case "meta":
                ctx.meta["odd"] = object()
                return 1
            case "data":
                raise MoleculerError("odd", data={"odd": object()})
        return {"odd": object()}

    @action
    async def shapes(self, ctx: Context) -> Any:
        kinds: dict[str, Any] = {
            "struct": Point(1),
            "structs": [Point(1), Point(2)],
            "raw": Raw(b'{"a":1}'),
            "nested": {"rows": [Raw(b"1"), {"point": Point(3)}], "one": Raw(b"[2]")},
            "none": None,
            "text": "é\U0001f600",
            "late": [1, 2, Point(4), Raw(b"5")],
        }
        return kinds[ctx.params]


class Echo(Service):
    """Returns what it received."""

    name = "echo"

    @action
    async def params(self, ctx: Context) -> Any:
        return ctx.params

    @action
    async def context(self, ctx: Context) -> dict[str, Any]:
        return describe(ctx)

    @action
    async def where(self, ctx: Context) -> str:
        return self.broker.node_id

    @action
    async def meta(self, ctx: Context) -> None:
        """Sets the given meta; then fails if the params say so."""
        ctx.meta.update(ctx.params.get("set", {}))
        if ctx.params.get("fail"):
            raise MoleculerError("after setting meta")

    @action
    async def big(self, ctx: Context, size: int) -> str:
        return "x" * size

    @action
    async def limit(self, ctx: Context) -> int | None:
        return ctx.reply_limit

    @action
    async def as_much_as_fits(self, ctx: Context) -> Raw:
        limit = ctx.reply_limit
        assert limit is not None
        return Raw(b'"' + b"x" * (limit - 2) + b'"')


class Relay(Service):
    """Calls other actions."""

    name = "relay"

    @action
    async def forward(self, ctx: Context, action: str, params: Any = None, options: dict[str, Any] = {}) -> Any:  # noqa: B006 - never changed
        return await ctx.call(action, params, **options)

    @action
    async def meta_after(self, ctx: Context, action: str, params: Any = None) -> Any:
        """The meta of this context after a nested call, whether or not it failed."""
        try:
            await ctx.call(action, params)
        except MoleculerError:
            ctx.meta["failed"] = True
        return dict(ctx.meta)


class Gate(Service):
    """Calls that wait until the test releases them."""

    name = "gate"

    def __init__(self) -> None:
        self.inside = 0
        self.most = 0
        self.entered: list[Any] = []
        self.cancelled = 0
        self.opened = anyio.Event()

    @action
    async def wait(self, ctx: Context) -> str:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.entered.append(ctx.params)
        try:
            await self.opened.wait()
        except anyio.get_cancelled_exc_class():
            self.cancelled += 1
            raise
        finally:
            self.inside -= 1
        return self.broker.node_id


class Listener(Service):
    """Keeps the events it receives: (handler, event, params), and their contexts."""

    name = "listener"

    def __init__(self, name: str = "listener") -> None:
        self.name = name  # type: ignore[misc]  # one class serves as several services
        self.received: list[tuple[str, str, Any]] = []
        self.contexts: list[dict[str, Any]] = []

    def note(self, handler: str, ctx: Context) -> None:
        assert ctx.event is not None
        self.received.append((handler, ctx.event, ctx.params))
        self.contexts.append(describe(ctx))

    @event("user.created")
    async def exact(self, ctx: Context) -> None:
        self.note("exact", ctx)

    @event("user.*")
    async def star(self, ctx: Context) -> None:
        self.note("star", ctx)

    @event("order.**", group="orders")
    async def deep(self, ctx: Context) -> None:
        self.note("deep", ctx)

    @event("bad.thing")
    async def failing(self, ctx: Context) -> None:
        self.note("failing", ctx)
        raise RuntimeError("this handler fails")


def describe(ctx: Context) -> dict[str, Any]:
    """The fields of a context as plain values."""
    return {
        "params": ctx.params,
        "meta": dict(ctx.meta),
        "headers": dict(ctx.headers),
        "id": ctx.id,
        "request_id": ctx.request_id,
        "parent_id": ctx.parent_id,
        "caller": ctx.caller,
        "level": ctx.level,
        "node_id": ctx.node_id,
        "left_s": None if ctx.deadline is None else ctx.deadline - anyio.current_time(),
        "event": ctx.event,
    }
