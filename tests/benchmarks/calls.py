"""Small calls per second from one Python node to another, against the least that any such call can cost.

    python -m tests.benchmarks.calls

The yardstick is nats-py itself with packets of the same shape: the client publishes a request to a subject of the
server's, the server's callback decodes it and publishes a response to a subject of the client's, both as JSON by
msgspec. Both sides of both subjects run in this process, on connections of their own.
"""

import asyncio
import statistics
from typing import Any

import anyio
import msgspec
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from broker import Context, Service, ServiceBroker, action
from tests.benchmarks.measure import figures, interleaved, temporary_nats

ROUNDS = 5
CALLS = 5000
PARAMS = {"a": 1, "b": 2}


class Math(Service):
    name = "math"

    @action
    async def add(self, ctx: Context, a: int, b: int) -> int:
        return a + b


class BareCaller:
    """Requests and responses over nats-py alone."""

    def __init__(self, client: Client, server: Client) -> None:
        self._client = client
        self._server = server
        self._waiting: dict[str, asyncio.Future[Any]] = {}
        self._number = 0
        self._encode = msgspec.json.Encoder().encode
        self._decode = msgspec.json.Decoder().decode

    async def subscribe(self) -> None:
        await self._server.subscribe("BARE.REQ.server", cb=self._serve)
        await self._client.subscribe("BARE.RES.client", cb=self._settle)
        await self._server.flush()
        await self._client.flush()

    async def call(self) -> int:
        self._number += 1
        request_id = f"{self._number:036d}"  # as long as the ids of Moleculer
        waiter = self._waiting[request_id] = asyncio.get_running_loop().create_future()
        request = {
            **{"id": request_id, "action": "math.add", "params": PARAMS, "meta": {}, "headers": {}, "timeout": 0},
            **{"level": 1, "tracing": None, "parentID": None, "requestID": request_id, "caller": None},
            **{"stream": False, "ver": "5", "sender": "client"},
        }
        await self._client.publish("BARE.REQ.server", self._encode(request))
        result: int = await waiter
        return result

    async def _serve(self, message: Msg) -> None:
        request = self._decode(message.data)
        result = request["params"]["a"] + request["params"]["b"]
        response = {
            **{"id": request["id"], "meta": {}, "headers": {}, "success": True, "data": result},
            **{"ver": "5", "sender": "server"},
        }
        await self._server.publish(f"BARE.RES.{request['sender']}", self._encode(response))

    async def _settle(self, message: Msg) -> None:
        response = self._decode(message.data)
        self._waiting.pop(response["id"]).set_result(response["data"])


async def compare(url: str, at_once: int) -> None:
    bare_client, bare_server = await nats.connect(url), await nats.connect(url)
    bare = BareCaller(bare_client, bare_server)
    await bare.subscribe()
    async with (
        ServiceBroker("server", namespace="bench", transporter=url, services=[Math()]),
        ServiceBroker("client", namespace="bench", transporter=url) as client,
    ):
        await client.wait_for_services("math")

        async def call() -> None:
            assert await client.call("math.add", PARAMS) == 3

        results = await interleaved(
            {"broker.call": call, "nats-py alone": bare.call}, rounds=ROUNDS, calls=CALLS, at_once=at_once
        )
    await bare_client.close()
    await bare_server.close()
    ratio = statistics.median(results["broker.call"]) / statistics.median(results["nats-py alone"])
    print(f"{at_once} call{'s' * (at_once > 1)} at once, {ROUNDS} rounds of {CALLS}:")
    for name, rates in results.items():
        print(figures(name, rates))
    print(f"  {'ratio':<34} {ratio:>9.2f}")


async def main() -> None:
    async with temporary_nats() as url:
        for at_once in (1, 100):
            await compare(url, at_once)


if __name__ == "__main__":
    anyio.run(main)
