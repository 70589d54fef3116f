"""Errors have the names, codes, types and flags of Moleculer JS, and survive the way over the wire (protocol §6)."""

from typing import Any

import msgspec
import pytest

from broker import errors
from broker.errors import (
    BrokerDisconnectedError,
    MoleculerClientError,
    MoleculerError,
    MoleculerRetryableError,
    MoleculerServerError,
    PayloadTooLargeError,
    RemoteError,
    RequestTimeoutError,
    ServiceNotFoundError,
    ValidationError,
    error_from_wire,
    error_to_wire,
)
from tests.support.transits import captured

# The table of protocol §6.2: name, code, type, retryable.
TAXONOMY = [
    ("MoleculerError", 500, None, False),
    ("MoleculerRetryableError", 500, None, True),
    ("MoleculerServerError", 500, None, True),
    ("MoleculerClientError", 400, None, False),
    ("ValidationError", 422, "VALIDATION_ERROR", False),
    ("ServiceNotFoundError", 404, "SERVICE_NOT_FOUND", True),
    ("ServiceNotAvailableError", 404, "SERVICE_NOT_AVAILABLE", True),
    ("RequestTimeoutError", 504, "REQUEST_TIMEOUT", True),
    ("RequestSkippedError", 514, "REQUEST_SKIPPED", False),
    ("RequestRejectedError", 503, "REQUEST_REJECTED", True),
    ("QueueIsFullError", 429, "QUEUE_FULL", True),
    ("MaxCallLevelError", 500, "MAX_CALL_LEVEL", False),
    ("ServiceSchemaError", 500, "SERVICE_SCHEMA_ERROR", False),
    ("BrokerOptionsError", 500, "BROKER_OPTIONS_ERROR", False),
    ("GracefulStopTimeoutError", 500, "GRACEFUL_STOP_TIMEOUT", False),
    ("ProtocolVersionMismatchError", 500, "PROTOCOL_VERSION_MISMATCH", False),
    ("InvalidPacketDataError", 500, "INVALID_PACKET_DATA", False),
    ("BrokerDisconnectedError", 502, "BAD_GATEWAY", True),
    ("PayloadTooLargeError", 413, "PAYLOAD_TOO_LARGE", False),
]
FROM_DATA = {
    "ServiceNotFoundError": ({"action": "a.b", "nodeID": "n"}, "Service 'a.b' is not found on 'n' node."),
    "ServiceNotAvailableError": ({"action": "a.b", "nodeID": "n"}, "Service 'a.b' is not available on 'n' node."),
    "RequestTimeoutError": (
        {"action": "a.b", "nodeID": "n"},
        "Request is timed out when call 'a.b' action on 'n' node.",
    ),
    "RequestSkippedError": (
        {"action": "a.b", "nodeID": "n"},
        "Calling 'a.b' is skipped because timeout reached on 'n' node.",
    ),
    "RequestRejectedError": (
        {"action": "a.b", "nodeID": "n"},
        "Request is rejected when call 'a.b' action on 'n' node.",
    ),
    "QueueIsFullError": (
        {"action": "a.b", "nodeID": "n", "size": 1, "limit": 1},
        "Queue is full. Request 'a.b' action on 'n' node is rejected.",
    ),
    "MaxCallLevelError": ({"nodeID": "n", "level": 3}, "Request level is reached the limit (3) on 'n' node."),
    "GracefulStopTimeoutError": ({"name": "posts"}, "Unable to stop 'posts' service gracefully."),
    "ProtocolVersionMismatchError": ({"nodeID": "n", "actual": "5", "received": "3"}, "Protocol version mismatch."),
    "InvalidPacketDataError": ({"reason": "no JSON"}, "Invalid packet data."),
}


def make(name: str) -> MoleculerError:
    kind: Any = getattr(errors, name)
    if name in FROM_DATA:
        return kind(FROM_DATA[name][0])  # type: ignore[no-any-return]  # every class here is a MoleculerError
    if name == "BrokerDisconnectedError":
        return BrokerDisconnectedError()
    if name in ("PayloadTooLargeError", "ServiceSchemaError", "BrokerOptionsError"):
        return kind("what happened", {"a": 1})  # type: ignore[no-any-return]  # same
    error: MoleculerError = kind("what happened", data=[{"field": "a"}])
    return error


def over_the_wire(error: BaseException, node_id: str = "js-1") -> MoleculerError:
    encoded = msgspec.json.encode(error_to_wire(error, node_id))
    return error_from_wire(msgspec.json.decode(encoded), node_id)


@pytest.mark.parametrize(("name", "code", "type", "retryable"), TAXONOMY)
def test_c55_every_class_has_the_code_type_and_flag_of_the_reference(
    name: str, code: int, type: str | None, retryable: bool
) -> None:
    error = make(name)
    assert (error.name, error.code, error.type, error.retryable) == (name, code, type, retryable)
    assert str(error) == error.message


@pytest.mark.parametrize(("name", "code", "type", "retryable"), TAXONOMY)
def test_c55_every_class_survives_the_way_over_the_wire(
    name: str, code: int, type: str | None, retryable: bool
) -> None:
    sent = make(name)
    received = over_the_wire(sent)
    assert received.__class__ is sent.__class__
    assert (received.message, received.code, received.type, received.data, received.retryable) == (
        sent.message,
        sent.code,
        sent.type,
        sent.data,
        sent.retryable,
    )
    assert received.node_id == "js-1"
    assert received.stack is not None
    assert received.stack.startswith(f"{name}: {sent.message}")


@pytest.mark.parametrize("name", FROM_DATA)
def test_messages_of_data_errors_are_made_from_the_data_on_both_sides(name: str) -> None:
    data, message = FROM_DATA[name]
    assert make(name).message == message
    wire = {"name": name, "message": "something else", "code": 1, "type": "OTHER", "data": data}
    assert error_from_wire(wire, "js-1").message == message


def test_a_service_that_is_not_found_is_named_as_in_js() -> None:
    assert str(ServiceNotFoundError({"action": "a.b"})) == "Service 'a.b' is not found."
    assert str(ServiceNotFoundError({"service": "posts", "version": "v2"})) == "Service 'v2.posts' not found."
    assert str(ServiceNotFoundError({"service": "posts"})) == "Service 'posts' not found."
    assert str(ServiceNotFoundError({"action": "", "nodeID": "n"})) == "Service '' is not found on 'n' node."


def test_the_tree_is_that_of_the_reference() -> None:
    assert issubclass(MoleculerServerError, MoleculerRetryableError)
    assert issubclass(ServiceNotFoundError, MoleculerRetryableError)
    assert issubclass(ValidationError, MoleculerClientError)
    assert issubclass(PayloadTooLargeError, MoleculerClientError)
    assert not issubclass(errors.RequestSkippedError, MoleculerRetryableError)


def test_what_a_service_gives_itself_wins_over_the_defaults() -> None:
    error = over_the_wire(MoleculerRetryableError("mine", 599, "MY_RETRY", {"z": 1}))
    assert (error.code, error.type, error.data, error.retryable) == (599, "MY_RETRY", {"z": 1}, True)


def test_c53_errors_made_from_data_always_send_an_object() -> None:
    for name in FROM_DATA:
        kind: Any = getattr(errors, name)
        assert error_to_wire(kind(), "py-1")["data"] == {}


def test_c52_retryable_and_message_are_always_sent() -> None:
    for error in (make("MoleculerError"), ValueError("plain"), KeyError("key"), RuntimeError()):
        wire = error_to_wire(error, "py-1")
        assert isinstance(wire["retryable"], bool)
        assert isinstance(wire["message"], str)
        assert wire["nodeID"] == "py-1"


def test_c52_what_an_error_does_not_define_is_left_out_as_js_leaves_out_undefined() -> None:
    always = {"name", "message", "nodeID", "retryable", "stack"}
    assert error_to_wire(MoleculerError("plain"), "py-1").keys() == always | {"code"}
    assert error_to_wire(RemoteError("Error", "of a JS node"), "py-1").keys() == always


def test_an_error_of_python_is_a_500_with_its_name_and_place() -> None:
    try:
        raise ValueError("no such colour")
    except ValueError as error:
        wire = error_to_wire(error, "py-1")
    assert (wire["name"], wire["message"], wire["code"]) == ("ValueError", "no such colour", 500)
    assert "test_errors.py" in wire["stack"]


def test_c56_an_unknown_class_keeps_its_name_code_type_data_and_flag() -> None:
    sent = RemoteError("MyError", "mine", "E_CUSTOM", "MINE", {"a": [1]})
    sent.retryable = True
    received = over_the_wire(sent)
    assert isinstance(received, RemoteError)
    assert (received.name, received.message, received.code, received.type, received.data, received.retryable) == (
        "MyError",
        "mine",
        "E_CUSTOM",
        "MINE",
        {"a": [1]},
        True,
    )


def test_c56_a_name_of_a_base_class_of_this_module_is_an_unknown_class() -> None:
    for name in ("_DataError", "_RetryableDataError", "_MessageError"):
        assert isinstance(error_from_wire({"name": name, "message": "x"}, "js"), RemoteError)


def test_c57_a_forwarded_error_keeps_the_node_it_came_from() -> None:
    received = over_the_wire(RequestTimeoutError({"action": "a.b", "nodeID": "js-3"}), "js-3")
    assert error_to_wire(received, "py-1")["nodeID"] == "js-3"
    assert error_to_wire(received, "py-1")["stack"] == received.stack


def test_c59_odd_messages_and_codes_of_js_are_taken_as_they_are() -> None:
    error = error_from_wire({"name": "MoleculerError", "message": {"a": 1}, "code": "E_X"}, "js-1")
    assert (error.message, error.code) == ({"a": 1}, "E_X")
    assert str(error) == "{'a': 1}"


def test_a_missing_flag_means_not_retryable() -> None:
    assert error_from_wire({"name": "MoleculerServerError", "message": "x"}, "js-1").retryable is False


def test_the_code_of_a_validation_error_is_always_422() -> None:
    error = error_from_wire({"name": "ValidationError", "message": "x", "code": 400, "data": []}, "js-1")
    assert (error.code, error.type, error.data) == (422, "VALIDATION_ERROR", [])


@pytest.mark.parametrize("wire", [None, "text", 7, [], True])
def test_c54_a_failure_without_an_error_says_so(wire: object) -> None:
    error = error_from_wire(wire, "js-1")
    assert "js-1" in str(error)
    assert error.node_id == "js-1"


@pytest.mark.parametrize("name", FROM_DATA)
@pytest.mark.parametrize("data", ["text", 5, [1], True])
def test_data_of_the_wrong_kind_is_kept_instead_of_failing(name: str, data: object) -> None:
    error = error_from_wire({"name": name, "message": "m", "data": data}, "js-1")
    assert error.name == name
    assert error.data == data


@pytest.mark.parametrize("protocol", ["4", "5"])
def test_every_captured_error_is_recreated(protocol: str) -> None:
    seen = set()
    for number, command, packet, note in captured(protocol):
        if command != "RES" or not packet.get("error"):
            continue
        wire = packet["error"]
        error = error_from_wire(wire, packet["sender"])
        seen.add(error.name)
        assert error.name == wire["name"], (number, note)
        assert error.retryable == bool(wire.get("retryable")), (number, note)
        assert error.node_id == wire.get("nodeID", packet["sender"]), (number, note)
        again = error_to_wire(error, "py-1")
        expected = {key: value for key, value in wire.items() if key not in ("retryable", "stack")}
        if error.name == "GracefulStopTimeoutError":  # arrives without its service in JS, too (§6.3)
            expected |= {"message": again["message"]}
        expected.setdefault("data", again.get("data"))
        assert {key: again.get(key) for key in expected} == expected, (number, note)
    assert {name for name, *_ in TAXONOMY} - {"PayloadTooLargeError"} <= seen


def test_an_error_that_cannot_be_printed_is_sent_all_the_same() -> None:
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise AttributeError("half made")

    wire = error_to_wire(Unprintable(), "py-1")
    assert (wire["name"], wire["message"]) == ("Unprintable", "Unprintable, which cannot be printed")
