"""The typed parameters of an action: from the handler's signature to decoding, violations and what JS tools show."""

import copy
import inspect
import re
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, get_type_hints

import msgspec
from msgspec import Raw, Struct
from msgspec import inspect as types

from broker.errors import ServiceSchemaError, ValidationError
from broker.protocol.values import holds_bytes, typed, with_bytes
from broker.services.validator_schema import converted, converting, rule_of

_NULL = Raw(b"null")

_AT = re.compile(r" - at `\$(?P<path>[^`]*)`$")

_VALUES = ("str", "int", "float", "bool", "bytes", "list", "dict", "set", "tuple")
"""Types of what a caller sends: a first parameter of these is not the context."""


class Parameters:
    """What a handler takes after its context. With `convert`, text may stand for a number, a boolean or a date, and
    one value for a list of one.

    `kind` is the msgspec Struct that params are decoded into. A parameter annotated `msgspec.Raw` receives the JSON
    bytes of its value, unparsed; one annotated `msgspec.Raw | None`, None for null. `rename` maps Python names to wire
    names.
    """

    def __init__(self, handler: Callable[..., Any], rename: Mapping[str, str], *, convert: bool = False) -> None:
        self.names = _parameter_names(handler)
        if unknown := sorted(set(rename) - set(self.names)):
            raise ServiceSchemaError(f"Handler {handler.__qualname__} has no parameter '{unknown[0]}' to rename.")
        hints = _types(handler, self.names)
        raw_or_none = [name for name in hints if hints[name] == (Raw | None)]  # msgspec reads Raw alone
        fields: list[Any] = [
            (name, Raw if name in raw_or_none else hints[name], *_default(parameter))
            for name, parameter in self.names.items()
        ]
        self.kind: type[Struct] = msgspec.defstruct(
            f"{handler.__qualname__} parameters", fields, kw_only=True, rename=dict(rename) or None
        )
        self.fields = msgspec.structs.fields(self.kind)
        raw = {item.name: item.encode_name for item in self.fields if item.type is Raw}
        self.raw_kind: type[Struct] = msgspec.defstruct("Texts", [(name, Raw, Raw()) for name in raw], rename=raw)
        self._raw = list(raw.values())
        self._binary = [item.encode_name for item in self.fields if holds_bytes(item.type)]
        rule = rule_of(types.type_info(self.kind))
        for item in self.fields:
            if isinstance(item.default, str | int | float | bool):
                rule["props"][item.encode_name]["default"] = item.default
        self._rule = converting(rule) if convert else rule

        def with_none(values: Struct) -> dict[str, Any]:
            arguments = msgspec.structs.asdict(values)
            return arguments | {name: None for name in raw_or_none if arguments[name] == _NULL}

        self.arguments: Callable[[Struct], dict[str, Any]] = with_none if raw_or_none else msgspec.structs.asdict
        """Makes keyword arguments for the handler."""

    def convert(self, params: Any, encode: Callable[[object], Raw]) -> Struct:
        """Params of a call in this process. Raises msgspec.ValidationError when they do not fit."""
        if params is None:
            params = {}
        if isinstance(params, dict) and (self._raw or self._binary):
            changed = {name: encode(params[name]) for name in self._raw if name in params}
            changed |= {name: with_bytes(params[name]) for name in self._binary if name in params}
            params = {**params, **changed}
        values: Struct = typed(params, self.kind)
        return values

    def converted(self, params: Any, texts: Struct | None = None) -> Any:
        """Params that do not fit as they are, as the validator of JS nodes hands them on. `texts`, of `raw_kind`, has
        the values of Raw parameters as they came."""
        made = converted(params, self._rule)
        for item in msgspec.structs.fields(self.raw_kind) if texts is not None else ():
            if text := getattr(texts, item.name):
                made[item.encode_name] = text
        return made

    def violations(self, params: Any, error: Exception) -> ValidationError:
        """Everything wrong with `params`, one item a field (moleculer protocol §6.4)."""
        if not isinstance(params, dict | None):
            items: list[dict[str, Any]] = [{"type": "object", "field": "", "message": "The params must be an object."}]
        else:
            read = self.converted(params or {})
            found = [self._violation(item, params or {}, read) for item in self.fields]
            items = [item for item in found if item is not None]
        if not items:
            path, reason = _taken_apart(error)
            items.append({"type": "invalid", "field": path.lstrip("."), "message": reason})
        return ValidationError("Parameters validation error!", None, items)

    def describe(self) -> dict[str, Any]:
        """The parameters as a fastest-validator schema, which JS tools show (moleculer protocol §3.2)."""
        described: dict[str, Any] = self._rule["props"]
        return described

    def _violation(self, item: Any, params: Mapping[str, Any], read: Mapping[str, Any]) -> dict[str, Any] | None:
        """What is wrong with the value of one field, which `read` has as the validator of JS nodes hands it on."""
        name = item.encode_name
        required = {"type": "required", "field": name, "message": f"The '{name}' field is required."}
        if name not in read:
            return required if item.required else None
        given, value = params[name], read[name]
        try:
            if item.type is not Raw:
                typed(with_bytes(value) if name in self._binary else value, item.type)
        except msgspec.ValidationError as error:
            if given is None:
                return required | {"actual": None}
            below, reason = _taken_apart(error)
            path, rule = name + below, self._rule["props"][name]
            message = f"The '{path}' field does not fit: {reason[:1].lower()}{reason[1:]}."
            details = {"actual": given} if isinstance(given, str | int | float | bool) else {}
            if rule["type"] == "enum":
                details["expected"] = ", ".join(map(str, rule["values"]))
                message += f" Allowed: {details['expected']}."
            return {"type": rule["type"], "field": path, "message": message, **details}
        return None


def signature_of(handler: Callable[..., Any]) -> list[inspect.Parameter]:
    """What a handler takes; the first is the context, not a value that a caller sends."""
    try:
        parameters = list(inspect.signature(handler).parameters.values())
    except ValueError:  # a method without `self`
        parameters = []
    written = parameters[0].annotation if parameters else "str"
    keyword = parameters and parameters[0].kind is inspect.Parameter.KEYWORD_ONLY
    if keyword or getattr(written, "__name__", written) in _VALUES:
        raise ServiceSchemaError(f"Handler {handler.__qualname__} must take the context as its first parameter.")
    return parameters


def _parameter_names(handler: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    _, *parameters = signature_of(handler)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    if any(parameter.kind not in kinds for parameter in parameters):
        raise ServiceSchemaError(f"Handler {handler.__qualname__} must name its parameters: no *args, **kwargs or '/'.")
    return {parameter.name: parameter for parameter in parameters}


def _types(handler: Callable[..., Any], names: Mapping[str, object]) -> dict[str, Any]:
    """The types of these parameters alone: that of the context may be imported for a type checker only."""
    function = inspect.unwrap(handler)
    written = {name: function.__annotations__[name] for name in names if name in function.__annotations__}
    if untyped := [name for name in names if name not in written]:
        raise ServiceSchemaError(
            f"Parameter '{untyped[0]}' of action handler {handler.__qualname__} has no type. Annotate it, or take "
            "the context alone and read ctx.params."
        )
    try:
        return get_type_hints(SimpleNamespace(__annotations__=written), function.__globals__, include_extras=True)
    except NameError as error:
        raise ServiceSchemaError(
            f"A parameter of action handler {handler.__qualname__} has a type that is not there when the program runs: "
            f"{error}. Import it outside `if TYPE_CHECKING`, at the top of the module."
        ) from None


def _default(parameter: inspect.Parameter) -> tuple[Any, ...]:
    default = parameter.default
    if default is inspect.Parameter.empty:
        return ()
    mutable = isinstance(default, Struct) and not default.__struct_config__.frozen
    if mutable or isinstance(default, list | dict | set):
        return (msgspec.field(default_factory=lambda: copy.deepcopy(default)),)
    return (default,)


def _taken_apart(error: Exception) -> tuple[str, str]:
    """What msgspec says, as where and what."""
    at = _AT.search(str(error))
    return at["path"] if at else "", _AT.sub("", str(error))
