"""A slip in what a service declares raises where it is written."""

from typing import Any

import pytest

from broker import Context, Service, ServiceBroker, ServiceSchemaError, action, event
from broker.services.service import define


def nothing() -> Any:
    async def nothing(self: Any, ctx: Context) -> None: ...

    return nothing


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"timeout": "5"}, "timeout"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"visibility": "privat"}, "privat"),
        ({"name": ""}, "name"),
        ({"name": "two words"}, "two words"),
        ({"name": "a.*"}, "name"),
        ({"name": 5}, "name"),
        ({"rename": {"a": 5}}, "rename"),
        ({"name": "listDeleted", "timeuot": 5}, "'timeuot' of action 'listDeleted'. Did you mean 'timeout'"),
        ({"retry_polcy": {}}, "Did you mean 'retry_policy'"),
        ({"visiblity": "private"}, "Did you mean 'visibility'"),
        ({"cahce": True}, "Did you mean 'cache'"),
    ],
)
def test_an_option_of_an_action_that_cannot_be_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ServiceSchemaError, match=words):
        action(**options)(nothing())


def test_options_that_tools_read_go_into_info_as_they_are() -> None:
    extra: dict[str, Any] = {
        "rest": "GET /",
        "openapi": {},
        "description": "…",
        "scope": ["a"],
        "auth": True,
        "graphql": {},
    }
    method = action(**extra)(nothing())
    kind = type("Tagged", (Service,), {"name": "tagged", "nothing": method})
    assert define(kind()).actions["tagged.nothing"].extra == extra


@pytest.mark.parametrize(
    "options", [{"group": ""}, {"group": "a b"}, {"debounce": "1"}, {"throttle": -1}, {"group": ["a"]}]
)
def test_an_option_of_an_event_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ServiceSchemaError, match=next(iter(options))):
        event("user.*", **options)(nothing())


def test_a_decorator_without_its_brackets_says_what_it_needs() -> None:
    mark: Any = event
    with pytest.raises(ServiceSchemaError, match=r"@event\('user.created'\)"):
        mark(nothing())
    with pytest.raises(ServiceSchemaError, match="length"):
        mark("")
    mark = action
    with pytest.raises(ServiceSchemaError, match=r"@action\(name='hello'\)"):
        mark("hello")


@pytest.mark.parametrize("mark", [action(), event("user.*")])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_handler_without_a_context_is_refused(number: int, mark: Any) -> None:
    async def no_context(self: Any) -> None: ...
    async def no_self() -> None: ...
    async def value_first(self: Any, name: str) -> None: ...

    handler: Any = (no_context, no_self, value_first)[number]
    kind = type("Contextless", (Service,), {"name": "contextless", "handle": mark(handler)})
    with pytest.raises(ServiceSchemaError, match=f"{handler.__name__} must take the context as its first parameter"):
        ServiceBroker(services=[kind()])


def test_a_handler_of_an_event_takes_the_context_alone() -> None:
    async def two(self: Any, ctx: Context, name: str) -> None: ...
    async def anything(*args: Any, **kwargs: Any) -> None: ...

    kind = type("Curious", (Service,), {"name": "curious", "handle": event("user.*")(two)})
    with pytest.raises(ServiceSchemaError, match=r"not 'name': read ctx\.params"):
        ServiceBroker(services=[kind()])
    ServiceBroker(services=[type("Open", (Service,), {"name": "open", "handle": event("user.*")(anything)})()])


@pytest.mark.parametrize("name", ["settings", "name", "started", "broker", "logger", "actions", "start_soon"])
def test_a_handler_in_the_place_of_what_a_service_has_is_refused(name: str) -> None:
    kind = type("Hidden", (Service,), {"name": "hidden", name: action()(nothing())})
    with pytest.raises(ServiceSchemaError, match=rf"@action\(name='{name}'\)"):
        ServiceBroker(services=[kind()])


@pytest.mark.parametrize("name", ["started", "stopped"])
def test_hooks_of_life_must_be_async(name: str) -> None:
    kind = type("Sync", (Service,), {"name": "sync", name: lambda self: None})
    with pytest.raises(ServiceSchemaError, match="must be an `async def` method"):
        ServiceBroker(services=[kind()])


async def streaming(self: Any, ctx: Context) -> Any:
    yield 1


def test_an_action_may_yield_a_stream_and_an_event_handler_may_not() -> None:
    with pytest.raises(ServiceSchemaError, match="`async def` method that does not `yield`"):
        event("user.*")(streaming)
    action()(streaming)


@pytest.mark.parametrize("second", [action(), event("user.*")])
def test_a_second_decorator_does_not_take_the_place_of_the_first(second: Any) -> None:
    async def handle(self: Any, ctx: Context) -> None: ...

    with pytest.raises(ServiceSchemaError, match="handle is an action or a handler of an event already"):
        second(event("order.*")(handle))


@pytest.mark.parametrize("version", [["2"], "two words", ">", object()])
def test_a_version_that_cannot_be_part_of_a_name_is_refused(version: Any) -> None:
    kind = type("Versioned", (Service,), {"name": "versioned", "version": version})
    with pytest.raises(ServiceSchemaError, match="version"):
        ServiceBroker(services=[kind()])


@pytest.mark.parametrize("name", ["settings", "metadata"])
@pytest.mark.parametrize("value", [None, ["a"], 5])
def test_settings_and_metadata_must_be_dicts(name: str, value: Any) -> None:
    kind = type("Set", (Service,), {"name": "set", name: value})
    with pytest.raises(ServiceSchemaError, match=f"The {name} of service 'set' must be a dict"):
        ServiceBroker(services=[kind()])


def test_only_parameters_that_are_there_are_renamed() -> None:
    class Renaming(Service):
        name = "renaming"

        @action(rename={"if_hahs": "ifHash"})
        async def update(self, ctx: Context, if_hash: str) -> None: ...

    with pytest.raises(ServiceSchemaError, match="no parameter 'if_hahs'"):
        ServiceBroker(services=[Renaming()])
