"""How a service is written: a class with `@action` and `@event` methods and two life-cycle hooks."""

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

from broker.errors import BrokerOptionsError, ServiceSchemaError
from broker.parameters import Parameters
from broker.schema import (
    ActionDefinition,
    EventDefinition,
    ServiceDefinition,
    Visibility,
    check_service_name,
    full_action_name,
    full_service_name,
)
from broker.strategies import announcement

if TYPE_CHECKING:
    from broker.broker import ServiceBroker

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "_moleculer"


@overload
def action(handler: F, /) -> F: ...


@overload
def action(
    *,
    name: str | None = None,
    timeout: float | None = None,
    visibility: Visibility | None = None,
    rename: Mapping[str, str] | None = None,
    strategy: str | None = None,
    strategy_options: Mapping[str, Any] | None = None,
    retry_policy: Mapping[str, Any] | None = None,
    circuit_breaker: Mapping[str, Any] | None = None,
    bulkhead: Mapping[str, Any] | None = None,
    fallback: Callable[..., Any] | str | None = None,
    hooks: Mapping[str, Any] | None = None,
    **extra: Any,
) -> Callable[[F], F]: ...


def action(
    handler: Any = None,
    /,
    *,
    name: str | None = None,
    timeout: float | None = None,
    visibility: Visibility | None = None,
    rename: Mapping[str, str] | None = None,
    strategy: str | None = None,
    strategy_options: Mapping[str, Any] | None = None,
    retry_policy: Mapping[str, Any] | None = None,
    circuit_breaker: Mapping[str, Any] | None = None,
    bulkhead: Mapping[str, Any] | None = None,
    fallback: Callable[..., Any] | str | None = None,
    hooks: Mapping[str, Any] | None = None,
    **extra: Any,
) -> Any:
    """Make a method an action.

    `name` is its name on the wire, the method's own by default. `timeout` in seconds is the default for callers.
    `visibility` as in Moleculer: `published`, `public`, `protected` (this node only), `private` (this service only).
    `rename` maps Python parameter names to wire names. `strategy` (`RoundRobin`, `Random`, `CpuUsage`, `Latency`,
    `Shard`) is how callers choose among nodes. `retry_policy`, `circuit_breaker` and `bulkhead` change the broker's
    for this action (`broker.policies`). `fallback`, a function of (context, error) or a method's name, answers instead
    of an error. `hooks`: see `broker.middlewares.hooks`. `cache`, True or `{keys, ttl, lock, …}`, keeps results in the
    broker's cacher. Anything else (`rest`…) goes into INFO as it is.

    Parameters after the context are typed: they are validated and converted from `params`, and a violation is a
    ValidationError. A handler with the context alone reads `ctx.params`.
    """

    def mark(method: Any) -> Any:
        _expect_coroutine(method)
        options = {"name": name, "timeout_s": timeout, "visibility": visibility, "rename": rename or {}, "extra": extra}
        options |= {"strategy": strategy, "strategy_options": strategy_options or {}}
        options["settings"] = _given(
            retry_policy=retry_policy,
            circuit_breaker=circuit_breaker,
            bulkhead=bulkhead,
            fallback=fallback,
            hooks=hooks,
        )
        setattr(method, _MARK, ("action", options))
        return method

    return mark(handler) if handler is not None else mark


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

    def mark(method: Any) -> Any:
        _expect_coroutine(method)
        options = {"pattern": pattern, "group": group, "strategy": strategy, "strategy_options": strategy_options or {}}
        options["settings"] = _given(bulkhead=bulkhead, debounce=debounce, throttle=throttle)
        setattr(method, _MARK, ("event", options))
        return method

    return mark


def _given(**settings: Any) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


class Service:
    """Base of all services. `name` and `version` make the name on the wire: `version = 2` gives `v2.greeter`.

    `settings` and `metadata` are published in INFO, except what `$secureSettings` lists. `dependencies` are full names
    of services that must be there before `started` runs.
    """

    name: ClassVar[str]
    version: ClassVar[str | int | None] = None
    settings: Mapping[str, Any] = {}
    metadata: Mapping[str, Any] = {}
    dependencies: ClassVar[tuple[str, ...]] = ()
    hooks: Mapping[str, Any] = {}
    """Functions around the actions: see `broker.middlewares.hooks`."""

    broker: "ServiceBroker"
    """The broker this service runs on; set before `started`."""
    logger: logging.Logger = logging.getLogger("broker.service")
    """A logger with the service's name."""

    @property
    def full_name(self) -> str:
        """The name on the wire, version included."""
        return full_service_name(self.name, self.version, dict(self.settings))

    async def started(self) -> None:
        """Prepare. Done before the service is announced; an exception fails the start of the node."""

    async def stopped(self) -> None:
        """Clean up. Runs after the last request was answered."""

    def start_soon(self, function: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
        """Run a coroutine function in the background until it ends or the service stops, whichever is first.

        It is cancelled before `stopped`. An exception in it is logged and ends nothing else.
        """
        self.broker.start_in_background(self, function, *arguments)


def define(service: Service) -> ServiceDefinition:
    """What a service declares, read once from its class. Raises ServiceSchemaError for what cannot be offered."""
    name = check_service_name(getattr(service, "name", None))
    settings = dict(service.settings)
    full_name = service.full_name
    actions: dict[str, ActionDefinition] = {}
    events: list[EventDefinition] = []
    for method in _marked_methods(service):
        kind, options = getattr(method, _MARK)
        if kind == "event":
            if any(other.name == options["pattern"] for other in events):  # INFO lists events by their pattern
                raise ServiceSchemaError(f"The service '{full_name}' has two handlers of '{options['pattern']}'.")
            events.append(_define_event(method, full_name, options["group"] or name, options))
            continue
        definition = _define_action(method, full_name, settings, options)
        if definition.name in actions:
            raise ServiceSchemaError(f"The service '{full_name}' has two actions called '{definition.name}'.")
        actions[definition.name] = definition
    return ServiceDefinition(
        name=name,
        full_name=full_name,
        version=service.version,
        settings=settings,
        metadata=dict(service.metadata),
        dependencies=tuple(service.dependencies),
        actions=actions,
        events=tuple(events),
    )


def _define_action(method: Any, service: str, settings: dict[str, Any], options: dict[str, Any]) -> ActionDefinition:
    raw_name = options["name"] or method.__name__
    for name in ("retryPolicy", "circuitBreaker", "strategyOptions"):
        if name in options["extra"]:
            raise ServiceSchemaError(f"'{name}' of action '{raw_name}' is spelt in Python's way: `retry_policy=…`.")
    parameters = Parameters(method, options["rename"])
    extra = dict(options["extra"])
    if "$cache" in settings:
        extra.setdefault("cache", settings["$cache"])
    return ActionDefinition(
        name=full_action_name(service, raw_name, settings),
        raw_name=raw_name,
        service=service,
        handler=method,
        parameters=parameters if parameters.names else None,
        visibility=options["visibility"],
        timeout_s=options["timeout_s"],
        settings=options["settings"],
        balancing=_balancing(options),
        extra=extra,
    )


def _define_event(method: Any, service: str, group: str, options: dict[str, Any]) -> EventDefinition:
    return EventDefinition(
        name=options["pattern"],
        group=group,
        service=service,
        handler=method,
        settings=options["settings"],
        balancing=_balancing(options),
    )


def _balancing(options: dict[str, Any]) -> dict[str, Any]:
    try:
        return announcement(options["strategy"], options["strategy_options"])
    except BrokerOptionsError as error:
        raise ServiceSchemaError(str(error)) from None


def _marked_methods(service: Service) -> list[Any]:
    """Methods marked by a decorator, base classes first, an override in the place of what it overrides."""
    names: dict[str, None] = {}
    for cls in reversed(type(service).__mro__):
        for name, member in vars(cls).items():
            if hasattr(member, _MARK):
                names[name] = None
    methods = [getattr(service, name) for name in names]
    return [method for method in methods if hasattr(method, _MARK)]


def _expect_coroutine(method: Any) -> None:
    if not inspect.iscoroutinefunction(method) and not inspect.isasyncgenfunction(method):
        raise ServiceSchemaError(f"{getattr(method, '__qualname__', method)} must be an `async def` method.")
