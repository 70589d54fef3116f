"""The innermost part of an action: typed parameters, then the handler."""

from typing import Any

import anyio
import pytest
from msgspec import Raw, Struct

from broker.context import Context, Next
from broker.errors import MoleculerClientError, ValidationError
from broker.middlewares.handler import make_handler, make_reader
from broker.protocol.codecs import make_codec
from broker.protocol.codecs.json import Codec, JSONCodec
from broker.protocol.packets import Request
from broker.services.decorators import action
from broker.services.service import Service, define

pytestmark = pytest.mark.anyio
BROKER: Any = None
CODEC = JSONCodec()


class Place(Struct):
    number: int = 1


class Typed(Service):
    name = "typed"

    @action(rename={"first_name": "firstName"})
    async def hello(self, ctx: Context, first_name: str, document: Raw = Raw(b"null")) -> list[Any]:  # noqa: B008 - never changed
        return [first_name, bytes(document)]

    @action
    async def page(
        self,
        ctx: Context,
        limit: int = 10,
        after: int | None = 5,
        place: Place = Place(),  # noqa: B008 - never changed
        document: Raw = Raw(b"null"),  # noqa: B008 - never changed
    ) -> list[Any]:
        return [limit, after, place.number, bytes(document)]

    @action
    async def free(self, ctx: Context) -> Any:
        return ctx.params

    @action
    async def together(self, ctx: Context) -> None:
        await self._fail_in_a_task()

    @action
    async def together_typed(self, ctx: Context, first_name: str) -> None:
        await self._fail_in_a_task()

    async def _fail_in_a_task(self) -> None:
        async with anyio.create_task_group() as outer, anyio.create_task_group() as tasks:
            outer.start_soon(anyio.sleep_forever)
            tasks.start_soon(self._refuse)

    async def _refuse(self) -> None:
        raise MoleculerClientError("There is no such user.", 404, "NO_SUCH_USER")


def bound(name: str, serializer: str = "JSON") -> Next:
    return make_handler(define(Typed()).actions[name], make_codec(serializer, ()))


def remote(raw: bytes, codec: Codec = CODEC) -> Context:
    request = Request(sender="js-1", id="1", action="typed.any", params=Raw(raw))
    return Context.from_request(BROKER, request, codec.decode_value, None)


def local(params: Any) -> Context:
    return Context.outgoing(BROKER, "py-1", params=params)


async def test_parameters_are_converted_from_the_wire_and_from_this_process() -> None:
    hello = bound("typed.hello")
    assert await hello(remote(b'{"firstName":"Ada","document":{ "a":1}}')) == ["Ada", b'{ "a":1}']
    assert await hello(local({"firstName": "Ada", "document": {"a": 1}})) == ["Ada", b'{"a":1}']


@pytest.mark.parametrize("raw", [b"{}", b"", b"null", b"[]", b'"text"', b'{"firstName":5}', b'{"firstName":null}'])
async def test_c58_what_does_not_fit_is_a_422_that_names_caller_and_action(raw: bytes) -> None:
    with pytest.raises(ValidationError) as caught:
        await bound("typed.hello")(remote(raw))
    for item in caught.value.data:
        assert (item["nodeID"], item["action"]) == ("js-1", "typed.hello")
        assert item["field"] in ("", "firstName")


async def test_a_lone_surrogate_reaches_a_typed_parameter() -> None:
    (name, *_) = await bound("typed.hello")(remote(b'{"firstName":"\\ud800"}'))
    assert name == "\ud800"


async def test_a_handler_with_the_context_alone_takes_anything() -> None:
    free = bound("typed.free")
    for raw, value in ((b"[1]", [1]), (b"null", None), (b"", None)):
        assert await free(remote(raw)) == value


async def test_params_that_were_changed_on_the_way_are_read_as_changed() -> None:
    hello = bound("typed.hello")
    replaced, changed, looked_at = (remote(b'{"firstName":"Ada","document":{ "a":1}}') for _ in range(3))
    replaced.params = {"firstName": "Grace"}
    changed.params["firstName"] = "Grace"
    assert looked_at.params["firstName"] == "Ada"
    assert await hello(replaced) == ["Grace", b"null"]
    assert await hello(changed) == ["Grace", b'{"a":1}']
    assert await hello(looked_at) == ["Ada", b'{ "a":1}']


def test_a_reader_checks_the_parameters_without_the_handler() -> None:
    parameters = define(Typed()).actions["typed.hello"].parameters
    assert parameters is not None
    read = make_reader(parameters, "typed.hello", CODEC)
    assert read(remote(b'{"firstName":"Ada"}'))["first_name"] == "Ada"
    with pytest.raises(ValidationError):
        read(remote(b"{}"))


@pytest.mark.parametrize("serializer", ["JSON", "MsgPack", "CBOR"])
async def test_null_takes_the_default_and_leaves_documents_as_they_came(serializer: str) -> None:
    handler, codec = bound("typed.page", serializer), make_codec(serializer, ())
    params = {"limit": None, "after": None, "place": {"number": None}, "document": {"a": [1.5, None]}}
    expected = [10, None, 1, b'{"a":[1.5,null]}']
    assert await handler(local(params)) == expected
    assert await handler(remote(codec.encode_value(params), codec)) == expected


async def test_a_document_beside_a_null_keeps_its_bytes() -> None:
    (*_, document) = await bound("typed.page")(remote(b'{"limit":null,"document":{ "a" : 1.50 }}'))
    assert document == b'{ "a" : 1.50 }'


@pytest.mark.parametrize(("name", "params"), [("together", {}), ("together_typed", {"first_name": "Ada"})])
async def test_what_a_task_group_of_a_handler_raises_is_the_error_that_ended_it(name: str, params: Any) -> None:
    with pytest.raises(MoleculerClientError, match="no such user") as caught:
        await bound(f"typed.{name}")(local(params))
    assert isinstance(caught.value.__cause__, ExceptionGroup)
