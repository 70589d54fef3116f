"""Settings: where they come from, and what a wrong one is told."""

import pytest

from services.environments_store.config import Config, load_config, masked_servers
from services.environments_store.defaults import DatabaseSettings
from services.environments_store.errors import ConfigError


def test_without_settings_everything_has_its_documented_default() -> None:
    assert load_config({}) == Config(
        nats_url="nats://127.0.0.1:4222",
        database_url="sqlite:///data/environments.sqlite",
        namespace="",
        node_id=None,
        log_level="info",
        log_format="text",
    )


def test_flags_win_over_the_environment() -> None:
    environ = {"NATS_URL": "nats://a:1", "NAMESPACE": "prod", "NODE_ID": "py-1", "LOG_LEVEL": "DEBUG", "OTHER": "x"}
    config = load_config(environ, nats_url="nats://b:2", namespace=None)
    assert (config.nats_url, config.namespace, config.node_id, config.log_level) == (
        "nats://b:2",
        "prod",
        "py-1",
        "debug",
    )


def test_what_other_programs_call_the_broker_s_options_counts_where_the_short_name_is_not_set() -> None:
    environ = {"BROKER_TRANSPORTER": "nats://a:1", "BROKER_NAMESPACE": "prod", "BROKER_NODE_ID": "py-1"}
    assert load_config(environ) == Config(nats_url="nats://a:1", namespace="prod", node_id="py-1")
    config = load_config({**environ, "NATS_URL": "nats://b:2", "NAMESPACE": "test"})
    assert (config.nats_url, config.namespace, config.node_id) == ("nats://b:2", "test", "py-1")


def test_the_pool_is_as_large_as_it_is_set() -> None:
    assert load_config({}).database_pool_size == DatabaseSettings().pool_size
    assert load_config({"DATABASE_POOL_SIZE": "25"}).database_pool_size == 25
    assert load_config({"DATABASE_POOL_SIZE": "25"}, database_pool_size="3").database_pool_size == 3


def test_an_empty_variable_counts_as_not_given() -> None:
    assert load_config({"NATS_URL": "", "NODE_ID": "", "LOG_FORMAT": ""}) == Config()


@pytest.mark.parametrize(
    "url",
    [
        "nats://h:4222",
        "nats://h",
        "tls://user:p%40ss@h:4222",
        "nats://token@h:1",
        "nats://[::1]:4222",
        "nats://a:1,nats://b:2",
    ],
)
def test_addresses_of_nats_are_taken(url: str) -> None:
    assert load_config({"NATS_URL": url}).nats_url == url


@pytest.mark.parametrize(
    "url", ["127.0.0.1:4222", "http://h:4222", "nats://", "nats://h:port", "nats://h:99999", "nats://h:0", "a b"]
)
def test_a_wrong_address_of_nats_is_told_what_a_right_one_looks_like(url: str) -> None:
    with pytest.raises(ConfigError, match=r"NATS_URL .* Examples: nats://127\.0\.0\.1:4222") as caught:
        load_config({"NATS_URL": url})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["mysql://h/db", "environments.sqlite", "sqlite://x", "sqlite:///:memory:"])
def test_a_wrong_database_url_is_told_what_a_right_one_looks_like(url: str) -> None:
    with pytest.raises(ConfigError, match="postgresql://") as caught:
        load_config({"DATABASE_URL": url})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("LOG_LEVEL", "loud", "debug, info, warning, error"),
        ("LOG_FORMAT", "xml", "text, json"),
        ("NAMESPACE", "a b", "my-name-1"),
        ("NODE_ID", "py.*", "my-name-1"),
        ("DATABASE_POOL_SIZE", "0", "10"),
        ("DATABASE_POOL_SIZE", "many", "10"),
    ],
)
def test_a_wrong_value_is_named_with_right_ones(name: str, value: str, right: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({name: value})
    assert name in str(caught.value)
    assert value in str(caught.value)
    assert right in str(caught.value)


def test_passwords_are_never_shown() -> None:
    config = load_config(
        {"NATS_URL": "nats://u:secret@a:1,nats://token-secret@b:2", "DATABASE_URL": "postgresql://u:secret@h/d"}
    )
    assert "secret" not in repr(config)
    assert "secret" not in str(config)
    assert masked_servers(config.nats_url) == "nats://***@a:1,nats://***@b:2"


@pytest.mark.parametrize(
    "url",
    [
        "nats://u:secret@h:port",
        "u:secret@h:4222",
        "nats://u:a,secret@h:0",
        "nats://u:a@secret@h:0",
        "nats://u:secret/@h",
    ],
)
def test_a_wrong_address_shows_no_piece_of_its_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({"NATS_URL": url})
    assert "secret" not in str(caught.value)
