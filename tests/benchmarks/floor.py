"""The least that a Moleculer-shaped call costs in Python: nats-py and msgspec, and nothing of a node.

Requests and responses have all fields of the envelope; a request gets a context, typed params and a task of its own,
and a caller waits for a future. There is no registry, no middleware, no timeout, no stream, and no care for bad input.
With `direct`, packets go from nats-py's parser straight to the handler; without, by ordinary subscriptions.
"""

import asyncio
import itertools
import uuid
from typing import Any

import msgspec
import nats
from msgspec import Raw, Struct
from nats.aio.client import Client

__all__ = ["FloorCaller", "serve"]

SERVER, CALLER = "floor.server", "floor.caller"


class Envelope(Struct, kw_only=True):
    ver: str = "5"
    sender: str
    id: str
    meta: dict[str, Any] = {}
    headers: dict[str, Any] = {}


class Request(Envelope):
    action: str
    params: Raw
    timeout: float = 0
    level: int = 1
    tracing: bool | None = None
    parent_id: str | None = msgspec.field(default=None, name="parentID")
    request_id: str | None = msgspec.field(default=None, name="requestID")
    caller: str | None = None
    stream: bool = False


class Response(Envelope):
    success: bool
    data: Raw = Raw(b"null")
    error: Any = None


class Numbers(Struct):
    a: int
    b: int


class FloorContext:
    __slots__ = ("action", "caller", "id", "level", "meta", "params", "request_id")

    def __init__(self, action: str, params: Any, meta: dict[str, Any], id: str, request_id: str | None) -> None:
        self.action = action
        self.params = params
        self.meta = meta
        self.id = id
        self.request_id = request_id
        self.level = 1
        self.caller = None


ENCODE = msgspec.json.Encoder().encode


async def _add(ctx: FloorContext, a: int, b: int) -> int:
    return a + b


async def _receive(client: Client, subject: str, take: Any, *, direct: bool) -> None:
    """Have `take` called with the bytes of each message."""

    async def on_message(message: Any) -> None:
        take(message.data)

    async def on_parsed(sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        take(data)

    await client.subscribe(subject, cb=on_message)
    if direct:
        client._process_msg = on_parsed  # type: ignore[method-assign] # the floor is measured, not used
    await client.flush()


async def serve(url: str, *, direct: bool) -> None:
    """Answer requests until cancelled."""
    client = await nats.connect(url)
    decode, numbers = msgspec.json.Decoder(Request).decode, msgspec.json.Decoder(Numbers).decode
    loop, tasks = asyncio.get_running_loop(), set[asyncio.Task[None]]()

    async def answer(request: Request) -> None:
        ctx = FloorContext(request.action, request.params, request.meta, request.id, request.request_id)
        try:
            given = numbers(request.params)
            result = Raw(ENCODE(await _add(ctx, given.a, given.b)))
            response = Response(sender="server", id=request.id, success=True, data=result, meta=ctx.meta)
        except Exception as error:
            response = Response(sender="server", id=request.id, success=False, error={"message": str(error)})
        await client.publish(CALLER, ENCODE(response))

    def take(data: bytes) -> None:
        task = loop.create_task(answer(decode(data)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    await _receive(client, SERVER, take, direct=direct)
    print("ready", flush=True)
    await asyncio.Event().wait()


class FloorCaller:
    """Makes calls of the server."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._pending: dict[str, asyncio.Future[Response]] = {}
        self._ids = itertools.count()
        self._prefix = uuid.uuid4().hex[:24]
        self._decode = msgspec.json.Decoder(Response).decode
        self._value = msgspec.json.Decoder().decode

    async def subscribe(self, *, direct: bool) -> None:
        await _receive(self._client, CALLER, self._take, direct=direct)

    def _take(self, data: bytes) -> None:
        response = self._decode(data)
        waiter = self._pending.pop(response.id, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(response)

    async def call(self, action: str, params: Any) -> Any:
        ctx = FloorContext(action, params, {}, f"{self._prefix}{next(self._ids):012d}", None)
        waiter = self._pending[ctx.id] = asyncio.get_running_loop().create_future()
        data = Raw(ENCODE(params))
        request = Request(
            sender="caller", id=ctx.id, action=action, params=data, meta=ctx.meta, request_id=ctx.id, level=ctx.level
        )
        await self._client.publish(SERVER, ENCODE(request))
        response = await waiter
        if response.meta:
            ctx.meta.update(response.meta)
        if not response.success:
            raise RuntimeError(response.error)
        return self._value(response.data)
