"""The services that tests put on a Python node, twins of those in js/fixtures.cjs."""

import time
from collections.abc import Mapping
from typing import Annotated, Any

import anyio
import msgspec

import broker.errors
from broker import Context, MoleculerClientError, MoleculerError, Service, action

__all__ = ["PythonChain", "PythonEcho", "PythonErrors", "PythonMath", "PythonSlow", "python_services"]


class PythonMath(Service):
    """Typed parameters: invalid ones are refused."""

    name = "pymath"
    settings: Mapping[str, Any] = {"precision": 2}
    metadata: Mapping[str, Any] = {"region": "test"}

    @action
    async def add(self, ctx: Context, a: float, b: float = 1) -> float:
        return a + b

    @action(visibility="protected")
    async def secret(self, ctx: Context) -> str:
        return "secret"

    @action(visibility="private")
    async def hidden(self, ctx: Context) -> str:
        return "hidden"

    @action
    async def longest(self, ctx: Context, words: Annotated[list[str], msgspec.Meta(min_length=1)]) -> str:
        return max(words, key=len)


class PythonEcho(Service):
    """Returns what arrived, and changes the meta on request."""

    name = "pyecho"

    @action
    async def params(self, ctx: Context) -> Any:
        return ctx.params

    @action
    async def nothing(self, ctx: Context) -> None:
        return None

    @action
    async def big(self, ctx: Context, size: int) -> str:
        return "x" * size

    @action
    async def context(self, ctx: Context) -> dict[str, Any]:
        return {
            "params": ctx.params,
            "meta": ctx.meta,
            "headers": ctx.headers,
            "requestID": ctx.request_id,
            "parentID": ctx.parent_id,
            "level": ctx.level,
            "caller": ctx.caller,
            "nodeID": ctx.node_id,
            "id": ctx.id,
            "left": None if ctx.deadline is None else ctx.deadline - anyio.current_time(),
        }

    @action(name="setMeta")
    async def set_meta(self, ctx: Context) -> bool:
        ctx.meta.update(ctx.params)
        return True

    @action(name="changeMeta")
    async def change_meta(self, ctx: Context, set: dict[str, Any], remove: list[str], fails: bool = False) -> bool:
        for name in remove:
            del ctx.meta[name]
        ctx.meta.update(set)
        if fails:
            raise MoleculerClientError("asked to fail")
        return True


class PythonSlow(Service):
    """Answers after `ms` with the times of its start and end by its own clock."""

    name = "pyslow"

    @action
    async def wait(self, ctx: Context, ms: float) -> dict[str, float]:
        started = time.monotonic() * 1000
        await anyio.sleep(ms / 1000)
        return {"started": started, "ended": time.monotonic() * 1000}

    @action
    async def block(self, ctx: Context, ms: float) -> None:
        time.sleep(ms / 1000)  # noqa: ASYNC251 - nothing else of the node runs meanwhile

    @action(timeout=0.2)
    async def impatient(self, ctx: Context) -> None:
        await anyio.sleep_forever()


class HomemadeError(MoleculerError):
    """A class that no other node knows."""


class PythonErrors(Service):
    """Raises the requested error."""

    name = "pyerrors"

    @action(name="throw")
    async def throw(self, ctx: Context) -> None:
        raise make_error(**ctx.params)


class PythonChain(Service):
    """Calls on."""

    name = "pychain"

    @action
    async def call(self, ctx: Context) -> dict[str, Any]:
        options = ctx.params.get("options", {})
        result = await ctx.call(ctx.params["action"], ctx.params.get("params", {}), **options)
        return {"result": result, "level": ctx.level, "requestID": ctx.request_id, "meta": ctx.meta}

    @action
    async def countdown(self, ctx: Context, steps: int, next: str) -> list[str]:
        if steps == 0:
            return []
        path = await ctx.call(next, {"steps": steps - 1, "next": "pychain.countdown"})
        return [self.broker.node_id, *path]


def make_error(**order: Any) -> Exception:
    """The error of `{class, message?, code?, type?, data?}`, as its class is made."""
    name, message, data = order["class"], order.get("message"), order.get("data")
    if name == "KeyError":
        return KeyError(message)
    kind = HomemadeError if name == "HomemadeError" else getattr(broker.errors, name)
    if kind is broker.errors.ValidationError:
        return broker.errors.ValidationError(message, order.get("type"), data)
    if kind in (broker.errors.ServiceSchemaError, broker.errors.BrokerOptionsError):
        made: Exception = kind(message, data)
        return made
    if issubclass(kind, broker.errors.MoleculerError) and kind.default_type is not None:
        made = kind(data)
        return made
    made = kind(message, order.get("code"), order.get("type"), data)
    return made


def python_services() -> list[Service]:
    return [PythonMath(), PythonEcho(), PythonSlow(), PythonErrors(), PythonChain()]
