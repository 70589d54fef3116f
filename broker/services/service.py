"""How a service is written: a class with `@action` and `@event` methods and two life-cycle hooks."""

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from msgspec import structs

from broker.context import Caller
from broker.errors import ServiceSchemaError
from broker.services.decorators import MARK, ActionOptions, EventOptions, check_coroutine_function
from broker.services.inheritance import entries, merge_declared
from broker.services.parameters import Parameters, signature_of
from broker.services.schema import (
    ActionDefinition,
    EventDefinition,
    ServiceDefinition,
    check_service_name,
    full_action_name,
    full_service_name,
)


class Service:
    """Base of all services. `name` and `version` make the name on the wire: `version = 2` gives `v2.greeter`, and
    `version = "staging"` gives `staging.greeter`; `$noVersionPrefix` in the settings leaves the version out of it, and
    `$noServiceNamePrefix` the service out of the names of actions.

    `settings` and `metadata` are published in INFO, except the paths that `settings["$secureSettings"]` lists, such as
    `"database.password"`. `dependencies`, full names or `{"name": …, "version": …}`, must be there before `started`
    runs. `hooks` are functions around the actions: see `broker.middlewares.hooks`.

    A mixin is a base class, a service itself or not. Actions and events are inherited and overridden as methods are;
    of several methods that listen to one pattern all run. `settings` and `metadata` are merged to any depth, the class
    itself winning over its bases in their order; `dependencies` and `$secureSettings` are joined; the hooks of all run.
    `started` and `stopped` of a mixin run when they are called by `await super().started()`.

    Write `settings = {"a": 1}`. Where Ruff's RUF012 is on, write `settings: ClassVar[dict[str, Any]] = {"a": 1}` or
    `settings: Mapping[str, Any] = {"a": 1}`; mypy takes all three.
    """

    name: ClassVar[str]
    version: ClassVar[str | int | None] = None
    dependencies: ClassVar[str | Sequence[str | Mapping[str, Any]]] = ()
    if TYPE_CHECKING:
        # Declared as properties, as only those may be overridden by class and instance variables alike.
        @property
        def settings(self) -> Mapping[str, Any]: ...
        @settings.setter
        def settings(self, value: Mapping[str, Any]) -> None: ...
        @property
        def metadata(self) -> Mapping[str, Any]: ...
        @metadata.setter
        def metadata(self, value: Mapping[str, Any]) -> None: ...
        @property
        def hooks(self) -> Mapping[str, Any]: ...
        @hooks.setter
        def hooks(self, value: Mapping[str, Any]) -> None: ...
    else:
        settings = MappingProxyType({})
        metadata = MappingProxyType({})
        hooks = MappingProxyType({})

    broker: Caller
    """The broker this service runs on; set before `started`."""
    logger: logging.Logger = logging.getLogger("broker.services.service")
    """A logger with the service's name."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        merge_declared(cls)

    @property
    def full_name(self) -> str:
        """The name on the wire, version included."""
        return full_service_name(self.name, self.version, dict(self.settings))

    @property
    def actions(self) -> "OwnActions":
        """The actions of this service, private ones too: `await self.actions.hello({"name": "Ada"}, parent=ctx)`."""
        return OwnActions(self)

    async def started(self) -> None:
        """Prepare. Done before the service is announced; an exception fails the start of the node."""

    async def stopped(self) -> None:
        """Clean up. Runs after the last request was answered."""

    def start_soon(self, function: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
        """Run a coroutine function in the background until it ends or the service stops, whichever is first.

        It is cancelled before `stopped`. An exception in it is logged and ends nothing else.
        """
        self.broker.start_in_background(self, function, *arguments)


class OwnActions:
    """Calls of a service's own actions, by their names within the service or by those of their methods.

    They run here, with everything that goes on around an action, and never on another node of the same service.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name]

    def __getitem__(self, name: str) -> Callable[..., Awaitable[Any]]:
        """For a name that is not an identifier in Python."""
        return partial(self._service.broker.call_own, self._service, name)


def define(service: Service, *, convert: bool = False) -> ServiceDefinition:
    """What a service declares, read once from its class; `convert` where an action does not say. Raises
    ServiceSchemaError for what cannot be offered."""
    if not isinstance(service, Service):
        call = f": write {service.__name__}(), not {service.__name__}" if inspect.isclass(service) else ""
        raise ServiceSchemaError(f"A service is an object of a class that is derived from Service{call}.")
    methods = _marked_methods(service)
    for hook in (service.started, service.stopped):
        check_coroutine_function(hook)
    name = check_service_name(getattr(service, "name", None))
    for kind in ("settings", "metadata"):  # published as objects
        if not isinstance(value := getattr(service, kind), Mapping):
            raise ServiceSchemaError(f"The {kind} of service '{name}' must be a dict, not {value!r}.")
    if not isinstance(service.version, str | int | float | None):
        raise ServiceSchemaError(
            f"The version of service '{name}' must be a number or a name, not {service.version!r}."
        )
    full_name, settings = check_service_name(service.full_name), dict(service.settings)
    actions: dict[str, ActionDefinition] = {}
    events: dict[str, EventDefinition] = {}
    for method in methods:
        options: ActionOptions | EventOptions = getattr(method, MARK)
        if isinstance(options, EventOptions):
            listener = _define_event(method, full_name, name, options)
            before = events.get(listener.name)
            events[listener.name] = _with_both(before, listener) if before else listener
            continue
        definition = _define_action(method, full_name, settings, options, convert=convert)
        if definition.name in actions:
            raise ServiceSchemaError(f"The service '{full_name}' has two actions called '{definition.name}'.")
        actions[definition.name] = definition
    return ServiceDefinition(
        name=name,
        full_name=full_name,
        version=service.version,
        settings=settings,
        metadata=dict(service.metadata),
        dependencies=tuple(_full_name(full_name, dependency) for dependency in entries(service.dependencies)),
        actions=actions,
        events=tuple(events.values()),
    )


def _full_name(service: str, dependency: Any) -> str:
    """The full name of a service that `service` depends on."""
    given = dependency if isinstance(dependency, Mapping) else {"name": dependency}
    name = given.get("name")
    if not isinstance(name, str) or not name:
        raise ServiceSchemaError(
            f"The service '{service}' depends on {dependency!r}, which is neither a name nor "
            '{"name": …, "version": …}.'
        )
    return full_service_name(name, given.get("version"))


def _define_action(
    method: Any, service: str, service_settings: dict[str, Any], options: ActionOptions, *, convert: bool
) -> ActionDefinition:
    raw_name = options.name or method.__name__
    converts = convert if options.convert is None else options.convert
    parameters = Parameters(method, options.rename, convert=converts)
    if options.convert and not parameters.names:
        raise ServiceSchemaError(f"Action '{raw_name}' has convert=True, but no typed parameters that it is for.")
    cache = {"cache": service_settings["$cache"]} if "$cache" in service_settings else {}
    return ActionDefinition(
        name=full_action_name(service, raw_name, service_settings),
        raw_name=raw_name,
        service=service,
        handler=method,
        parameters=parameters if parameters.names else None,
        visibility=options.visibility,
        timeout_s=options.timeout,
        settings=options.settings,
        balancing=options.balancing,
        extra=cache | options.extra,
    )


def _define_event(method: Any, service: str, group: str, options: EventOptions) -> EventDefinition:
    _, *others = signature_of(method)
    named = [one.name for one in others if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    if named:
        raise ServiceSchemaError(
            f"Handler {method.__qualname__} of an event takes the context alone, not '{named[0]}': read ctx.params."
        )
    return EventDefinition(
        name=options.pattern,
        group=options.group or group,
        service=service,
        handlers=(method,),
        settings=options.settings,
        balancing=options.balancing,
    )


def _with_both(base: EventDefinition, own: EventDefinition) -> EventDefinition:
    """One entry, as INFO lists events by their pattern, with the handlers of both; options of the latter win."""
    if base.group != own.group:
        raise ServiceSchemaError(
            f"The service '{own.service}' has two handlers of '{own.name}' in different groups, '{base.group}' and "
            f"'{own.group}'. Nodes know one group for each pattern of a service."
        )
    return structs.replace(
        own,
        handlers=(*base.handlers, *own.handlers),
        settings={**base.settings, **own.settings},
        balancing={**base.balancing, **own.balancing},
    )


def _marked_methods(service: Service) -> list[Any]:
    """Methods marked by a decorator, base classes first, an override in the place of what it overrides. One must not
    replace what services are made of, such as `settings` and `started`."""
    names: dict[str, None] = {}
    for cls in reversed(type(service).__mro__):
        for name in [name for name, member in vars(cls).items() if hasattr(member, MARK)]:
            if name in {*vars(Service), *Service.__annotations__}:
                raise ServiceSchemaError(
                    f"'{name}' is what every service has, so it cannot be the method of an action or event. Give the "
                    f"method another name, and the action its own by @action(name='{name}')."
                )
            names[name] = None
    methods = [getattr(service, name) for name in names]
    return [method for method in methods if hasattr(method, MARK)]
