"""Addresses of NATS servers: what is usable, and what is shown of them. The rest is in contract/test_transport.py."""

import gc
import os
import sys
from pathlib import Path

import anyio
import anyio.lowlevel
import nkeys  # type: ignore[import-untyped]
import pytest

from broker.errors import BrokerDisconnectedError, BrokerOptionsError, MoleculerError
from broker.transports.base import Observer
from broker.transports.nats import NATSTransport
from tests.conftest import NatsServerFactory
from tests.support.nats_server import NatsServer
from tests.support.ports import LOOPBACK, free_port
from tests.support.tcp_proxy import hanging_up
from tests.support.waiting import eventually


@pytest.mark.parametrize(
    "url",
    [
        "nats://127.0.0.1:4222",
        "127.0.0.1:4222",
        "nats://user:password@host:4222",
        "tls://host",
        "ws://host:80",
        "nats://[::1]:4222",
    ],
)
def test_usable_addresses(url: str) -> None:
    assert not NATSTransport([url]).connected


@pytest.mark.parametrize(
    "url",
    ["", "nats://", "http://host", "nats://host:port", "nats://host:99999999", "postgresql://host/db", "nats://:4222"],
)
def test_an_address_that_is_not_usable_shows_what_a_right_one_looks_like(url: str) -> None:
    with pytest.raises(BrokerOptionsError, match=r"nats://127\.0\.0\.1:4222"):
        NATSTransport([url])


def test_a_password_is_in_no_error() -> None:
    with pytest.raises(BrokerOptionsError) as caught:
        NATSTransport(["http://user:topsecret@host"])
    assert "topsecret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://user:topsecret@host:4222", "nats://***@host:4222"),
        ("nats://token@host", "nats://***@host"),
        ("nats://user:topsecret@[::1]:4222", "nats://***@[::1]:4222"),
        ("nats://host:4222", "nats://host:4222"),
    ],
)
def test_passwords_are_masked(url: str, shown: str) -> None:
    assert str(NATSTransport([url, url])) == f"{shown}, {shown}"


@pytest.mark.anyio
async def test_a_reconnection_that_came_to_nothing_leaves_no_socket_open(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something listens at the server's address, and hangs up: a server that just dies, or a load balancer without one.
    The test fails for what Python says of a socket that is collected open."""
    monkeypatch.setattr("broker.transports.nats_link.NATS_RECONNECT_MAX_S", 0.01)
    transport = NATSTransport([nats_server.url])
    await transport.connect(Observer(), "one")
    nats_server.kill()
    async with hanging_up(nats_server.port) as came:
        await eventually(lambda: len(came) >= 3)
    await transport.close()
    gc.collect()


@pytest.mark.anyio
async def test_a_transport_closed_while_it_reconnects_stays_closed(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Python 3.12 a connection that is made in the moment of its cancellation is not cancelled."""
    monkeypatch.setattr("broker.transports.nats_link.NATS_RECONNECT_MAX_S", 0.001)
    for moment in range(4, 14):
        transport = NATSTransport([nats_server.url])
        await transport.connect(Observer(), "one")
        nats_server.kill()
        await eventually(lambda: not transport.connected)  # noqa: B023 # ends with the round
        nats_server.start()  # meanwhile nothing of this process runs
        for _ in range(moment):
            await anyio.lowlevel.cancel_shielded_checkpoint()
        await transport.close()
        assert not transport.connected, moment
    gc.collect()


@pytest.mark.anyio
async def test_a_flush_that_was_cancelled_does_not_stop_the_reading(nats_server: NatsServer) -> None:
    transport = NATSTransport([nats_server.url])
    await transport.connect(Observer(), "one")
    received = anyio.Event()

    async def on_message(_data: bytes, _reply: str) -> None:
        received.set()

    await transport.subscribe("subject", on_message)
    nats_server.pause()
    given_up = False
    while not given_up:  # the server may answer once more before it stands still
        with anyio.move_on_after(0.1) as scope:
            await transport.flush()
        given_up = scope.cancelled_caught
    nats_server.resume()
    await transport.flush()
    await transport.publish("subject", b"")
    with anyio.fail_after(10):
        await received.wait()
    await transport.close()


@pytest.mark.anyio
async def test_no_greeting_goes_in_the_clear_to_a_tls_address(nats_server: NatsServer) -> None:
    transport = NATSTransport([nats_server.url.replace("nats://", "tls://user:topsecret@")])
    with pytest.raises(BrokerDisconnectedError, match="offers no TLS") as caught:
        await transport.connect(Observer(), "one")
    assert "topsecret" not in str(caught.value)
    assert not transport.connected


@pytest.mark.anyio
async def test_a_failed_attempt_to_connect_is_not_a_lost_connection() -> None:
    lost: list[str] = []

    async def disconnected() -> None:
        lost.append("lost")

    transport = NATSTransport([f"nats://{LOOPBACK}:{free_port()}"])
    with pytest.raises(BrokerDisconnectedError):
        await transport.connect(Observer(disconnected=disconnected), "one")
    assert lost == []


@pytest.mark.parametrize(
    ("option", "wanted"),
    [("no_such_option", "nats-py has no such option"), ("name", "the broker sets it itself"), ("error_cb", "itself")],
)
def test_an_option_that_nats_py_cannot_get_from_us_is_refused(option: str, wanted: str) -> None:
    with pytest.raises(BrokerOptionsError, match=f"'{option}'.*{wanted}"):
        NATSTransport(["nats://host"], **{option: "x"})


@pytest.mark.anyio
async def test_credentials_without_the_package_that_reads_them_say_what_to_install(
    nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nkeys", None)
    transport = NATSTransport([nats_url], user_credentials="node.creds")
    with pytest.raises(
        BrokerOptionsError, match=r"transporter_options cannot be used: .*\(pip install 'environments-store\[nkeys\]'\)"
    ):
        await transport.connect(Observer(), "one")


@pytest.mark.anyio
async def test_a_seed_of_nkeys_authenticates_and_a_missing_file_is_named(
    make_nats_server: NatsServerFactory, tmp_path: Path
) -> None:
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    (tmp_path / "node.seed").write_bytes(seed)
    user = nkeys.from_seed(bytearray(seed)).public_key.decode()
    url = make_nats_server(authorization=f"{{ users: [{{ nkey: {user} }}] }}").url
    transport = NATSTransport([url], nkeys_seed=str(tmp_path / "node.seed"))
    await transport.connect(Observer(), "one")
    await transport.close()
    with pytest.raises(BrokerDisconnectedError, match=r": 'missing\.seed'$"):
        await NATSTransport([url], nkeys_seed="missing.seed").connect(Observer(), "two")


@pytest.mark.anyio
async def test_a_subject_that_would_cost_the_connection_is_refused(nats_url: str) -> None:
    transport = NATSTransport([nats_url])
    await transport.connect(Observer(), "one")
    for subject in ("MOL." + "x" * 5000, "MOL." + "\U0001f600" * 1100):
        for work in (transport.publish(subject, b""), transport.subscribe(subject, _ignore)):
            with pytest.raises(MoleculerError) as caught:
                await work
            assert caught.value.type == "INVALID_SUBJECT"
    await transport.publish("MOL." + "x" * 3800, b"", "reply")
    await transport.flush()
    assert transport.connected
    await transport.close()


async def _ignore(_data: bytes, _reply: str) -> None: ...


@pytest.mark.anyio
async def test_servers_that_join_or_leave_the_cluster_are_noticed(make_nats_server: NatsServerFactory) -> None:
    port = free_port()
    first = make_nats_server(cluster=f"{{ name: test, listen: 127.0.0.1:{port} }}")
    changes = 0

    async def changed() -> None:
        nonlocal changes
        changes += 1

    transport = NATSTransport([first.url])
    await transport.connect(Observer(servers_changed=changed), "one")
    await transport.flush()
    before = changes
    second = make_nats_server(cluster=f"{{ name: test, listen: 127.0.0.1:-1, routes: [nats://127.0.0.1:{port}] }}")
    await eventually(lambda: changes > before)
    joined = changes
    second.kill()
    await eventually(lambda: changes > joined)
    await transport.close()
