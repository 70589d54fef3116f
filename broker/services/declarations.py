"""What a service declares, checked where it is written: a slip there would otherwise show as silence, or far away.

Each function raises ServiceSchemaError.
"""

import difflib
import inspect
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from broker.errors import BrokerOptionsError, ServiceSchemaError
from broker.services.policies import announcement

Visibility = Literal["published", "public", "protected", "private"]

WireName = Annotated[str, Meta(min_length=1, pattern=r"^[^\s*>]+$")]
"""A name that can be part of a NATS subject."""

Seconds = Annotated[float, Meta(ge=0)]

ALIKE = 0.8
"""From this likeness on, an unknown option is a known one misspelt: `retry_polcy`, not `rest`."""


class ActionOptions(Struct, frozen=True, kw_only=True):
    """The options of an action that have one form."""

    name: WireName | None = None
    timeout: Seconds | None = None
    visibility: Visibility | None = None
    rename: dict[str, WireName] | None = None
    convert: bool | None = None
    strategy: Any = None
    strategy_options: Any = None


class EventOptions(Struct, frozen=True, kw_only=True):
    """Those of an event handler."""

    pattern: Annotated[str, Meta(min_length=1)]
    group: WireName | None = None
    strategy: Any = None
    strategy_options: Any = None
    debounce: Seconds | None = None
    throttle: Seconds | None = None


Options = TypeVar("Options", ActionOptions, EventOptions)


def checked_options(kind: type[Options], what: str, given: Mapping[str, Any]) -> tuple[Options, dict[str, Any]]:
    """The options of an action or event, and how its calls are balanced, in the words of INFO."""
    try:
        options = msgspec.convert(given, kind)
        return options, announcement(options.strategy, options.strategy_options or {})
    except (msgspec.ValidationError, BrokerOptionsError) as error:
        raise ServiceSchemaError(f"The options of {what} do not fit: {error}.") from None


def check_spelling(what: str, unknown: Iterable[str], known: Collection[str]) -> None:
    """Options that go into INFO as they are must not be known ones misspelt."""
    for name in unknown:
        meant = difflib.get_close_matches(name, known, n=1, cutoff=ALIKE)
        if meant and meant[0] != name:
            raise ServiceSchemaError(f"There is no option '{name}' of {what}. Did you mean '{meant[0]}'?")


def check_coroutine_function(method: Any, *, streams: bool = False) -> None:
    """Handlers, `started` and `stopped` are awaited; an action may yield a stream instead."""
    if not inspect.iscoroutinefunction(method) and not (streams and inspect.isasyncgenfunction(method)):
        yields = " that does not `yield`" if inspect.isasyncgenfunction(method) else ""
        raise ServiceSchemaError(f"{getattr(method, '__qualname__', method)} must be an `async def` method{yields}.")
