"""Streams between a Python node and a JS node, in both directions: bytes, values, ends and errors."""

import hashlib
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from broker import Context, MoleculerError, Service, ServiceBroker, action
from tests.support.js_node import VERSIONS, JsError, JsNode, js_node

pytestmark = pytest.mark.anyio

LARGE = {"size": 3_000_000, "chunk": 100_000}
SHAPES = [{"size": 0, "chunk": 10}, {"size": 1, "chunk": 10}, {"size": 100_000, "chunk": 1000}, LARGE]
VALUES = [{"a": [1, None]}, "text", 5, [1, 2], {"type": "text", "é": "😀"}]


def make(size: int, chunk: int) -> Iterator[bytes]:
    """The same bytes as those that js/streams.cjs makes."""
    pattern = bytes(range(251))
    for start in range(0, size, chunk):
        first = start % 251
        length = min(chunk, size - start)
        yield (pattern * (length // 251 + 2))[first : first + length]


def sha1(order: dict[str, int]) -> str:
    return hashlib.sha1(b"".join(make(**order))).hexdigest()


async def read(stream: Any) -> dict[str, Any]:
    digest, size, objects = hashlib.sha1(), 0, []
    async for chunk in stream:
        if isinstance(chunk, bytes):
            digest.update(chunk)
            size += len(chunk)
        else:
            objects.append(chunk)
    return {"size": size, "sha1": digest.hexdigest(), "objects": objects}


class PythonStreams(Service):
    name = "pystreams"

    @action
    async def receive(self, ctx: Context) -> dict[str, Any]:
        return {**await read(ctx.stream), "meta": ctx.meta.get("name")}

    @action
    async def send(self, ctx: Context) -> AsyncIterator[Any]:
        order = dict(ctx.params)
        for value in order.get("objects", ()):
            yield value
        stop = order.pop("breakAfter", None)
        for number, chunk in enumerate(() if "objects" in order else make(**order)):
            if number == stop:
                raise MoleculerError("broken on purpose", 418, "BROKEN", {"after": stop})
            yield chunk

    @action
    async def back(self, ctx: Context) -> Any:
        return ctx.stream


@dataclass(frozen=True)
class Pair:
    js: JsNode
    broker: ServiceBroker
    version: str


@pytest.fixture(scope="module", params=VERSIONS)
async def pair(request: pytest.FixtureRequest, nats_url: str, js_modules: object) -> AsyncIterator[Pair]:
    namespace = f"streams-{uuid.uuid4().hex[:12]}"
    async with (
        js_node(request.param, nats_url, namespace, "js") as js,
        ServiceBroker("py", namespace=namespace, transporter=nats_url, services=[PythonStreams()]) as broker,
    ):
        await js.create_service("streams")
        await js.wait_for_services("pystreams")
        await broker.wait_for_services("streams", timeout=30)
        yield Pair(js, broker, request.param)


@pytest.mark.parametrize("order", SHAPES, ids=lambda order: str(order["size"]))
async def test_c67_c68_bytes_arrive_as_they_were_sent(pair: Pair, order: dict[str, int]) -> None:
    expected = {"size": order["size"], "sha1": sha1(order), "objects": []}
    to_js = await pair.broker.call("streams.receive", stream=make(**order), meta={"name": "n"}, timeout=60)
    assert to_js == {**expected, "meta": "n"}
    to_python = await pair.js.command("sendStream", action="pystreams.receive", order=order, meta={"name": "n"})
    assert to_python == {**expected, "meta": "n"}
    assert await read(await pair.broker.call("streams.send", order, timeout=60)) == expected
    assert await pair.js.command("callForStream", action="pystreams.send", params=order) == expected


async def test_c67_c68_values_arrive_as_they_were_sent(pair: Pair) -> None:
    order = {"objects": VALUES}
    assert (await pair.broker.call("streams.receive", stream=VALUES, timeout=60))["objects"] == VALUES
    answer = await pair.js.command("sendStream", action="pystreams.receive", order=order, meta={})
    assert answer["objects"] == VALUES
    assert (await read(await pair.broker.call("streams.send", order, timeout=60)))["objects"] == VALUES
    assert (await pair.js.command("callForStream", action="pystreams.send", params=order))["objects"] == VALUES


async def test_c67_c68_a_stream_is_sent_there_and_back(pair: Pair) -> None:
    order = {"size": 200_000, "chunk": 5000}
    expected = {"size": order["size"], "sha1": sha1(order), "objects": []}
    assert await read(await pair.broker.call("streams.back", stream=make(**order), timeout=60)) == expected
    assert await pair.js.command("sendStream", action="pystreams.back", order=order, meta={}) == expected


async def test_c71_a_js_answer_stream_that_fails_raises_its_error_at_the_reader(pair: Pair) -> None:
    # Large: with a small one, JS may see the error before the stream is read, and then sends neither error nor end.
    stream = await pair.broker.call("streams.send", {**LARGE, "breakAfter": 3}, timeout=60)
    with pytest.raises(MoleculerError, match="broken on purpose") as caught:
        await read(stream)
    assert (caught.value.code, caught.value.type, caught.value.data) == (418, "BROKEN", {"after": 3})


@pytest.mark.parametrize("order", [{**LARGE, "breakAfter": 3}, {"size": 3, "chunk": 1, "breakAfter": 1}], ids=str)
async def test_c71_an_answer_stream_that_fails_early_raises_its_error_at_the_js_reader(
    pair: Pair, order: dict[str, int]
) -> None:
    with pytest.raises(JsError) as caught:
        await pair.js.command("callForStream", action="pystreams.send", params=order)
    error = caught.value
    assert (error.name, error.code, error.data) == ("MoleculerError", 418, {"after": order["breakAfter"]})


async def test_c71_a_request_stream_that_fails_raises_the_writers_error_at_the_handler(pair: Pair) -> None:
    def broken() -> Iterator[bytes]:
        yield b"one"
        raise MoleculerError("broken on purpose", 418, "BROKEN", {"after": 1})

    with pytest.raises(MoleculerError, match="broken on purpose") as in_python:
        await pair.broker.call("streams.receive", stream=broken(), timeout=60)
    assert (in_python.value.code, in_python.value.type) == (418, "BROKEN")
    order = {"size": 10_000, "chunk": 1000, "breakAfter": 3}
    with pytest.raises(JsError) as in_js:
        await pair.js.command("sendStream", action="pystreams.receive", order=order, meta={})
    assert (in_js.value.code, in_js.value.type) == (418, "BROKEN")


async def test_js_has_logged_no_errors_during_these_tests(pair: Pair) -> None:
    # The first DISCOVER of a Python node that knows no peers is in version 5; 0.14 logs that once.
    assert [line for line in pair.js.logged() if "DISCOVER" not in line] == []
