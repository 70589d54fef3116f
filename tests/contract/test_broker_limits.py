"""Errors instead of timeouts: excess, large and invalid packets are answered at once, and the node keeps running."""

import json
import logging
import random
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import anyio
import cbor2
import pytest

from broker import (
    Context,
    InvalidPacketDataError,
    MoleculerError,
    PayloadTooLargeError,
    QueueIsFullError,
    Service,
    action,
    event,
)
from broker.conversation.transit import Limits
from broker.protocol.packets import Command
from broker.protocol.topics import Topics
from broker.transports.memory import Hub
from tests.conftest import NatsServerFactory
from tests.support.cluster import Cluster, open_cluster, shorten_waits
from tests.support.example_services import Echo, Gate, Math
from tests.support.transits import captured
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

LIMIT = 20_000


@pytest.fixture(params=["memory", "nats"])
async def small_cluster(
    request: pytest.FixtureRequest, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Cluster]:
    """A cluster over a bus that accepts only small messages."""
    shorten_waits(monkeypatch)
    if request.param == "memory":
        hub = Hub.named(namespace)
        hub.max_payload = LIMIT
        url = f"memory://{namespace}"
    else:
        factory: NatsServerFactory = request.getfixturevalue("make_nats_server")
        url = factory(max_payload=LIMIT).url
    async with open_cluster(url, namespace) as cluster:
        yield cluster


class Streams(Service):
    """Streams that fail, in envelopes that leave little room for the reason."""

    name = "streams"

    @action
    async def read(self, ctx: Context) -> int:
        return len(await ctx.stream.read())

    @action
    async def write(self, ctx: Context) -> AsyncIterator[bytes]:
        ctx.response_headers["trace"] = "a" * (LIMIT - 800)
        yield b"a beginning"
        raise ValueError("e" * 3000)


async def test_the_end_of_a_stream_leaves_out_fields_that_do_not_fit(small_cluster: Cluster) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield b"a beginning"
        raise ValueError("e" * 3000)

    _, two = await small_cluster.start(("one", [Streams()]), ("two", []))
    with pytest.raises(PayloadTooLargeError):
        await two.call("streams.read", headers={"trace": "a" * (LIMIT - 800)}, stream=source())
    with pytest.raises(PayloadTooLargeError):
        await (await two.call("streams.write")).read()
    assert await two.call("streams.read", stream=[b"three"]) == 5


async def test_c86_a_result_above_the_size_limit_is_a_413_at_once(small_cluster: Cluster) -> None:
    _, two = await small_cluster.start(("one", [Echo()]), ("two", []))
    assert len(await two.call("echo.big", {"size": LIMIT - 1000})) == LIMIT - 1000
    with pytest.raises(PayloadTooLargeError) as caught:
        await two.call("echo.big", {"size": LIMIT})
    error = caught.value
    assert (error.code, error.type, error.retryable, error.node_id) == (413, "PAYLOAD_TOO_LARGE", False, "one")
    assert error.data["limit"] == LIMIT
    assert error.data["size"] > LIMIT
    assert error.data["action"] == "echo.big"
    assert await two.call("echo.where") == "one"


async def test_an_error_or_meta_above_the_size_limit_is_a_413_too(small_cluster: Cluster) -> None:
    _, two = await small_cluster.start(("one", [Echo(), Math()]), ("two", []))
    with pytest.raises(PayloadTooLargeError):
        await two.call("math.fail", {"name": "MoleculerError", "message": "m" * (LIMIT // 2)})
    with pytest.raises(PayloadTooLargeError):
        await two.call("echo.context", {"text": "x" * 9000}, meta={"text": "y" * 9000})


async def test_a_refusal_that_echoes_more_than_fits_is_a_413_too(small_cluster: Cluster) -> None:
    await small_cluster.start_one("one")
    peer = await small_cluster.raw_peer("peer", "RES")
    odd: list[dict[str, Any]] = [
        {"action": "no.such", "meta": {"text": "x" * (LIMIT - 300)}},
        {"action": "x" * (LIMIT // 2)},
    ]
    for fields in odd:
        answer = await peer.ask("one", **{"id": str(len(peer.received)), **fields})
        assert (answer["error"]["type"], answer["success"], answer["meta"]) == ("PAYLOAD_TOO_LARGE", False, {})


async def test_c86_params_above_the_size_limit_fail_at_the_caller(small_cluster: Cluster) -> None:
    _, two = await small_cluster.start(("one", [Echo()]), ("two", []))
    with pytest.raises(PayloadTooLargeError) as caught:
        await two.call("echo.params", "x" * LIMIT)
    assert caught.value.data["limit"] == LIMIT
    assert caught.value.node_id is None
    assert two._node.transit.requests.pending == {}
    assert await two.call("echo.params", "x") == "x"


async def test_a_result_of_exactly_the_reply_limit_fits(small_cluster: Cluster) -> None:
    one, two = await small_cluster.start(("one", [Echo()]), ("two", []))
    for meta in ({}, {"user": "x" * 3000}):
        text = await two.call("echo.as_much_as_fits", meta=dict(meta))
        assert LIMIT - 1000 - len(json.dumps(meta)) < len(text) < LIMIT
    assert await one.call("echo.limit") is None, "a local call has no limit"


async def test_calls_above_the_limit_of_running_requests_are_refused_at_once(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.broker.Limits", partial(Limits, requests_in_work=3))
    gate = Gate()
    _, two = await cluster.start(("one", [gate]), ("two", []))
    answers: list[Any] = []

    async def call() -> None:
        answers.append(await two.call("gate.wait"))

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(call)
        await eventually(lambda: gate.inside == 3)
        with pytest.raises(QueueIsFullError) as caught:
            await two.call("gate.wait")
        assert caught.value.data == {"action": "gate.wait", "nodeID": "one", "size": 3, "limit": 3}
        assert caught.value.retryable is True
        gate.opened.set()
    assert answers == ["one"] * 3
    assert await two.call("gate.wait") == "one", "there is capacity again"


async def test_calls_above_the_limit_of_pending_requests_are_not_sent(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.broker.Limits", partial(Limits, requests_pending=2))
    gate = Gate()
    _, two = await cluster.start(("one", [gate]), ("two", []))
    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(two.call, "gate.wait")
        await eventually(lambda: gate.inside == 2)
        with pytest.raises(QueueIsFullError) as caught:
            await two.call("gate.wait")
        assert caught.value.data == {"action": "gate.wait", "nodeID": "two", "size": 2, "limit": 2}
        gate.opened.set()


class Reading(Service):
    """Reads a stream to its end."""

    name = "reading"

    def __init__(self) -> None:
        self.read: list[bytes] = []
        self.ended: list[str] = []

    @action
    async def all(self, ctx: Context) -> None:
        try:
            async for chunk in ctx.stream:
                self.read.append(chunk)
        except MoleculerError as error:
            self.ended.append(error.name)
            raise


class Listener(Service):
    name = "listener"

    @event("news.*")
    async def on_news(self, ctx: Context) -> None:
        assert ctx.params is not None


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("fields", [{"seq": "text"}, {"seq": 1.5}], ids=str)
async def test_c11_a_call_fails_at_once_when_its_answer_cannot_be_decoded(
    cluster: Cluster, fields: dict[str, Any]
) -> None:
    (one,) = await cluster.start(("one", []))
    peer = await cluster.raw_peer("peer", "REQ")
    actions = {"odd.run": {"name": "odd.run", "rawName": "run"}}
    await peer.introduce({"name": "odd", "fullName": "odd", "actions": actions})
    await one.wait_for_services("odd", timeout=30)
    async with anyio.create_task_group() as tasks:

        async def answer() -> None:
            request = await peer.wait_for("REQ")
            packet = {"ver": "5", "sender": "peer", "id": request["id"], "success": True, "data": 1, **fields}
            await peer.publish(cluster.topics.to_node("RES", "one"), packet)

        tasks.start_soon(answer)
        with pytest.raises(InvalidPacketDataError) as caught:
            await one.call("odd.run")  # no timeout: it must not be needed
    assert caught.value.data["command"] == "RES"
    assert one._node.transit.requests.pending == {}


@pytest.mark.parametrize("time", [b"1e999", b"-1e999", b'"soon"', b"null", b"true", b"9007199254740993000"])
async def test_c27_a_pong_with_an_odd_time_is_accepted(
    cluster: Cluster, time: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (one,) = await cluster.start(("one", []))
    peer = await cluster.raw_peer("peer", "PING")
    await peer.introduce()
    await eventually(lambda: "peer" in one.registry.nodes)
    caplog.clear()
    async with anyio.create_task_group() as tasks:

        async def answer() -> None:
            ping_id = (await peer.wait_for("PING"))["id"].encode()
            pong = b'{"ver":"5","sender":"peer","id":"%b","time":%b,"arrived":%b}' % (ping_id, time, time)
            await peer.publish(cluster.topics.to_node("PONG", "one"), pong)

        tasks.start_soon(answer)
        answered = await one.ping("peer", timeout=30)
    assert answered is not None
    assert warnings_of(caplog) == []


async def test_c74_a_chunk_that_cannot_be_decoded_ends_its_stream_at_both_ends_at_once(cluster: Cluster) -> None:
    reader = Reading()
    await cluster.start(("one", [reader]))
    peer = await cluster.raw_peer("peer", "RES")
    subject = cluster.topics.to_node("REQ", "one")
    opening = {"ver": "5", "sender": "peer", "id": "odd", "action": "reading.all", "stream": True, "seq": 0}
    await peer.publish(subject, opening)
    await peer.publish(subject, opening | {"seq": 1, "params": {"type": "Buffer", "data": [1]}})
    await peer.publish(subject, opening | {"seq": "two"})
    answer = await peer.answer("odd")
    assert answer["error"]["name"] == "InvalidPacketDataError"
    await eventually(lambda: reader.ended == ["InvalidPacketDataError"])
    await peer.publish(subject, opening | {"seq": 3, "params": {"type": "Buffer", "data": [3]}})
    await peer.publish(subject, opening | {"seq": 4, "stream": False})
    assert reader.read == [b"\x01"]


@pytest.mark.parametrize(
    "garbage",
    [b"", b"null", b"{", b"[]", b"5", b"\x00\xff\xfe", b"{}", b'{"sender":5}', b"[" * 5000, b'{"ver":"5","sender":}'],
)
async def test_c11_garbage_on_every_subject_is_logged_once_each(
    cluster: Cluster, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = await cluster.start(("one", [Echo()]), ("two", []))
    peer = await cluster.raw_peer("peer", "RES")
    subjects = [subject for _, subject in cluster.topics.base_subscriptions("one")]
    broadcasts = sum(1 for subject in subjects if not subject.endswith(".one"))
    for subject in subjects:
        await peer.publish(subject, garbage)
    expected = len(subjects) + broadcasts  # both nodes receive the broadcasts
    await eventually(lambda: len(warnings_of(caplog)) >= expected)
    assert await two.call("echo.where") == "one"
    assert await one.ping("two", 10) is not None
    lines = warnings_of(caplog)
    assert len(lines) == expected
    assert all(line.startswith(f"Dropped {len(garbage)} bytes that are no ") for line in lines)
    assert all(len(line) < 300 for line in lines)


HEAD = b'{"ver":"5","sender":"peer","id":"1",'
MANY = 500_000


@pytest.mark.parametrize(
    ("serializer", "command", "packet"),
    [
        ("JSON", "REQ", HEAD + b'"action":"echo.params","params":"\xff"}'),
        ("JSON", "REQ", HEAD + b'"action":"echo.params","params":' + b"[" * MANY + b"]" * MANY + b"}"),
        ("JSON", "EVENT", HEAD + b'"event":"news.one","data":"\xff"}'),
        ("JSON", "EVENT", HEAD + b'"event":"news.one","data":' + b"[" * MANY + b"]" * MANY + b"}"),
        ("JSON", "REQ", HEAD + b'"action":"' + b'\\"' * MANY),
        ("JSONExt", "REQ", HEAD + b'"action":"echo.params","meta":{"a":"[[DT]]' + b"x" * MANY + b'"}}'),
        ("JSONExt", "EVENT", HEAD + b'"event":"news.one","data":{"a":"[[DT]]' + b"x" * MANY + b'"}}'),
        ("JSONExt", "REQ", b'{"ver":"5","sender":"[[DT]]1e400","id":"1","action":"echo.params"}'),
        ("CBOR", "REQ", cbor2.dumps({"ver": 2**MANY, "sender": "peer", "id": "1", "action": "echo.params"})),
    ],
    ids=["text", "deep", "event text", "deep event", "no end", "date", "event date", "sender", "large version"],
)
async def test_c11_a_packet_that_cannot_be_decoded_is_one_short_log_line_whatever_its_size(
    serializer: str, command: Command, packet: bytes, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    one = await cluster.start_one("one", [Echo(), Listener()], serializer=serializer)
    peer = await cluster.raw_peer("peer")
    await peer.publish(cluster.topics.to_node(command, "one"), packet)
    await eventually(lambda: warnings_of(caplog), "a line")
    assert await one.call("echo.where") == "one"
    (line,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(line.getMessage()) < 400
    assert line.exc_info is None


@pytest.mark.parametrize("ver", [4, 5, None, "3", "55", [], {"a": 1}])
async def test_c10_packets_of_an_unknown_version_are_logged_and_not_answered(
    cluster: Cluster, ver: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await cluster.start_one("one", [Echo()])
    peer = await cluster.raw_peer("peer", "RES", "PONG")
    for command, subject in cluster.topics.base_subscriptions("one"):
        packet = {"sender": "peer", "id": "1", "action": "echo.where", "event": "e", "ver": ver}
        if ver is None:
            del packet["ver"]
        await peer.publish(subject, packet)
        assert command
    await eventually(lambda: len(warnings_of(caplog)) >= 12)
    assert (await peer.ask("one", "echo.where"))["data"] == "one"
    assert [name for name, _ in peer.received] == ["RES"]
    assert all("protocol version" in line for line in warnings_of(caplog))
    assert len(warnings_of(caplog)) == 12


ODD_REQUESTS: list[dict[str, Any]] = [{"action": 5}, {"seq": "first"}, {"seq": 1.5}]


@pytest.mark.parametrize("fields", ODD_REQUESTS)
async def test_a_request_that_cannot_be_decoded_is_answered_with_an_error(
    cluster: Cluster, fields: dict[str, Any]
) -> None:
    await cluster.start_one("one", [Echo()])
    peer = await cluster.raw_peer("peer", "RES")
    packet = {"ver": "4", "sender": "peer", "id": "odd", "action": "echo.where", **fields}
    await peer.publish(cluster.topics.to_node("REQ", "one"), packet)
    answer = await peer.answer("odd")
    assert answer["success"] is False
    assert answer["ver"] == "4"
    assert answer["error"]["name"] == "InvalidPacketDataError"
    assert isinstance(answer["error"]["data"], dict)
    assert (await peer.ask("one", "echo.where"))["data"] == "one"


@pytest.mark.parametrize(
    "fields",
    [
        '"level":-1e999',
        '"level":1e999',
        '"level":1e308',
        '"level":null,"timeout":1e999',
        '"timeout":-5',
        '"level":1.5',
        '"tracing":{"odd":1},"stream":[]',
        '"headers":null,"meta":null',
        '"params":"\\ud800","meta":{"a":"\\ud800"}',
    ],
)
async def test_odd_values_in_a_request_do_not_end_the_node(cluster: Cluster, fields: str) -> None:
    await cluster.start_one("one", [Echo()])
    peer = await cluster.raw_peer("peer", "RES")
    text = f'{{"ver":"5","sender":"peer","id":"odd","action":"echo.context",{fields}}}'
    await peer.publish(cluster.topics.to_node("REQ", "one"), text.encode())
    await peer.answer("odd")
    assert (await peer.ask("one", "echo.where"))["data"] == "one"


async def test_damaged_packets_of_real_nodes_do_not_end_the_node(cluster: Cluster) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - a randomised test prints its seed
    chance = random.Random(seed)
    packets = [(command, packet) for _, command, packet, _ in [*captured("4"), *captured("5")]]
    one = await cluster.start_one("one", [Echo(), Math()])
    peer = await cluster.raw_peer("peer", "RES")
    for _ in range(600):
        command, packet = chance.choice(packets)
        data = bytearray(json.dumps({**packet, "sender": chance.choice(["peer", "js-1", "", "one"])}).encode())
        if command == "INFO" and b'"one"' in data:
            continue  # that packet means that another process has this id: stop
        for _ in range(chance.randint(0, 3)):
            position = chance.randrange(len(data))
            data[position : position + chance.randint(0, 3)] = chance.choice([b"", b"null", b'"', b"{", b"9", b"\xff"])
        subject = chance.choice([f"{cluster.topics.prefix}.{command}", cluster.topics.to_node(command, "one")])
        await peer.publish(subject, bytes(data))
    assert (await peer.ask("one", "echo.where"))["data"] == "one"
    assert one._node.failure is None


async def test_senders_that_make_invalid_subjects_do_not_close_the_connection(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    await cluster.start_one("one", [Echo()])
    peer = await cluster.raw_peer("peer", "RES")
    evil = ["a b", "a\r\nPUB x 0\r\n\r\n", "x" * 20_000, ">", "\ud800", ""]
    for sender in evil:
        for command in ("REQ", "DISCOVER", "HEARTBEAT", "PING"):
            packet = {"ver": "5", "sender": sender, "id": "1", "action": "echo.where"}
            subject = cluster.topics.to_node("REQ", "one") if command == "REQ" else f"{cluster.topics.prefix}.{command}"
            await peer.publish(subject, json.dumps(packet).encode())
            await peer.publish(subject, json.dumps({**packet, "meta": [], "cpu": "?"}).encode())
    assert (await peer.ask("one", "echo.where"))["data"] == "one"
    assert not [line for line in warnings_of(caplog) if "connection" in line.lower()]


async def test_c42_c43_requests_and_answers_of_unknown_nodes_are_handled(cluster: Cluster) -> None:
    await cluster.start_one("one", [Echo()])
    peer = await cluster.raw_peer("peer", "RES")
    answer = await peer.ask("one", "no.such", meta={"a": 1}, ver="4")
    assert answer["error"]["name"] == "ServiceNotFoundError"
    assert (answer["meta"], answer["error"]["data"]) == ({"a": 1}, {"action": "no.such", "nodeID": "one"})
    assert "headers" not in answer
    for packet in ({"id": "unknown", "success": True}, {"id": "unknown", "success": False, "error": None}):
        await peer.publish(cluster.topics.to_node("RES", "one"), {"ver": "5", "sender": "peer", **packet})
    bare = {"ver": "5", "sender": "peer", "id": "bare", "action": "echo.context"}
    await peer.publish(cluster.topics.to_node("REQ", "one"), bare)  # c37
    context = (await peer.answer("bare"))["data"]
    assert (context["level"], context["meta"], context["params"]) == (1, {}, None)


async def test_answers_without_a_usable_error_still_end_the_call(cluster: Cluster) -> None:
    one = await cluster.start_one("one")
    peer = await cluster.raw_peer("peer", "REQ")
    service = {"name": "odd", "fullName": "odd", "actions": {"odd.answer": {"name": "odd.answer"}}}
    await peer.introduce(service)
    await one.wait_for_services("odd", timeout=30)
    odd: list[dict[str, Any]] = [
        {"success": False},
        {"success": False, "error": None},
        {},
        {"success": False, "error": {"name": "RequestTimeoutError"}},
        {"success": False, "error": {"name": 5, "message": [1], "retryable": "yes"}},
        {"success": None, "meta": None, "error": "text"},
    ]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_answer_each, peer, Topics(cluster.namespace), odd)
        for _ in odd:
            with pytest.raises(MoleculerError) as caught:
                await one.call("odd.answer", timeout=30)
            assert caught.value.node_id == "peer"


async def _answer_each(peer: Any, topics: Topics, answers: list[dict[str, Any]]) -> None:
    for number, answer in enumerate(answers):
        await eventually(lambda number=number: len(peer.received) > number)  # type: ignore[misc]  # a lambda's default
        _, request = peer.received[number]
        packet = {"ver": "5", "sender": "peer", "id": request["id"], **answer}
        await peer.publish(topics.to_node("RES", "one"), packet)
