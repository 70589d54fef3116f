"""`$node.options` is in the words of Moleculer and holds no secret."""

from typing import Any

import msgspec
import pytest

from broker.internals.service import show_options
from broker.options import make_options


def shown(**given: Any) -> dict[str, Any]:
    return show_options(make_options({"node_id": "py", **given}, {}))


def test_names_and_units_are_those_of_moleculer() -> None:
    options = shown(namespace="test", request_timeout=2.5, heartbeat_interval=5.0, prefer_local=False)
    assert options["nodeID"] == "py"
    assert options["namespace"] == "test"
    assert options["requestTimeout"] == 2500
    assert options["heartbeatInterval"] == 5.0
    assert options["registry"]["preferLocal"] is False
    assert options["registry"]["strategy"] == "RoundRobin"
    assert options["tracking"] == {"enabled": True, "shutdownTimeout": 5000}
    assert options["internalServices"] is True


@pytest.mark.parametrize(
    ("transporter", "expected"),
    [
        ("nats://user:hidden@a:4222,nats://user:hidden@b:4222", "nats://***@a:4222,nats://***@b:4222"),
        ("user:hidden@host:4222", "nats://***@host:4222"),
        (["nats://user:hidden@a:4222"], ["nats://***@a:4222"]),
        (None, None),
    ],
)
def test_the_transporter_is_shown_without_its_password(transporter: Any, expected: Any) -> None:
    assert shown(transporter=transporter)["transporter"] == expected


def test_no_secret_of_the_transporter_and_no_function_is_shown() -> None:
    async def around(call_next: Any, ctx: Any) -> Any:
        return await call_next(ctx)

    options = shown(transporter_options={"token": "hidden", "password": "hidden", "name": "n"}, middlewares=[around])
    assert options["transporterOptions"] == {"token": "***", "password": "***", "name": "n"}
    assert b"hidden" not in msgspec.json.encode(options)
