"""What a service declares, checked where it is written: a slip there would otherwise show as silence, or far away.

Each function raises ServiceSchemaError.
"""

import difflib
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from broker.errors import ServiceSchemaError

Visibility = Literal["published", "public", "protected", "private"]

WireName = Annotated[str, Meta(min_length=1, pattern=r"^[^\s*>]+$")]
"""A name that can be part of a NATS subject."""

Seconds = Annotated[float, Meta(ge=0)]

ALIKE = 0.8
"""From this likeness on, an option that is not known is a known one misspelt: `retry_polcy`, not `rest`."""


class ActionOptions(Struct, frozen=True, kw_only=True):
    """The options of an action that have one form."""

    name: WireName | None = None
    timeout: Seconds | None = None
    visibility: Visibility | None = None
    rename: dict[str, WireName] = {}
    convert: bool | None = None


class EventOptions(Struct, frozen=True, kw_only=True):
    """Those of an event handler."""

    pattern: Annotated[str, Meta(min_length=1)]
    group: WireName | None = None
    debounce: Seconds | None = None
    throttle: Seconds | None = None


def check_options(kind: type[Struct], what: str, **given: Any) -> None:
    """The options of an action or event must have the form of `kind`."""
    try:
        msgspec.convert({name: value for name, value in given.items() if value is not None}, kind)
    except msgspec.ValidationError as error:
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


def check_marked_once(method: Any, mark: str) -> None:
    """A second decorator would take the place of the first."""
    if hasattr(method, mark):
        raise ServiceSchemaError(
            f"{method.__qualname__} is an action or a handler of an event already: write a method for each."
        )


def signature_of(handler: Callable[..., Any]) -> list[inspect.Parameter]:
    """What a handler takes; the first is the context."""
    try:
        parameters = list(inspect.signature(handler).parameters.values())
    except ValueError:  # a method without `self`
        parameters = []
    if not parameters or parameters[0].kind is inspect.Parameter.KEYWORD_ONLY or _is_of_a_value(parameters[0]):
        raise ServiceSchemaError(f"Handler {handler.__qualname__} must take the context as its first parameter.")
    return parameters


def _is_of_a_value(parameter: inspect.Parameter) -> bool:
    """Whether it is annotated as what a caller sends, so that the context was forgotten before it."""
    written = parameter.annotation
    name = written if isinstance(written, str) else getattr(written, "__name__", "")
    return name in ("str", "int", "float", "bool", "bytes", "list", "dict", "set", "tuple")


def check_event_handler(handler: Callable[..., Any]) -> None:
    """It gets the context and nothing else."""
    _, *others = signature_of(handler)
    named = [one.name for one in others if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    if named:
        raise ServiceSchemaError(
            f"Handler {handler.__qualname__} of an event takes the context alone, not '{named[0]}': read ctx.params."
        )


def check_method_name(name: str, base: type) -> None:
    """What is marked must not replace what services are made of, such as `settings` and `started`."""
    if name in {*vars(base), *base.__annotations__}:
        raise ServiceSchemaError(
            f"'{name}' is what every service has, so it cannot be the method of an action or event. Give the method "
            f"another name, and the action its own by @action(name='{name}')."
        )


def check_mapping(service: str, name: str, value: object) -> None:
    """`settings` and `metadata` are published as objects."""
    if not isinstance(value, Mapping):
        raise ServiceSchemaError(f"The {name} of service '{service}' must be a dict, not {value!r}.")
