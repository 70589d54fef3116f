"""A connection to one of several real servers, which go away in one way or another."""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import SocketStream
from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport
from nats.protocol.parser import Parser

from broker.errors import BrokerDisconnectedError, BrokerOptionsError
from broker.transports.base import Observer
from broker.transports.nats import NATSTransport
from broker.transports.nats_address import Servers
from broker.transports.nats_link import _wait_s
from tests.conftest import NatsServerFactory
from tests.support.nats_server import NatsServer, cluster_of
from tests.support.ports import LOOPBACK
from tests.support.tcp_proxy import hanging_up
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

PROBE = b"is it routed?"


class Seen:
    """What a transport has reported, and the servers that it has tried to connect to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("broker.transports.nats_link.NATS_RECONNECT_MAX_S", 0.1)
        self.notes: list[str] = []
        self.tried: list[str] = []
        tried = Servers.tried

        def note(servers: Servers, server: str) -> None:
            self.tried.append(server)
            tried(servers, server)

        monkeypatch.setattr(Servers, "tried", note)

    async def disconnected(self) -> None:
        self.notes.append("disconnected")

    async def reconnected(self) -> None:
        self.notes.append("reconnected")

    async def failed(self, reason: str) -> None:
        self.notes.append(reason)

    @property
    def observer(self) -> Observer:
        return Observer(disconnected=self.disconnected, reconnected=self.reconnected, failed=self.failed)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    return Seen(monkeypatch)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Callable[..., list[NatsServer]]]:
    """`cluster(3)`: servers of one cluster, running."""
    with ExitStack() as stack:

        def start(size: int) -> list[NatsServer]:
            settings = {"lame_duck_duration": "30s", "lame_duck_grace_period": "10s"}
            servers = cluster_of(size, tmp_path, **settings)
            for server in servers:
                stack.enter_context(server)
            return servers

        yield start


@asynccontextmanager
async def connected(urls: list[str], observer: Observer | None = None) -> AsyncIterator[NATSTransport]:
    transport = NATSTransport(urls)
    await transport.connect(observer or Observer(), "node")
    try:
        yield transport
    finally:
        await transport.close()


def server_of(transport: NATSTransport, servers: list[NatsServer]) -> NatsServer:
    connection = transport._link.connection
    assert connection is not None
    return next(server for server in servers if server.url == connection.server)


def test_tries_to_reconnect_wait_longer_each_time_and_never_all_the_same() -> None:
    for tries, longest in ((0, 0.05), (1, 0.1), (4, 0.8), (6, 1.0), (10_000, 1.0)):
        waits = [_wait_s(tries) for _ in range(200)]
        assert longest / 2 <= min(waits) < longest * 0.6
        assert longest * 0.9 < max(waits) <= longest


@pytest.mark.parametrize("size", [2, 3])
async def test_a_killed_server_is_left_for_another_one_of_the_list(
    cluster: Callable[..., list[NatsServer]], seen: Seen, size: int
) -> None:
    servers = cluster(size)
    async with connected([server.url for server in servers], seen.observer) as transport:
        lost = server_of(transport, servers)
        seen.tried.clear()
        lost.kill()
        await eventually(lambda: seen.notes == ["disconnected", "reconnected"])
        assert len(seen.tried) == 1
        assert seen.tried != [lost.url]


async def test_advertised_addresses_that_do_not_answer_cost_nothing(
    make_nats_server: NatsServerFactory, cluster: Callable[..., list[NatsServer]], seen: Seen, tmp_path: Path
) -> None:
    async def silent(stream: SocketStream) -> None:
        await anyio.sleep_forever()

    listener = await anyio.create_tcp_listener(local_host=LOOPBACK)
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, silent)
        with ExitStack() as stack:
            servers = cluster_of(2, tmp_path, client_advertise=f"{LOOPBACK}:{port}")
            for server in servers:
                stack.enter_context(server)
            async with connected([server.url for server in servers], seen.observer) as transport:
                connection, lost = transport._link.connection, server_of(transport, servers)
                assert connection is not None
                await eventually(lambda: connection.advertised)
                seen.tried.clear()
                lost.kill()
                await eventually(lambda: "reconnected" in seen.notes)
                assert len(seen.tried) == 1
        group.cancel_scope.cancel()


async def test_a_frozen_server_is_left_also_when_it_has_taken_nothing_for_long(
    cluster: Callable[..., list[NatsServer]], seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.transports.nats_client.NATS_PING_INTERVAL_S", 0.5)
    servers = cluster(2)
    async with connected([server.url for server in servers], seen.observer) as transport:
        frozen = server_of(transport, servers)
        frozen.pause()
        with suppress(BrokerDisconnectedError):
            while True:  # fills the buffers of the socket, and those of nats-py
                await transport.publish("subject", bytes(1_000_000))
        await eventually(lambda: "reconnected" in seen.notes)
        assert seen.notes == ["stale connection", "disconnected", "reconnected"]
        assert server_of(transport, servers) is not frozen
        await transport.flush()


async def test_what_has_arrived_before_the_connection_was_lost_is_handled(nats_server: NatsServer, seen: Seen) -> None:
    async with connected([nats_server.url], seen.observer) as transport:
        handled: list[bytes] = []
        lost = anyio.Event()

        async def handle(data: bytes, _reply: str) -> None:
            await lost.wait()
            handled.append(data)

        await transport.subscribe("subject", handle)
        for number in range(100):
            await transport.publish("subject", str(number).encode())
        await transport.flush()
        nats_server.kill()
        await eventually(lambda: seen.notes == ["disconnected"])
        lost.set()
        await eventually(lambda: handled == [str(number).encode() for number in range(100)])


async def test_each_message_arrives_once_while_a_server_in_lame_duck_mode_is_left(
    cluster: Callable[..., list[NatsServer]], seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those to the node that moves, and those from it, with and without a queue."""
    monkeypatch.setattr("broker.transports.nats_link.NATS_OVERLAP_S", 0.3)
    servers = cluster(3)
    urls = [server.url for server in servers]
    received: dict[str, Counter[bytes]] = {name: Counter() for name in ("alone", "shared", "peer")}
    sent = 0

    def receiver(name: str) -> Callable[[bytes, str], object]:
        async def receive(data: bytes, _reply: str) -> None:
            if data != PROBE:
                received[name][data] += 1

        return receive

    async with AsyncExitStack() as stack:
        moving = await stack.enter_async_context(connected(urls, seen.observer))
        lame = server_of(moving, servers)
        rest = [server.url for server in servers if server is not lame]
        peers = [await stack.enter_async_context(connected([url])) for url in rest]
        await moving.subscribe("alone", receiver("alone"))  # type: ignore[arg-type]
        await moving.subscribe("shared", receiver("shared"), "queue")  # type: ignore[arg-type]
        await peers[0].subscribe("peer", receiver("peer"))  # type: ignore[arg-type]
        for transport in (moving, *peers):
            await transport.flush()
        await eventually_routed(peers, "alone", "shared")
        await eventually_routed([moving], "peer")

        async def load() -> None:
            nonlocal sent
            while True:
                for number, peer in enumerate(peers):
                    await peer.publish("alone", f"{sent} {number}".encode())
                    await peer.publish("shared", f"{sent} {number}".encode())
                await moving.publish("peer", str(sent).encode())
                sent += 1
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as group:
            group.start_soon(load)
            await eventually(lambda: sent > 10)
            lame.lame_duck()
            await eventually(lambda: server_of(moving, servers) is not lame and has_moved(moving))
            group.cancel_scope.cancel()
        lame.kill()
        for transport in (*peers, moving, *peers):
            await transport.flush()
        await eventually(lambda: sum(received["alone"].values()) >= 2 * sent)
        await eventually(lambda: sum(received["peer"].values()) >= sent)
        for name, counts in received.items():
            assert set(counts.values()) == {1}, name
            if name != "shared":  # NATS may lose what is on its way to a member of a queue that leaves
                assert sent <= len(counts) / (1 if name == "peer" else 2) <= sent + 1, name
        assert seen.notes == []


def has_moved(transport: NATSTransport) -> bool:
    connection = transport._link.connection
    return connection is not None and connection.intake.overlap is None


async def eventually_routed(transports: list[NATSTransport], *subjects: str) -> None:
    for transport in transports:
        for subject in subjects:
            while not await transport.has_subscribers(subject, PROBE):
                await anyio.lowlevel.checkpoint()


async def test_a_single_server_in_lame_duck_mode_is_used_until_it_closes(
    make_nats_server: NatsServerFactory, seen: Seen
) -> None:
    server = make_nats_server(lame_duck_duration="30s", lame_duck_grace_period="10s")
    async with connected([server.url], seen.observer) as transport:
        connection = transport._link.connection
        assert connection is not None
        server.lame_duck()
        await eventually(lambda: "lame duck" in server.log().lower())
        await transport.flush()
        assert transport._link.connection is connection
        assert seen.notes == []
        server.kill()
        server.start()
        await eventually(lambda: "reconnected" in seen.notes)


async def test_a_server_that_accepts_and_hangs_up_is_one_line(nats_server: NatsServer, seen: Seen) -> None:
    async with connected([nats_server.url], seen.observer):
        nats_server.kill()
        async with hanging_up(nats_server.port):
            await eventually(lambda: len(seen.tried) > 6)
        nats_server.start()
        await eventually(lambda: seen.notes[-1] == "reconnected")
    assert seen.notes[0] == "disconnected"
    reasons = set(seen.notes[1:-1])
    assert len(reasons) == len(seen.notes[1:-1]), "each reason once"
    assert any("empty response" in reason for reason in reasons)


async def test_credentials_that_are_refused_end_the_first_connection_and_are_retried_later(
    make_nats_server: NatsServerFactory, seen: Seen
) -> None:
    server = make_nats_server(authorization="{ user: node, password: secret }")
    url = server.url.replace("://", "://node:secret@")
    with pytest.raises(BrokerOptionsError, match=r"does not let this node in.*Authorization Violation") as caught:
        await NATSTransport([url.replace("secret", "wrong")]).connect(Observer(), "node")
    assert "wrong" not in str(caught.value)
    async with connected([url], seen.observer):
        server.restart(authorization="{ user: node, password: another }")
        await eventually(lambda: len(seen.tried) > 8)
        server.restart(authorization="{ user: node, password: secret }")
        await eventually(lambda: seen.notes[-1] == "reconnected")
    refusals = [note for note in seen.notes if "Authorization Violation" in note]
    assert len(refusals) == 1


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (Client(), "_close _connect_command _err _flush_queue _flusher_task _max_payload _max_pending_size _pending"),
        (Client(), "_pending_data_size _pongs _process_err _process_info _process_msg _process_pong _ps _remove_sub"),
        (Client(), "_server_info _status _subs _transport"),
        (Parser(Client()), "buf nc parse reset"),
        (Subscription(Client()), "_id _pending_queue _received"),
        (Subscription(Client())._pending_queue, "_unfinished_tasks"),
        (TcpTransport(), "_io_writer"),  # type: ignore[no-untyped-call]
    ],
)
def test_the_private_names_of_nats_py_that_are_used_are_there(owner: object, names: str) -> None:
    missing = [name for name in names.split() if not hasattr(owner, name)]
    assert missing == []


def test_nats_py_reads_as_many_bytes_at_a_time_as_it_is_told() -> None:
    assert "DEFAULT_BUFFER_SIZE" in Client._read_loop.__code__.co_names
