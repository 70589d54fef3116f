"""No password is shown, however it is spelt and wherever it stands."""

from typing import Any

import msgspec
import pytest

from broker.masking import masked, masked_servers, masked_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("nats://127.0.0.1:4222", "nats://127.0.0.1:4222"),
        ("nats://user:hidden@host:4222", "nats://***@host:4222"),
        ("nats://hidden@host", "nats://***@host"),
        ("postgresql://u:hid/den@host/db?x=1", "postgresql://***@host/db?x=1"),
        ("nats://u:hid@den@host", "nats://***@host"),
        ("nats://u:hidden@a:1,nats://u:hidden@b:2", "nats://***@a:1,nats://***@b:2"),
        ("--nats-url=nats://u:hidden@a:1 --quiet", "--nats-url=nats://***@a:1 --quiet"),
        ("postgresql://host/db?password=hidden&a=1", "postgresql://host/db?password=***&a=1"),
        ("ada@example.com", "ada@example.com"),
    ],
)
def test_a_text_shows_no_password(text: str, shown: str) -> None:
    assert masked_text(text) == shown


@pytest.mark.parametrize("name", ["password", "PASS", "auth_token", "user_credentials", "nkeys_seed", "clientSecret"])
def test_an_option_of_such_a_name_is_not_shown(name: str) -> None:
    assert masked({name: "hidden", "inner": [{name: {"a": "hidden"}}]}) == {name: "***", "inner": [{name: "***"}]}
    assert masked({name: None}) == {name: None}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a:1,b:2", "nats://a:1,nats://b:2"),
        ("nats://a:1, b:2 ,", "nats://a:1,nats://b:2"),
        ("nats://u:hid,den@a:1,nats://hid,d,en@b:2,c:3", "nats://***@a:1,nats://***@b:2,nats://c:3"),
        ("u:hidden@a", "nats://***@a"),
    ],
)
def test_servers_are_shown_without_passwords_that_may_hold_commas(text: str, shown: str) -> None:
    assert masked_servers(text) == shown


def test_what_is_not_data_is_left_out() -> None:
    value: dict[str, Any] = {
        "function": print,
        "object": object(),
        "list": [1, print, "a"],
        "none": None,
        "tuple": (1,),
    }
    assert masked(value) == {"list": [1, "a"], "none": None, "tuple": [1]}


def test_what_holds_itself_ends() -> None:
    value: dict[str, Any] = {"name": "loop"}
    value["self"] = value
    shown = masked(value)
    assert msgspec.json.encode(shown) == b'{"name":"loop","self":null}'
