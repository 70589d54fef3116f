"""Options come from the call, else from the environment, else from the defaults; what does not fit is refused."""

import re
from typing import Any

import msgspec
import pytest

from broker import ServiceBroker
from broker.errors import BrokerOptionsError
from broker.options import _FROM_ENVIRONMENT, BrokerOptions, ignored_settings, make_options
from broker.protocol.transforms import Compression


def test_what_is_passed_wins_over_the_environment_and_that_over_the_default() -> None:
    environment = {"BROKER_NAMESPACE": "from the environment", "BROKER_REQUEST_TIMEOUT": "2.5"}
    options = make_options({"namespace": "passed", "request_timeout": None}, environment)
    assert (options.namespace, options.request_timeout, options.strategy) == ("passed", 2.5, "RoundRobin")


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
        ({"transforms": Compression()}, {}, "transforms must be a list of objects"),
        ({"transforms": [Compression]}, {}, "transforms must be a list of objects"),
        ({"retry_policy": 5}, {}, "retry_policy"),
        ({}, {"BROKER_PREFER_LOCAL": "perhaps"}, "BROKER_PREFER_LOCAL"),
        ({}, {"BROKER_RETRY_POLICY": "3"}, "BROKER_RETRY_POLICY must be a JSON object"),
        ({}, {"BROKER_CACHER": "5 s"}, "BROKER_CACHER must be true, false, memory, or a JSON object"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(given: dict[str, Any], environment: dict[str, str], wanted: str) -> None:
    with pytest.raises(BrokerOptionsError, match=wanted):
        make_options(given, environment)


def test_every_option_that_is_not_a_python_object_can_come_from_the_environment() -> None:
    objects = {"middlewares", "transforms", "error_handler"}
    assert _FROM_ENVIRONMENT.keys() | objects == {field.name for field in msgspec.structs.fields(BrokerOptions)}


def test_options_with_parts_are_json_in_the_environment() -> None:
    text = '{"enabled": true}'
    names = [
        "retry_policy",
        "circuit_breaker",
        "bulkhead",
        "metadata",
        "strategy_options",
        "transporter_options",
        "cacher",
    ]
    options = make_options({}, {f"BROKER_{name.upper()}": text for name in names})
    assert [getattr(options, name) for name in names] == [{"enabled": True}] * len(names)
    assert make_options({}, {"BROKER_CACHER": "true"}).cacher is True
    assert make_options({}, {"BROKER_CACHER": "Memory"}).cacher is True


def test_a_secret_in_the_options_of_the_transporter_is_not_shown() -> None:
    with pytest.raises(BrokerOptionsError) as caught:
        make_options({}, {"BROKER_TRANSPORTER_OPTIONS": '{"token": "geheim"'})
    assert "geheim" not in str(caught.value)


def test_yes_and_no_in_the_environment() -> None:
    for text, value in [("true", True), ("1", True), ("yes", True), ("false", False), ("0", False), ("no", False)]:
        options = make_options({}, {"BROKER_PREFER_LOCAL": text, "BROKER_WAIT_FOR_CONNECTION": text})
        assert (options.prefer_local, options.wait_for_connection) == (value, value)


def test_an_empty_variable_is_none() -> None:
    assert make_options({}, {"BROKER_PROTOCOL": "", "BROKER_NAMESPACE": ""}).protocol is None


@pytest.mark.parametrize(
    ("variable", "wanted"),
    [
        ("BROKER_REQUEST_TIMOUT", "BROKER_REQUEST_TIMOUT is set and ignored.*Did you mean BROKER_REQUEST_TIMEOUT?"),
        ("BROKER_RETRYPOLICY", "Did you mean BROKER_RETRY_POLICY?"),
        ("BROKER_PORTOCOL", "Did you mean BROKER_PROTOCOL?"),
        ("BROKER_LOG_LEVEL", r"Did you mean LOG_LEVEL\?"),
        ("BROKER_LOGFORMAT", r"Did you mean LOG_FORMAT\?"),
        ("BROKER_NATS_URL", r"Did you mean NATS_URL\?"),
        ("BROKER_URL", r"has no such option\.$"),
        ("BROKER_MIDDLEWARES", "middlewares holds Python objects"),
    ],
)
def test_a_variable_that_is_not_an_option_is_named_with_the_one_that_may_be_meant(variable: str, wanted: str) -> None:
    [line] = ignored_settings({variable: "geheim", "PATH": "/bin", "BROKER_SERIALIZER": "JSON"})
    assert re.search(wanted, line)
    assert "geheim" not in line


def test_what_kubernetes_says_of_a_service_called_broker_is_not_an_option() -> None:
    names = ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_CLIENT", "PORT", "PORT_4222_TCP", "PORT_4222_TCP_ADDR")
    assert list(ignored_settings({f"BROKER_{name}": "x" for name in (*names, "A_SERVICE_HOST")})) == []


def test_a_broker_names_the_variables_that_it_ignores(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BROKER_NAMSPACE", "prod")
    ServiceBroker("one")
    [record] = caplog.records
    assert (record.levelname, "BROKER_NAMESPACE?" in record.message) == ("WARNING", True)
