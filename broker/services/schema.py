"""What a service declares, as data: names, actions, events and their form in INFO (moleculer protocol §3.2, §9.5)."""

from collections.abc import Awaitable, Callable
from functools import reduce
from typing import Any

from msgspec import Struct

from broker.errors import ServiceSchemaError
from broker.services.decorators import Visibility
from broker.services.parameters import Parameters
from broker.services.policies import announce_policies, without_functions

Handler = Callable[..., Awaitable[Any]]


class ActionDefinition(Struct, frozen=True, kw_only=True, eq=False):
    """One action. `name` is the full name on the wire, `raw_name` the one within its service."""

    name: str
    raw_name: str
    service: str
    handler: Handler
    parameters: Parameters | None = None
    visibility: Visibility | None = None
    timeout_s: float | None = None
    settings: dict[str, Any] = {}
    """`retry_policy`, `circuit_breaker`, `bulkhead`, `fallback`, `hooks`, as far as given."""
    balancing: dict[str, Any] = {}
    """`strategy` and `strategyOptions`, as far as given, in the words of INFO."""
    extra: dict[str, Any] = {}
    """More keys for INFO, such as `rest` or `cache`, for API gateways and tools."""

    def to_info(self) -> dict[str, Any]:
        """The action as peers see it. `fallback` and strategies that JS does not know never go out (§3.2)."""
        info: dict[str, Any] = without_functions({**self.extra, **announce_policies(self.settings), **self.balancing})
        info.pop("fallback", None)
        info |= {"rawName": self.raw_name, "name": self.name}
        if self.parameters is not None:
            info["params"] = self.parameters.describe()
        if self.visibility is not None:
            info["visibility"] = self.visibility
        if self.timeout_s is not None:
            info["timeout"] = self.timeout_s * 1000
        return info


class EventDefinition(Struct, frozen=True, kw_only=True, eq=False):
    """One event handler: `name` is a pattern, `group` the one in which nodes share the work."""

    name: str
    group: str
    service: str
    handlers: tuple[Handler, ...]
    """Several when base classes of the service listen to the same pattern; all of them run."""
    settings: dict[str, Any] = {}
    """`bulkhead`, `debounce` and `throttle`, as far as given; the latter two in seconds."""
    balancing: dict[str, Any] = {}

    def to_info(self) -> dict[str, Any]:
        """The handler as peers see it."""
        times = {name: self.settings[name] * 1000 for name in ("debounce", "throttle") if self.settings.get(name)}
        options: dict[str, Any] = without_functions({**self.balancing, **announce_policies(self.settings)})
        return {"name": self.name, "group": self.group, **options, **times}


class ServiceDefinition(Struct, frozen=True, kw_only=True, eq=False):
    """One service of this node."""

    name: str
    full_name: str
    version: str | int | None = None
    settings: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    dependencies: tuple[str, ...] = ()
    actions: dict[str, ActionDefinition]
    events: tuple[EventDefinition, ...]

    def to_info(self) -> dict[str, Any]:
        """The service as peers see it: no private actions, no secure settings (§3.2)."""
        return {
            "name": self.name,
            "fullName": self.full_name,
            "settings": public_settings(self.settings),
            "metadata": self.metadata,
            "actions": {a.name: a.to_info() for a in self.actions.values() if a.visibility != "private"},
            "events": {event.name: event.to_info() for event in self.events},
            **({} if self.version is None else {"version": self.version}),
        }


def full_service_name(name: str, version: str | int | None, settings: dict[str, Any] | None = None) -> str:
    """`posts`, `v2.posts` or `staging.posts` (§9.5)."""
    if version is None or (settings or {}).get("$noVersionPrefix"):
        return name
    return f"{version}.{name}" if isinstance(version, str) else f"v{version}.{name}"


def full_action_name(service: str, raw_name: str, settings: dict[str, Any] | None = None) -> str:
    """The service's full name and the action's own; the latter alone with `$noServiceNamePrefix` (§9.5)."""
    return raw_name if (settings or {}).get("$noServiceNamePrefix") else f"{service}.{raw_name}"


def public_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without the paths that `$secureSettings` lists, and without that list (§3.2)."""
    secure = settings.get("$secureSettings")
    if not isinstance(secure, list):
        return settings
    return reduce(_without, [str(path).split(".") for path in ["$secureSettings", *secure]], settings)


def _without(settings: dict[str, Any], path: list[str]) -> dict[str, Any]:
    first, *rest = path
    inner = settings.get(first)
    if not rest:
        return {key: value for key, value in settings.items() if key != first}
    return {**settings, first: _without(inner, rest)} if isinstance(inner, dict) else settings


def check_service_name(name: object) -> str:
    """A usable service name. Raises ServiceSchemaError."""
    if not isinstance(name, str) or not name or any(character in name for character in " \t\r\n*>"):
        raise ServiceSchemaError(f"A service needs a name without blanks, '*' and '>', not {name!r}.")
    return name
