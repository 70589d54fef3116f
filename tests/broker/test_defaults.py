"""Options come from the call, else from the environment, else from the defaults; what does not fit is refused."""

from typing import Any

import msgspec
import pytest

from broker.defaults import _FROM_ENVIRONMENT, BrokerOptions, default_node_id, make_options
from broker.errors import BrokerOptionsError


def test_what_is_passed_wins_over_the_environment_and_that_over_the_default() -> None:
    environment = {"BROKER_NAMESPACE": "from the environment", "BROKER_REQUEST_TIMEOUT": "2.5"}
    options = make_options({"namespace": "passed", "request_timeout": None}, environment)
    assert (options.namespace, options.request_timeout, options.strategy) == ("passed", 2.5, "RoundRobin")


def test_the_defaults_are_those_of_the_reference() -> None:
    options = make_options({}, {})
    assert (options.request_timeout, options.max_call_level, options.namespace) == (0, 0, "")
    assert (options.heartbeat_interval, options.heartbeat_timeout, options.shutdown_timeout) == (10, 30, 5)
    assert (options.strategy, options.prefer_local, options.protocol, options.serializer) == (
        "RoundRobin",
        True,
        None,
        "JSON",
    )


def test_c8_node_ids_are_unique_by_default() -> None:
    made = {default_node_id() for _ in range(20)}
    assert len(made) > 15
    assert make_options({}, {}).node_id != make_options({}, {}).node_id


@pytest.mark.parametrize(
    ("given", "environment", "wanted"),
    [
        ({"colour": "green"}, {}, "colour"),
        ({"protocol": "6"}, {}, r"protocol must be '4'.*'6'"),
        ({"protocol": 5}, {}, "not 5"),
        ({}, {"BROKER_REQUEST_TIMEOUT": "soon"}, r"BROKER_REQUEST_TIMEOUT must be a number, not 'soon'"),
        ({}, {"BROKER_PROTOCOL": "3"}, "protocol must be"),
        ({"request_timeout": "5"}, {}, "request_timeout.*'5'"),
        ({"heartbeat_interval": object()}, {}, "heartbeat_interval"),
        ({"max_call_level": 1.5}, {}, "max_call_level"),
        ({"prefer_local": "no"}, {}, "prefer_local"),
        ({"namespace": 5}, {}, "namespace"),
        ({"node_id": 5}, {}, "node_id"),
        ({"metadata": ["a"]}, {}, "metadata"),
        ({"request_timeout": -1}, {}, "request_timeout"),
        ({"middlewares": 5}, {}, "middlewares"),
        ({"retry_policy": 5}, {}, "retry_policy"),
        ({}, {"BROKER_PREFER_LOCAL": "perhaps"}, "BROKER_PREFER_LOCAL"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(given: dict[str, Any], environment: dict[str, str], wanted: str) -> None:
    with pytest.raises(BrokerOptionsError, match=wanted):
        make_options(given, environment)


def test_every_option_with_a_plain_value_can_come_from_the_environment() -> None:
    needs_python = {"metadata", "transporter_options", "middlewares", "transforms", "strategy_options"}
    needs_python |= {"retry_policy", "circuit_breaker", "bulkhead", "cacher", "error_handler"}
    assert _FROM_ENVIRONMENT.keys() | needs_python == {field.name for field in msgspec.structs.fields(BrokerOptions)}


def test_yes_and_no_in_the_environment() -> None:
    for text, value in [("true", True), ("1", True), ("yes", True), ("false", False), ("0", False), ("no", False)]:
        options = make_options({}, {"BROKER_PREFER_LOCAL": text, "BROKER_WAIT_FOR_CONNECTION": text})
        assert (options.prefer_local, options.wait_for_connection) == (value, value)


def test_an_empty_variable_is_none() -> None:
    assert make_options({}, {"BROKER_PROTOCOL": "", "BROKER_NAMESPACE": ""}).protocol is None
