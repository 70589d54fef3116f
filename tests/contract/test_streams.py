"""Streams between two Python nodes over memory and NATS: exact, bounded, and stopped by either end."""

import hashlib
import random
import uuid
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

from broker import (
    Context,
    MoleculerClientError,
    MoleculerError,
    QueueIsFullError,
    Service,
    ServiceBroker,
    ServiceNotFoundError,
    action,
)
from broker.defaults import STREAM_CHUNK_BYTES, STREAM_MARK_BYTES, STREAM_MARKS_AHEAD
from tests.support.cluster import Cluster, shorten_waits
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio
DEADLINE_S = 60
MEGABYTE = 1_000_000


class Streams(Service):
    name = "streams"

    def __init__(self) -> None:
        self.sent = 0
        self.outcomes: list[Any] = []
        self.closed = anyio.Event()
        self.go_on = anyio.Event()

    @action
    async def digest(self, ctx: Context) -> list[Any]:
        digest, size = hashlib.sha256(), 0
        async for chunk in ctx.stream:
            digest.update(chunk)
            size += len(chunk)
        return [size, digest.hexdigest()]

    @action
    async def echo(self, ctx: Context) -> AsyncIterator[Any]:
        async for chunk in ctx.stream:
            yield chunk

    @action
    async def endless(self, ctx: Context) -> AsyncIterator[bytes]:
        try:
            while True:
                self.sent += 100_000
                yield bytes(100_000)
        finally:
            self.closed.set()

    @action
    async def one_and_no_more(self, ctx: Context) -> AsyncIterator[bytes]:
        try:
            yield b"one"
            await anyio.sleep_forever()
        finally:
            await anyio.lowlevel.checkpoint()  # closing a source may take time, too
            self.closed.set()

    @action
    async def slowly(self, ctx: Context) -> AsyncIterator[bytes]:
        try:
            yield bytes(STREAM_CHUNK_BYTES)
            await self.go_on.wait()
            while True:
                yield bytes(STREAM_CHUNK_BYTES)
        finally:
            self.closed.set()

    @action
    async def outcome(self, ctx: Context) -> None:
        """Records how its stream ended."""
        try:
            self.outcomes.append(await ctx.stream.read())
        except MoleculerError as error:
            self.outcomes.append(error.name)
        self.closed.set()

    @action
    async def ignore(self, ctx: Context) -> str:
        return "not interested"

    @action
    async def fails_at_once(self, ctx: Context) -> AsyncIterator[bytes]:
        raise MoleculerClientError("no stream today", 418, "TEAPOT")
        yield b""

    @action
    async def never_begins(self, ctx: Context) -> AsyncIterator[bytes]:
        await anyio.sleep_forever()
        yield b""

    @action
    async def feed(self, ctx: Context) -> AsyncIterator[Any]:
        """Yields nothing until the test provides an item."""
        try:
            await self.go_on.wait()
            for outcome in self.outcomes:
                if isinstance(outcome, Exception):
                    raise outcome
                yield outcome
        finally:
            self.closed.set()

    @action
    async def late(self, ctx: Context) -> AsyncIterator[bytes]:
        self.outcomes.append("asked")
        try:
            await self.go_on.wait()
            while True:
                yield bytes(STREAM_CHUNK_BYTES)
        finally:
            self.closed.set()

    @action
    async def headers_and_meta(self, ctx: Context) -> AsyncIterator[dict[str, Any]]:
        ctx.meta["left"] = 1
        yield {"meta": dict(ctx.meta), "headers": ctx.headers, "params": ctx.params}


class Pair:
    """A caller and a node with the service."""

    def __init__(self, caller: ServiceBroker, server: ServiceBroker, service: Streams) -> None:
        self.caller = caller
        self.server = server
        self.service = service

    async def call(self, action: str, *arguments: Any, **options: Any) -> Any:
        return await self.caller.call(f"streams.{action}", *arguments, timeout=DEADLINE_S, **options)


@pytest.fixture(params=["memory", "nats"])
async def pair(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pair]:
    shorten_waits(monkeypatch)
    name = f"streams-{uuid.uuid4().hex[:12]}"
    url = f"memory://{name}" if request.param == "memory" else cast(str, request.getfixturevalue("nats_url"))
    service = Streams()
    async with (
        ServiceBroker("caller", namespace=name, transporter=url) as caller,
        ServiceBroker("server", namespace=name, transporter=url, services=[service], shutdown_timeout=1) as server,
    ):
        await caller.wait_for_services("streams", timeout=DEADLINE_S)
        yield Pair(caller, server, service)


async def test_bytes_arrive_as_they_were_sent(pair: Pair) -> None:
    seed = random.SystemRandom().randrange(2**32)
    data = random.Random(seed).randbytes(5 * MEGABYTE)
    assert await pair.call("digest", stream=data) == [len(data), hashlib.sha256(data).hexdigest()], f"seed {seed}"


async def test_values_arrive_as_they_were_sent(pair: Pair) -> None:
    values = [{"a": [1, None, "é"]}, "text", 0, False, {"type": "Buffer?"}]
    assert [value async for value in await pair.call("echo", stream=values)] == values


async def test_both_directions_of_a_stream_flow_concurrently(pair: Pair) -> None:
    asked = anyio.Event()

    async def source() -> AsyncIterator[bytes]:
        yield b"first"
        await asked.wait()
        yield b"second"

    stream = await pair.call("echo", stream=source())
    assert await anext(stream) == b"first"
    asked.set()
    assert [chunk async for chunk in stream] == [b"second"]


async def test_an_empty_stream_ends(pair: Pair) -> None:
    assert await pair.call("digest", stream=[]) == [0, hashlib.sha256().hexdigest()]
    assert await (await pair.call("echo", stream=[])).read() == b""


@pytest.mark.parametrize("known", [True, False], ids=["", "not introduced"])
async def test_a_slow_reader_pauses_the_writer(pair: Pair, known: bool) -> None:
    """At most the high-water marks, the chunks around them, and one that waits to be sent."""
    if not known:
        pair.server._node.transit.registry.forget("caller")
    stream = await pair.call("endless")
    assert len(await anext(stream)) == 100_000
    with anyio.fail_after(DEADLINE_S):
        while True:
            before = pair.service.sent
            await anyio.sleep(0.05)  # long enough for a writer without backpressure to send more
            if pair.service.sent == before:
                break
    assert pair.service.sent <= STREAM_MARK_BYTES * (STREAM_MARKS_AHEAD + 2)
    async with stream:
        for _ in range(70):
            await anext(stream)
    assert pair.service.sent >= 70 * 100_000 > STREAM_MARK_BYTES * (STREAM_MARKS_AHEAD + 2)


async def test_other_tasks_run_while_a_stream_is_sent(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.streams.writer.SLICE_S", 0.0)
    turns, at = 0, []

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async def source() -> AsyncIterator[bytes]:
        for _ in range(30):  # less than may be in flight at once
            at.append(turns)
            yield bytes(1_000)

    async with anyio.create_task_group() as group:
        group.start_soon(take_turns)
        assert (await pair.call("digest", stream=source()))[0] == 30_000
        group.cancel_scope.cancel()
    assert len(set(at)) >= 29


async def test_a_reader_that_stops_ends_the_writer_and_leaves_nothing_pending(pair: Pair) -> None:
    async with await pair.call("endless") as stream:
        await anext(stream)
    with anyio.fail_after(DEADLINE_S):
        await pair.service.closed.wait()
        while pair.caller._node.transit.streams.open or len(pair.server._node.effects.writers):
            await pair.caller.ping("server")  # packets that the server sent before the answer have arrived with it


async def test_a_reader_that_stops_ends_a_writer_that_waits_for_its_next_item(pair: Pair) -> None:
    stream = await pair.call("one_and_no_more")
    assert await anext(stream) == b"one"
    await stream.aclose()
    with anyio.fail_after(DEADLINE_S):
        await pair.service.closed.wait()


async def test_leaving_the_loop_over_a_stream_ends_its_writer(pair: Pair) -> None:
    async for _ in await pair.call("one_and_no_more"):
        break
    with anyio.fail_after(DEADLINE_S):
        await pair.service.closed.wait()


async def test_a_cancelled_call_breaks_its_request_stream_at_once(pair: Pair) -> None:
    began, closed = anyio.Event(), anyio.Event()

    async def source() -> AsyncIterator[bytes]:
        try:
            yield b"some"
            began.set()
            await anyio.sleep_forever()
        finally:
            await anyio.lowlevel.checkpoint()
            closed.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(pair.call, "outcome", stream=source()))
        await began.wait()
        tasks.cancel_scope.cancel()
    with anyio.fail_after(DEADLINE_S):
        await closed.wait()
        await pair.service.closed.wait()
    assert pair.service.outcomes == ["RequestRejectedError"]


async def test_a_source_that_fails_to_close_affects_nothing_else(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    async def source() -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(STREAM_CHUNK_BYTES)
        finally:
            raise ValueError("failed at the end")

    assert await pair.call("ignore", stream=source()) == "not interested"
    assert await pair.call("digest", stream=[b"a"]) == [1, hashlib.sha256(b"a").hexdigest()]
    assert [record.getMessage() for record in caplog.records] == [
        "The source of a stream failed when it was closed",
    ]


async def test_a_source_exception_that_cannot_be_encoded_is_another_error_at_the_reader(pair: Pair) -> None:
    async def breaking() -> AsyncIterator[bytes]:
        yield b"a"
        raise MoleculerClientError("broke", 418, "TEAPOT", {"no": object()})

    with pytest.raises(MoleculerError) as caught:
        await pair.call("digest", stream=breaking())
    assert caught.value.type == "UNSERIALIZABLE"
    assert await pair.call("ignore", stream=[b"a"]) == "not interested"


async def test_a_source_is_closed_even_if_its_call_is_not_sent(pair: Pair) -> None:
    closed = anyio.Event()

    async def source() -> AsyncIterator[bytes]:
        try:
            yield b"some"
        finally:
            closed.set()

    pair.caller._node.transit.requests._limit = 0
    with pytest.raises(QueueIsFullError):
        await pair.call("digest", stream=source())
    with anyio.fail_after(DEADLINE_S):
        await closed.wait()


async def test_c74_the_loss_of_the_reader_ends_the_writer(cluster: Cluster) -> None:
    service = Streams()
    caller, server = await cluster.start(("caller", []), ("server", [service]))
    stream = await caller.call("streams.one_and_no_more", timeout=DEADLINE_S)
    assert await anext(stream) == b"one"
    await cluster.kill(caller)
    server._node.transit.registry.nodes["caller"].last_heartbeat = -1000.0
    with anyio.fail_after(DEADLINE_S):
        await service.closed.wait()


async def test_c74_a_writer_learns_from_nats_that_its_reader_is_gone(cluster: Cluster) -> None:
    service = Streams()
    caller, server = await cluster.start(("caller", []), ("server", [service]))
    stream = await caller.call("streams.slowly", timeout=DEADLINE_S)
    assert len(await anext(stream)) > 0
    await cluster.kill(caller)
    service.go_on.set()
    with anyio.fail_after(DEADLINE_S):
        await service.closed.wait()
    assert not server.registry.nodes["caller"].available


async def test_a_stream_goes_completely_to_another_node_when_the_first_is_gone(cluster: Cluster) -> None:
    """No part of it may be sent to the node that is gone."""
    caller, one, _other = await cluster.start(
        ("caller", []), ("one", [Streams()]), ("other", [Streams()]), prefer_local=False
    )
    await cluster.kill(one)
    values = list(range(500))
    for _ in range(2):  # one of them would go to the node that is gone
        assert [value async for value in await caller.call("streams.echo", stream=values)] == values


async def test_a_handler_that_does_not_read_ends_the_writer(pair: Pair) -> None:
    closed = anyio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(STREAM_CHUNK_BYTES)
        finally:
            closed.set()

    assert await pair.call("ignore", stream=endless()) == "not interested"
    with anyio.fail_after(DEADLINE_S):
        await closed.wait()


async def test_a_cancelled_call_ends_its_handler_and_its_source(pair: Pair) -> None:
    """The handler must not wait for the rest of a stream whose sender has stopped."""
    closed = anyio.Event()

    async def slow() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"a"
                await anyio.sleep(0.001)
        finally:
            closed.set()

    async def call() -> None:
        await pair.caller.call("streams.digest", stream=slow())

    transit = pair.server._node.transit
    for delay_s in (0.0, 0.001, 0.02, 0.05):
        closed = anyio.Event()
        with anyio.move_on_after(delay_s):
            await call()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await eventually(lambda: len(transit.in_work) == 1, "the handler")
        tasks.cancel_scope.cancel()
    with anyio.fail_after(DEADLINE_S / 4):  # well below the time after which a silent stream ends
        await closed.wait()
        await eventually(lambda: not transit.in_work and not transit.streams.open, "the end of all handlers")
    assert len(pair.caller._node.effects.writers) == 0


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams open without their first item after a short time."""
    monkeypatch.setattr("broker.streams.writer.STREAM_OPENING_S", 0.01)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("outcomes", [[], [b"a", bytes(range(256)) * 9000], [{"a": 1}, b"b", "c"]], ids=["", "b", "v"])
async def test_an_answer_opens_before_its_first_item_is_ready(pair: Pair, outcomes: list[Any]) -> None:
    feed = await pair.call("feed")
    assert not pair.service.go_on.is_set()
    pair.service.outcomes = outcomes
    pair.service.go_on.set()
    items = [item async for item in feed]
    if outcomes[:1] == [b"a"]:
        items = [b"a", b"".join(items[1:])]  # bytes are cut to fit
    assert items == outcomes


@pytest.mark.usefixtures("hasty")
async def test_an_error_after_an_early_opening_is_raised_at_the_reader(pair: Pair) -> None:
    feed = await pair.call("feed")
    pair.service.outcomes = [MoleculerClientError("no more", 418, "TEAPOT")]
    pair.service.go_on.set()
    with pytest.raises(MoleculerClientError, match="no more"):
        await anext(feed)


@pytest.mark.usefixtures("hasty")
async def test_two_nodes_can_talk_over_streams_that_open_without_an_item(pair: Pair) -> None:
    send, receive = anyio.create_memory_object_stream[Any](1)
    answers = await pair.call("echo", stream=receive)
    for word in ("one", {"two": 2}, b"three"):
        await send.send(word)
        assert await anext(answers) == word
    await send.aclose()
    assert [word async for word in answers] == []


@pytest.mark.usefixtures("hasty")
async def test_a_stream_cancelled_before_its_first_item_leaves_nothing_pending(pair: Pair) -> None:
    closed = anyio.Event()

    async def silent() -> AsyncIterator[bytes]:
        try:
            await anyio.sleep_forever()
            yield b""
        finally:
            closed.set()

    transit = pair.server._node.transit
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(pair.call, "digest", stream=silent()))
        await eventually(lambda: len(transit.in_work) == 1, "the handler")
        tasks.cancel_scope.cancel()
    with anyio.fail_after(DEADLINE_S / 4):
        await closed.wait()
        await eventually(lambda: not transit.in_work and not transit.streams.open, "the end of the handler")
    assert len(pair.caller._node.effects.writers) == 0


async def test_an_answer_stream_that_opens_after_its_call_was_cancelled_ends_its_writer(pair: Pair) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pair.call, "late")
        await eventually(lambda: pair.service.outcomes == ["asked"], "the handler")
        tasks.cancel_scope.cancel()
    pair.service.go_on.set()
    with anyio.fail_after(DEADLINE_S / 4):
        await pair.service.closed.wait()
        await eventually(lambda: not pair.server._node.transit.in_work, "the end of the handler")
    assert len(pair.server._node.effects.writers) == 0


async def test_an_error_before_the_first_chunk_fails_the_call(pair: Pair) -> None:
    with pytest.raises(MoleculerClientError, match="no stream today") as caught:
        await pair.call("fails_at_once")
    assert caught.value.code == 418


async def test_a_source_exception_is_raised_at_the_reader(pair: Pair) -> None:
    async def breaking() -> AsyncIterator[bytes]:
        yield b"a"
        raise MoleculerClientError("broke", 418)

    with pytest.raises(MoleculerError, match="broke") as caught:
        await pair.call("digest", stream=breaking())
    assert caught.value.code == 418


async def test_the_timeout_covers_only_the_opening(pair: Pair) -> None:
    with pytest.raises(MoleculerError) as caught:
        await pair.caller.call("streams.never_begins", timeout=0.1)
    assert caught.value.type == "REQUEST_TIMEOUT"


async def test_params_headers_and_meta_are_sent_with_a_stream(pair: Pair) -> None:
    meta: dict[str, Any] = {"m": 1}
    stream = await pair.call("headers_and_meta", {"p": 1}, stream=[b"x"], meta=meta, headers={"h": 1})
    assert await anext(stream) == {"meta": {"m": 1, "left": 1}, "headers": {"h": 1}, "params": {"p": 1}}
    assert meta == {"m": 1, "left": 1}


async def test_a_stream_to_an_unknown_action_is_refused(pair: Pair) -> None:
    with pytest.raises(ServiceNotFoundError):
        await pair.call("no_such", stream=[b"a"])


async def test_c74_a_stopping_node_breaks_the_streams_it_was_sending(pair: Pair) -> None:
    stream = await pair.call("endless")
    await anext(stream)
    await pair.server.stop()
    with pytest.raises(MoleculerError), anyio.fail_after(DEADLINE_S):
        async for _ in stream:
            pass


@pytest.mark.usefixtures("hasty")
async def test_c74_a_stopping_node_breaks_opened_streams_that_have_nothing_to_send(pair: Pair) -> None:
    feed = await pair.call("feed")
    await pair.server.stop()
    with pytest.raises(MoleculerError), anyio.fail_after(DEADLINE_S):
        await anext(feed)
    assert pair.service.closed.is_set()


async def test_a_stream_within_one_node_needs_no_transport() -> None:
    async with ServiceBroker("alone", services=[Streams()]) as broker:
        assert [chunk async for chunk in await broker.call("streams.echo", stream=[b"a", b"b"])] == [b"a", b"b"]
        assert (await broker.call("streams.digest", stream=b"abc"))[0] == 3
