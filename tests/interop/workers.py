"""The services of the three workers that a supervisor drives; their twins in JavaScript are in js/workers.cjs."""

import hashlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import anyio

from broker import Context, MoleculerClientError, MoleculerRetryableError, Service, action, event

__all__ = ["Mail", "Work"]


class Work(Service):
    name = "work"

    def __init__(self) -> None:
        self.counted: Counter[str] = Counter()

    @action
    async def counts(self, ctx: Context) -> dict[str, int]:
        return dict(self.counted)

    @action
    async def who(self, ctx: Context) -> str:
        self.counted["who"] += 1
        return self.broker.node_id

    @action
    async def echo(self, ctx: Context) -> Any:
        return ctx.params

    @action
    async def add(self, ctx: Context, a: float, b: float) -> float:
        return a + b

    @action
    async def refuse(self, ctx: Context) -> None:
        self.counted["refuse"] += 1
        raise MoleculerClientError("refused", 418, "TEAPOT", {"hot": [True]})

    @action
    async def busy(self, ctx: Context) -> None:
        self.counted["busy"] += 1
        raise MoleculerRetryableError("busy", 503, "BUSY", {"left": 2})

    @action
    async def never(self, ctx: Context) -> None:
        await anyio.sleep_forever()

    @action
    async def chain(self, ctx: Context, path: list[str], end: str | None = None) -> Any:
        """Calls itself on each node of the path in turn."""
        self.counted[f"chain from {ctx.caller or 'null'} at level {ctx.level}"] += 1
        ctx.meta["trail"] = [*ctx.meta.get("trail", ()), self.broker.node_id]
        if path:
            return await ctx.call("work.chain", {"path": path[1:], "end": end}, node_id=path[0])
        return await ctx.call(end) if end else {"id": ctx.request_id}

    @action
    async def notify(self, ctx: Context) -> bool:
        await ctx.emit("news.emitted", {"n": 1})
        await ctx.broadcast("news.broadcast", {"n": 2})
        await ctx.emit("$news.emitted", {"n": 3})
        await ctx.broadcast("$news.broadcast", {"n": 4})
        return True

    @action
    async def announce(self, ctx: Context) -> bool:
        await ctx.emit("$job.done", {"n": "own"})
        await ctx.broadcast("$job.done", {"n": "own to all"})
        await self.broker.broadcast_local("$job.done", {"n": "own at home"})
        return True

    @action
    async def digest(self, ctx: Context) -> dict[str, Any]:
        data = await ctx.stream.read()
        self.counted[f"digest of {len(data)}"] += 1
        return {"size": len(data), "digest": hashlib.sha256(data).hexdigest(), "label": ctx.meta["label"]}

    @action
    async def invert(self, ctx: Context) -> AsyncIterator[bytes]:
        async for chunk in ctx.stream:
            yield bytes(255 - byte for byte in chunk)

    @action
    async def produce(self, ctx: Context) -> AsyncIterator[Any]:
        yield b"\x07" * 70_000
        yield b"[["

    @action
    async def total(self, ctx: Context) -> int:
        return sum([item["n"] async for item in ctx.stream])

    @action
    async def objects(self, ctx: Context, to: int) -> AsyncIterator[dict[str, Any]]:
        for n in range(to):
            yield {"n": n, "text": f"[[{n}"}

    @event("user.created")
    async def on_created(self, ctx: Context) -> None:
        self.record("user.created", ctx)

    @event("user.*")
    async def on_user(self, ctx: Context) -> None:
        self.record("user.*", ctx)

    @event("order.**", group="accounting")
    async def on_order(self, ctx: Context) -> None:
        self.record("order.**", ctx)

    @event("$job.done")
    async def on_job(self, ctx: Context) -> None:
        self.record("$job.done", ctx)

    @event("*.done", group="every")
    async def on_every(self, ctx: Context) -> None:
        self.record("*.done", ctx)

    @event("$**", group="internal")
    async def on_internal(self, ctx: Context) -> None:
        if str(ctx.event).startswith("$job"):
            self.record("$**", ctx)

    def record(self, pattern: str, ctx: Context) -> None:
        self.counted[f"{pattern} {ctx.event} {ctx.params['n']}"] += 1


class Mail(Service):
    name = "mail"

    def __init__(self) -> None:
        self.counted: Counter[str] = Counter()

    @action
    async def counts(self, ctx: Context) -> dict[str, int]:
        return dict(self.counted)

    @event("user.created")
    async def on_created(self, ctx: Context) -> None:
        self.counted[f"user.created {ctx.params['n']}"] += 1

    @event("order.paid", group="accounting")
    async def on_paid(self, ctx: Context) -> None:
        self.counted[f"order.paid {ctx.params['n']}"] += 1

    @event("$job.*")
    async def on_job(self, ctx: Context) -> None:
        self.counted[f"$job.* {ctx.params['n']}"] += 1
