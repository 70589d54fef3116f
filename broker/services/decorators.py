"""The decorators `@action` and `@event`, and their options, checked where they are written: a slip would otherwise show
as silence, or far away."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar, overload

import msgspec
from msgspec import Meta, Struct

from broker.errors import BrokerOptionsError, ServiceSchemaError
from broker.services.policies import Seconds, announcement

F = TypeVar("F", bound=Callable[..., Any])

Visibility = Literal["published", "public", "protected", "private"]

WireName = Annotated[str, Meta(min_length=1, pattern=r"^[^\s*>]+$")]
"""A name that can be part of a NATS subject."""

ALIKE = 0.8
"""From this likeness on, an unknown option is a known one misspelt: `retry_polcy`, not `rest`."""

MARK = "_moleculer"
"""Where a method keeps its options."""

_OWN = ("name", "timeout", "visibility", "rename", "convert", "strategy", "strategy_options")
_POLICIES = ("retry_policy", "circuit_breaker", "bulkhead", "fallback", "hooks")


class Options(Struct, frozen=True, kw_only=True):
    """What a decorator says about a method."""

    balancing: dict[str, Any]
    settings: dict[str, Any]
    extra: dict[str, Any] = {}


class ActionOptions(Options, frozen=True, kw_only=True):
    name: WireName | None = None
    timeout: Seconds | None = None
    visibility: Visibility | None = None
    rename: dict[str, WireName] = {}
    convert: bool | None = None


class EventOptions(Options, frozen=True, kw_only=True):
    pattern: Annotated[str, Meta(min_length=1)]
    group: WireName | None = None
    debounce: Seconds | None = None
    throttle: Seconds | None = None


def _marker(kind: type[Options], what: str, given: dict[str, Any], settings: dict[str, Any], **more: Any) -> Any:
    """A function that makes a method an action or a handler of events. Raises ServiceSchemaError for options that do
    not fit."""
    try:
        settings = {name: value for name, value in settings.items() if value is not None}
        more |= {"balancing": announcement(given["strategy"], given["strategy_options"] or {}), "settings": settings}
        given = {name: value for name, value in given.items() if value is not None}
        options = msgspec.convert({**given, **settings, **more}, kind)
    except (msgspec.ValidationError, BrokerOptionsError) as error:
        raise ServiceSchemaError(f"The options of {what} do not fit: {error}.") from None

    def mark(method: Any) -> Any:
        check_coroutine_function(method, streams=kind is ActionOptions)
        if hasattr(method, MARK):  # this one would take its place
            raise ServiceSchemaError(
                f"{method.__qualname__} is an action or a handler of an event already: write a method for each."
            )
        setattr(method, MARK, options)
        return method

    return mark


def check_coroutine_function(method: Any, *, streams: bool = False) -> None:
    """Handlers, `started` and `stopped` are awaited; an action may yield a stream instead."""
    if not inspect.iscoroutinefunction(method) and not (streams and inspect.isasyncgenfunction(method)):
        yields = " that does not `yield`" if inspect.isasyncgenfunction(method) else ""
        raise ServiceSchemaError(f"{getattr(method, '__qualname__', method)} must be an `async def` method{yields}.")


@overload
def action(handler: F, /) -> F: ...


@overload
def action(
    *,
    name: str | None = None,
    timeout: float | None = None,
    visibility: Visibility | None = None,
    rename: Mapping[str, str] | None = None,
    convert: bool | None = None,
    strategy: str | None = None,
    strategy_options: Mapping[str, Any] | None = None,
    retry_policy: Mapping[str, Any] | None = None,
    circuit_breaker: Mapping[str, Any] | None = None,
    bulkhead: Mapping[str, Any] | None = None,
    fallback: Callable[..., Any] | str | None = None,
    hooks: Mapping[str, Any] | None = None,
    **extra: Any,
) -> Callable[[F], F]: ...


def action(handler: Any = None, /, **given: Any) -> Any:
    """Make a method an action.

    `name` is its name on the wire, the method's own by default. `timeout` in seconds is the default for callers.
    `visibility` as in Moleculer: `published`, `public`, `protected` (this node only), `private` (this service only).
    `rename` maps Python parameter names to wire names. `convert` takes text for numbers, booleans and dates, and one
    value for a list of one, as requests over HTTP have them; the broker's `convert_params` is its default. `strategy`
    (`RoundRobin`, `Random`, `CpuUsage`, `Latency`, `Shard`) is how callers choose among nodes. `retry_policy`,
    `circuit_breaker` and `bulkhead` change the broker's for this action (`broker.services.policies`). `fallback`, a
    function of (context, error) or a method's name, answers instead of an error. `hooks`: see
    `broker.middlewares.hooks`. `cache`, True or `{keys, ttl, lock, …}`, keeps results in the broker's cacher. Anything
    else (`rest`…) goes into INFO as it is.

    Parameters after the context are typed: they are validated and converted from `params`, and a violation is a
    ValidationError. A handler with the context alone reads `ctx.params`.
    """

    if isinstance(handler, str):
        raise ServiceSchemaError(f"The name of an action is an option: @action(name={handler!r}).")
    about = f"action '{given['name']}'" if given.get("name") else "an action"
    own, policies = ({name: given.pop(name, None) for name in names} for names in (_OWN, _POLICIES))
    for name in given:  # goes into INFO as it is
        meant = difflib.get_close_matches(name, (*_OWN, *_POLICIES, "cache"), 1, ALIKE)
        if meant and meant[0] != name:
            raise ServiceSchemaError(f"There is no option '{name}' of {about}. Did you mean '{meant[0]}'?")
    mark = _marker(ActionOptions, about, own, policies, extra=given)
    return mark if handler is None else mark(handler)


def event(
    pattern: str,
    *,
    group: str | None = None,
    strategy: str | None = None,
    strategy_options: Mapping[str, Any] | None = None,
    bulkhead: Mapping[str, Any] | None = None,
    debounce: float | None = None,
    throttle: float | None = None,
) -> Callable[[F], F]:
    """Make a method a handler of events whose name matches `pattern` (`*`, `**` and `?` as in Moleculer).

    Nodes of one `group`, by default the service's name, share the events that are emitted: one of them gets each, by
    `strategy`. `bulkhead` bounds how many are handled at once. `debounce` waits until that many seconds have passed
    without another event, then handles the last; `throttle` handles the first and drops what comes within that many
    seconds after it.
    """

    if callable(pattern):
        raise ServiceSchemaError("An event handler needs the name of its event: @event('user.created').")
    own = {"pattern": pattern, "group": group, "strategy": strategy, "strategy_options": strategy_options}
    settings = {"bulkhead": bulkhead, "debounce": debounce, "throttle": throttle}
    marker: Callable[[F], F] = _marker(EventOptions, f"event {pattern!r}", own, settings)
    return marker
