"""Subjects are those of the reference, and a name that NATS cannot carry is refused (protocol §1)."""

import pytest

from broker.errors import BrokerOptionsError
from broker.protocol.topics import Topics, check_token


def test_c1_subjects_start_with_mol_and_the_namespace() -> None:
    assert Topics().broadcast("INFO") == "MOL.INFO"
    assert Topics("prod").broadcast("INFO") == "MOL-prod.INFO"
    assert Topics("prod").to_node("REQ", "py-1") == "MOL-prod.REQ.py-1"


def test_c2_the_twelve_subscriptions_stand_in_the_order_of_the_reference() -> None:
    assert [subject for _, subject in Topics().base_subscriptions("ID")] == [
        "MOL.EVENT.ID",
        "MOL.REQ.ID",
        "MOL.RES.ID",
        "MOL.DISCOVER",
        "MOL.DISCOVER.ID",
        "MOL.INFO",
        "MOL.INFO.ID",
        "MOL.DISCONNECT",
        "MOL.HEARTBEAT",
        "MOL.PING",
        "MOL.PING.ID",
        "MOL.PONG.ID",
    ]


def test_each_subscription_names_the_command_of_its_subject() -> None:
    for command, subject in Topics("ns").base_subscriptions("ID"):
        assert subject.split(".")[1] == command


@pytest.mark.parametrize("name", ["py-1", "host.domain.example", "UPPER_lower", "ü"])
def test_usable_names_pass(name: str) -> None:
    check_token("node id", name)


@pytest.mark.parametrize(
    "name", ["", "a b", "a\tb", "a\r\nPUB x", "a.*", ">", ".a", "a.", "a..b", "\ud800", "x" * 2000]
)
def test_names_that_nats_cannot_carry_are_refused(name: str) -> None:
    with pytest.raises(BrokerOptionsError, match="node id") as caught:
        check_token("node id", name)
    assert repr(name) in str(caught.value)


def test_an_empty_namespace_is_none() -> None:
    assert Topics("").prefix == "MOL"
    with pytest.raises(BrokerOptionsError, match="namespace"):
        Topics("a b")
