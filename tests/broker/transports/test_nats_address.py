"""In which order the servers of a list are tried, and what is used at each of them."""

import pytest

from broker.transports.nats_address import Servers, credentials

A, B, C = "nats://user:secret@a:4222", "nats://user:secret@b:4222", "nats://user:secret@c:4222"


def test_each_server_is_tried_once_and_the_lost_one_last() -> None:
    servers = Servers([A, B, C])
    for lost, earlier in ((A, None), (B, A), (C, B), (A, C)):
        servers.tried(lost)
        turn = servers.in_turn()
        assert sorted(turn) == [A, B, C]
        assert turn[-1] == lost
        assert earlier is None or turn[-2] == earlier


def test_nodes_that_start_together_do_not_all_choose_the_same_server() -> None:
    assert {Servers([A, B, C]).in_turn()[0] for _ in range(200)} == {A, B, C}


def test_advertised_servers_come_after_the_list_with_its_credentials() -> None:
    servers = Servers([A, B])
    servers.tried(A)
    servers.advertise(A, ["b:4222", "10.0.0.3:4222", "[fd00::3]:4222"])
    turn = servers.in_turn()
    assert turn[:2] == [B, A], "what the list names is not advertised once more"
    assert set(turn[2:]) == {"nats://user:secret@10.0.0.3:4222", "nats://user:secret@[fd00::3]:4222"}
    servers.advertise(B, ["10.0.0.4:4222"])
    assert servers.in_turn()[2:] == ["nats://user:secret@10.0.0.4:4222"], "what has left the cluster is forgotten"


def test_advertised_numbers_are_certified_by_the_name_of_the_server_that_gave_them() -> None:
    servers = Servers(["tls://a:4222"])
    servers.advertise("tls://a:4222", ["10.0.0.3:4222", "b:4222"])
    assert servers.certified_as("tls://10.0.0.3:4222") == "a"
    servers.advertise("tls://10.0.0.3:4222", ["10.0.0.4:4222"])
    assert servers.certified_as("tls://10.0.0.4:4222") == "a"
    assert servers.certified_as("tls://a:4222") is None
    assert servers.certified_as("tls://b:4222") is None


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("nats://a:4222", {}),
        ("nats://t%2Fken@a", {"token": "t/ken"}),
        ("nats://us%40er:p%3Ass@a", {"user": "us@er", "password": "p:ss"}),
    ],
)
def test_credentials_of_an_address_are_decoded(url: str, found: dict[str, str]) -> None:
    assert credentials(url) == found
