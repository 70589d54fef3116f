"""A service is a class with marked methods, read once."""

from typing import Any

import pytest

from broker.context import Context
from broker.errors import ServiceSchemaError
from broker.services.decorators import action, event
from broker.services.service import Service, define


class Base(Service):
    name = "base"

    @action
    async def shared(self, ctx: Context) -> str:
        return "base"

    @action
    async def replaced(self, ctx: Context) -> str:
        return "base"

    @event("user.*")
    async def on_user(self, ctx: Context) -> None: ...


class Greeter(Base):
    name = "greeter"
    version = 2
    settings = {"$cache": True, "$secureSettings": ["key"], "key": "secret"}  # noqa: RUF012 - as users write it
    metadata = {"zone": "z1"}  # noqa: RUF012 - as users write it
    dependencies = ("other",)

    @action(name="sayHello", timeout=2, visibility="public", rename={"first_name": "firstName"}, rest="GET /hello")
    async def say_hello(self, ctx: Context, first_name: str) -> str:
        return f"Hello {first_name}"

    @action(cache=False)
    async def replaced(self, ctx: Context) -> str:
        return "greeter"

    @event("order.**", group="mail")
    async def on_order(self, ctx: Context) -> None: ...

    async def helper(self) -> None: ...


def test_actions_events_and_attributes_are_read() -> None:
    definition = define(Greeter())
    assert (definition.name, definition.full_name, definition.version) == ("greeter", "v2.greeter", 2)
    assert (definition.metadata, definition.dependencies) == ({"zone": "z1"}, ("other",))
    assert list(definition.actions) == ["v2.greeter.shared", "v2.greeter.replaced", "v2.greeter.sayHello"]
    hello = definition.actions["v2.greeter.sayHello"]
    assert (hello.raw_name, hello.timeout_s, hello.visibility) == ("sayHello", 2, "public")
    assert hello.extra == {"rest": "GET /hello", "cache": True}
    assert hello.parameters is not None
    assert set(hello.parameters.describe()) == {"firstName"}
    assert definition.actions["v2.greeter.shared"].parameters is None


def test_events_are_grouped_by_the_unversioned_name_of_the_service() -> None:
    assert [(e.name, e.group) for e in define(Greeter()).events] == [("user.*", "greeter"), ("order.**", "mail")]


def test_the_default_cache_of_the_service_gives_way_to_the_actions_own() -> None:
    assert define(Greeter()).actions["v2.greeter.replaced"].extra == {"cache": False}


@pytest.mark.anyio
async def test_an_override_takes_the_place_of_what_it_overrides() -> None:
    definition = define(Greeter())
    context: Any = None
    assert await definition.actions["v2.greeter.replaced"].handler(context) == "greeter"
    assert await definition.actions["v2.greeter.shared"].handler(context) == "base"


def test_an_override_without_the_mark_is_not_an_action() -> None:
    class Quiet(Base):
        name = "quiet"

        async def replaced(self, ctx: Context) -> str:
            return "not offered"

    assert list(define(Quiet()).actions) == ["quiet.shared"]


def test_secrets_are_not_announced() -> None:
    assert "secret" not in str(define(Greeter()).to_info())


def test_the_full_name_of_an_instance() -> None:
    assert Greeter().full_name == "v2.greeter"


def test_two_actions_of_one_name_are_refused() -> None:
    class Twice(Service):
        name = "twice"

        @action(name="do")
        async def first(self, ctx: Context) -> None: ...

        @action(name="do")
        async def second(self, ctx: Context) -> None: ...

    with pytest.raises(ServiceSchemaError, match=r"two actions called 'twice\.do'"):
        define(Twice())


def test_two_handlers_of_one_pattern_in_different_groups_are_refused() -> None:
    class Twice(Service):
        name = "twice"

        @event("user.*")
        async def first(self, ctx: Context) -> None: ...

        @event("user.*", group="other")
        async def second(self, ctx: Context) -> None: ...

    with pytest.raises(ServiceSchemaError, match="two handlers of 'user"):
        define(Twice())


def test_a_service_without_a_name_is_refused() -> None:
    class Nameless(Service):
        pass

    with pytest.raises(ServiceSchemaError, match="needs a name"):
        define(Nameless())


def test_a_plain_function_is_not_a_handler() -> None:
    def plain(self: Any, ctx: Context) -> None: ...

    for mark in (action, action(name="x"), event("x")):
        with pytest.raises(ServiceSchemaError, match="must be an `async def`"):
            mark(plain)


def test_a_decorated_method_stays_a_method() -> None:
    assert Greeter.say_hello.__name__ == "say_hello"


@pytest.mark.parametrize(
    ("given", "wanted"), [(Greeter, r"write Greeter\(\), not Greeter"), ("greeter", "derived from Service"), (None, "")]
)
def test_what_is_not_a_service_says_so(given: Any, wanted: str) -> None:
    with pytest.raises(ServiceSchemaError, match=f"A service is an object of a class.*{wanted}"):
        define(given)
