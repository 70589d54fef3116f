"""What a context knows by itself; what travels is in contract/test_broker_context.py."""

from collections.abc import Callable
from typing import Any

import pytest
from msgspec import Raw

from broker.context import ABSENT, CallOptions, Context
from broker.errors import InvalidPacketDataError
from broker.protocol.codecs.json import JSONCodec
from broker.protocol.packets import Event, Request
from tests.support.example_services import Math

BROKER: Any = None


def made(event: str | None = None, **more: Any) -> Context:
    return Context.outgoing(BROKER, "one", CallOptions(**more), event=event)


def received(params: Raw, decode: Callable[[Raw], Any] = JSONCodec().decode_value) -> Context:  # noqa: B008
    return Context.from_request(BROKER, Request(sender="one", id="1", params=params), decode, None)


def test_params_are_decoded_when_asked_for_and_once() -> None:
    decoded: list[Raw] = []

    def decode(raw: Raw) -> Any:
        decoded.append(raw)
        return JSONCodec().decode_value(raw)

    ctx = received(Raw(b'{"a":1}'), decode)
    assert decoded == []
    assert ctx.params == {"a": 1}
    assert ctx.params is ctx.params
    assert len(decoded) == 1
    assert ctx.raw_params == Raw(b'{"a":1}')


def test_params_that_a_middleware_sets_replace_the_raw_ones() -> None:
    ctx = received(Raw(b'{"a":1}'))
    ctx.params = {"b": 2}
    assert ctx.params == {"b": 2}
    assert ctx.raw_params is None


def test_params_that_cannot_be_decoded_fail_where_they_are_used() -> None:
    deep = Raw(b"[" * 100_000 + b"]" * 100_000)
    ctx = received(deep)
    with pytest.raises(InvalidPacketDataError):
        _ = ctx.params


def test_each_context_has_an_id_and_names_itself_as_the_request_of_a_chain() -> None:
    first, second = made(), made()
    assert first.id != second.id
    assert first.request_id == first.id
    assert made(request_id="r").request_id == "r"


def test_meta_is_the_callers_dict_and_headers_are_a_copy() -> None:
    meta: dict[str, Any] = {}
    headers = {"h": 1}
    ctx = made(meta=meta, headers=headers)
    assert ctx.meta is meta
    ctx.headers["h"] = 2
    assert headers == {"h": 1}


def test_the_context_of_an_event_has_what_any_context_has() -> None:
    data, decode = Raw(b"1"), JSONCodec().decode_value
    event = Event(sender="one", event="e", data=data, meta={"a": 1}, headers={"b": 2}, level=2, request_id="r")
    ctx = Context.from_event(BROKER, event, decode)
    expected = made(event="e", meta={"a": 1}, headers={"b": 2}, request_id="r")
    expected.id, expected.level, expected.tracing, expected.remote = ctx.id, 2, False, True
    expected._raw, expected._decode = data, decode
    for name in Context.__struct_fields__:
        assert name == "_params" or getattr(ctx, name) == getattr(expected, name), name
    assert ctx.meta is not event.meta


def test_contexts_share_nothing_by_default() -> None:
    first, second = made(), made()
    for name in ("meta", "headers", "response_headers", "locals"):
        getattr(first, name)["changed"] = True
        assert getattr(second, name) == {}


def test_the_name_of_the_service_is_the_caller_of_nested_calls() -> None:
    ctx = made()
    assert ctx.service_name is None
    ctx.service = Math()
    assert ctx.service_name == "math"


def test_absent_is_not_none() -> None:
    assert ABSENT is not None
    assert repr(ABSENT) == "<absent>"
