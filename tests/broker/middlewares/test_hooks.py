"""Hooks of services and actions: which ones run for an action, in which order, and what they may change (§12.1)."""

import gc
import weakref
from contextlib import suppress
from typing import Any

import pytest

from broker.context import Context
from broker.errors import ServiceSchemaError
from broker.middlewares.hooks import action_hooks, handling_errors
from tests.support.targets import made_context, target

pytestmark = pytest.mark.anyio


class Posts:
    """A service whose hooks note their names."""

    def __init__(self, hooks: dict[str, Any]) -> None:
        self.hooks = hooks
        self.notes: list[str] = []

    async def note(self, ctx: Context, *more: Any) -> Any:
        self.notes.append("method")
        return more[0] if more else None

    def take(self, name: str) -> Any:
        def before(ctx: Context) -> None:
            self.notes.append(name)

        return before

    def add(self, name: str) -> Any:
        async def after(ctx: Context, result: list[str]) -> list[str]:
            return [*result, name]

        return after

    def fail(self, name: str) -> Any:
        def error(ctx: Context, error: Exception) -> Any:
            raise ValueError(f"{error}, {name}")

        return error


async def handler(ctx: Context) -> list[str]:
    return ["handler"]


async def failing(ctx: Context) -> list[str]:
    raise ValueError("handler")


def chain(service: Posts, inner: Any = handler, raw_name: str = "find", **own: Any) -> Any:
    return action_hooks(inner, target(instance=service, raw_name=raw_name, hooks=own or None))


async def test_before_hooks_run_from_the_outermost_to_the_actions_own() -> None:
    service = Posts({})
    service.hooks = {"before": {"fi*": service.take("pattern"), "*": [service.take("all 1"), service.take("all 2")]}}
    await chain(service, before=[service.take("own 1"), service.take("own 2")])(made_context())
    assert service.notes == ["all 1", "all 2", "pattern", "own 1", "own 2"]


async def test_after_hooks_run_from_the_actions_own_to_the_outermost_and_make_the_result() -> None:
    service = Posts({})
    service.hooks = {"after": {"*": service.add("all"), "get|find": [service.add("one"), service.add("two")]}}
    assert await chain(service, after=service.add("own"))(made_context()) == ["handler", "own", "one", "two", "all"]


async def test_error_hooks_run_the_same_way_until_one_returns() -> None:
    service = Posts({})
    service.hooks = {"error": {"*": service.fail("all"), "find": service.fail("pattern")}}
    with pytest.raises(ValueError, match=r"^handler, own, pattern, all$"):
        await chain(service, failing, error=service.fail("own"))(made_context())
    service.hooks["error"]["find"] = lambda ctx, error: f"mended: {error}"
    assert await chain(service, failing, error=service.fail("own"))(made_context()) == "mended: handler, own"


async def test_an_error_of_a_hook_goes_to_the_error_hooks_too() -> None:
    service = Posts({"error": {"*": lambda ctx, error: f"caught {error}"}})

    def refuse(ctx: Context) -> None:
        raise PermissionError("not you")

    assert await chain(service, before=refuse)(made_context()) == "caught not you"


async def test_what_a_failed_call_held_is_free_at_once_also_when_a_hook_raises_its_error_again() -> None:
    class Document:
        pass

    held: list[weakref.ref[Document]] = []

    async def failing(ctx: Context) -> None:
        document = Document()
        held.append(weakref.ref(document))
        raise ValueError("handler")

    def again(ctx: Context, error: Exception) -> None:
        raise error

    gc.disable()  # it would free what refers to itself, some time
    try:
        with suppress(ValueError):
            await chain(Posts({"error": {"*": again}}), failing)(made_context())
        assert held[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("find", True),
        ("fi*", True),
        ("get|find", True),
        ("create|up*", False),
        ("findAll", False),
        ("posts.find", False),
        ("**", True),
        ("f?nd", True),
    ],
)
async def test_patterns_are_of_names_within_the_service(pattern: str, fits: bool) -> None:
    service = Posts({})
    service.hooks = {"before": {pattern: service.take("seen")}}
    await chain(service)(made_context())
    assert service.notes == (["seen"] if fits else [])


@pytest.mark.parametrize("hook", ["note", Posts.note])
async def test_a_hook_may_be_a_method_or_its_name(hook: Any) -> None:
    service = Posts({"before": {"*": hook}, "after": {"*": [hook]}})
    assert await chain(service)(made_context()) == ["handler"]
    assert service.notes == ["method", "method"]


@pytest.mark.parametrize(
    ("hooks", "wanted"),
    [
        ({"before": {"*": "missing"}}, "'missing'"),
        ({"before": {"*": 5}}, "5"),
        ({"befor": {}}, "'befor'"),
        ({"before": "note"}, "must name actions"),
    ],
)
def test_a_hook_that_cannot_be_is_refused(hooks: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ServiceSchemaError, match=wanted):
        chain(Posts(hooks))


def test_without_hooks_that_fit_there_is_nothing_in_the_way() -> None:
    service = Posts({"before": {"other": "note"}})
    assert chain(service) is handler
    assert action_hooks(handler, target()) is handler


async def broken(ctx: Context) -> None:
    raise ValueError("broken")


async def test_what_an_error_handler_returns_is_the_result_and_what_it_raises_the_error() -> None:
    async def mend(error: BaseException, ctx: Context) -> Any:
        if ctx.params == "mend":
            return f"mended {error}"
        raise KeyError("worse") from error

    chain = handling_errors(mend)(broken, target())
    assert await chain(made_context("mend")) == "mended broken"
    with pytest.raises(KeyError, match="worse"):
        await chain(made_context("other"))


async def test_an_error_handler_may_be_a_plain_function() -> None:
    assert await handling_errors(lambda error, ctx: str(error))(broken, target())(made_context()) == "broken"


def test_without_an_error_handler_there_is_nothing_in_the_way() -> None:
    assert handling_errors(None)(broken, target()) is broken
