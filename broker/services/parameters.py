"""The typed parameters of an action: from the handler's signature to decoding, violations and what JS tools show."""

import copy
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any, Optional, get_type_hints

import msgspec
from msgspec import Raw, Struct
from msgspec import inspect as types

from broker.errors import ServiceSchemaError, ValidationError
from broker.protocol.buffers import with_bytes
from broker.protocol.typed import holds_bytes, typed
from broker.services.conversion import converted, converting
from broker.services.declarations import signature_of
from broker.services.validator_schema import rule_of

_NULL = Raw(b"null")

_RAW_OR_NONE = (Raw | None, Optional[Raw])  # noqa: UP045 - a union by either spelling

_AT = re.compile(r" - at `\$(?P<path>[^`]*)`$")


class Parameters:
    """What a handler takes after its context. With `convert`, text may stand for a number, a boolean or a date, and
    one value for a list of one (`broker.services.conversion`).

    `kind` is the msgspec Struct that params are decoded into. A parameter annotated `msgspec.Raw` receives the JSON
    bytes of its value, unparsed; one annotated `msgspec.Raw | None`, None for null. `rename` maps Python names to wire
    names.
    """

    def __init__(self, handler: Callable[..., Any], rename: Mapping[str, str], *, convert: bool = False) -> None:
        self.names = _parameter_names(handler)
        if unknown := sorted(set(rename) - set(self.names)):
            raise ServiceSchemaError(f"Handler {handler.__qualname__} has no parameter '{unknown[0]}' to rename.")
        hints = _types(handler, self.names)
        fields: list[Any] = []
        self._nullable: set[str] = set()
        for name, parameter in self.names.items():
            if name not in hints:
                raise ServiceSchemaError(
                    f"Parameter '{name}' of action handler {handler.__qualname__} has no type. Annotate it, or take "
                    "the context alone and read ctx.params."
                )
            optional_text = hints[name] in _RAW_OR_NONE  # msgspec reads Raw alone, so None is made here
            self._nullable |= {name} if optional_text else set()
            fields.append((name, Raw if optional_text else hints[name], *_default(parameter)))
        self.kind: type[Struct] = msgspec.defstruct(
            f"{handler.__qualname__} parameters", fields, kw_only=True, rename=dict(rename) or None
        )
        self.fields = msgspec.structs.fields(self.kind)
        raw = [item for item in self.fields if item.type is Raw]
        self._raw = [item.encode_name for item in raw]
        self.raw_kind: type[Struct] = msgspec.defstruct(
            "RawParameters", [(item.name, Raw, Raw()) for item in raw], rename={i.name: i.encode_name for i in raw}
        )
        self._binary = [item.encode_name for item in self.fields if holds_bytes(item.type)]
        rules = {item.encode_name: _rule(item) for item in self.fields}
        self._rules = {name: converting(rule) if convert else rule for name, rule in rules.items()}
        self.arguments: Callable[[Struct], dict[str, Any]] = (
            self._with_none if self._nullable else msgspec.structs.asdict
        )
        """Makes keyword arguments for the handler."""

    def _with_none(self, values: Struct) -> dict[str, Any]:
        arguments = msgspec.structs.asdict(values)
        return arguments | {name: None for name in self._nullable if arguments[name] == _NULL}

    def convert(self, params: Any, encode: Callable[[object], Raw]) -> Struct:
        """Params of a call in this process. Raises msgspec.ValidationError when they do not fit."""
        if params is None:
            params = {}
        if isinstance(params, dict):
            changed = {name: encode(params[name]) for name in self._raw if name in params}
            changed |= {name: with_bytes(params[name]) for name in self._binary if name in params}
            params = {**params, **changed} if changed else params
        values: Struct = typed(params, self.kind)
        return values

    def converted(self, params: Any, texts: Struct | None = None) -> Any:
        """Params that do not fit as they are, as the validator of JS nodes hands them on. `texts`, of `raw_kind`, has
        the values of Raw parameters as they came."""
        made = converted(params, {"type": "object", "props": self._rules})
        for item in msgspec.structs.fields(self.raw_kind) if texts is not None else ():
            if text := getattr(texts, item.name):
                made[item.encode_name] = text
        return made

    def violations(self, params: Any, error: Exception) -> ValidationError:
        """Everything wrong with `params`, one item a field (moleculer protocol §6.4)."""
        items: list[dict[str, Any]] = []
        if not isinstance(params, dict | None):
            items.append({"type": "object", "field": "", "message": "The params must be an object."})
        else:
            read = self.converted(params or {})
            for item in self.fields:
                items.extend(self._violation(item, params or {}, read))
        if not items:
            path, reason = _taken_apart(str(error))
            items.append({"type": "invalid", "field": path.lstrip("."), "message": reason})
        return ValidationError("Parameters validation error!", None, items)

    def describe(self) -> dict[str, Any]:
        """The parameters as a fastest-validator schema, which JS tools show (moleculer protocol §3.2)."""
        return dict(self._rules)

    def _violation(self, item: Any, params: Mapping[str, Any], read: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What is wrong with the value of one field, which `read` has as the validator of JS nodes hands it on."""
        name = item.encode_name
        if name not in read:
            return [_required(name)] if item.required else []
        if item.type is Raw:
            return []
        given, value = params[name], read[name]
        try:
            typed(with_bytes(value) if name in self._binary else value, item.type)
        except msgspec.ValidationError as error:
            if given is None:
                return [_required(name) | {"actual": None}]
            below, reason = _taken_apart(str(error))
            path = name + below
            message = f"The '{path}' field does not fit: {_lower(reason)}."
            violation = {"type": self._rules[name]["type"], "field": path, "message": message}
            if isinstance(given, str | int | float | bool):
                violation["actual"] = given
            return [violation]
        return []


def _required(name: str) -> dict[str, Any]:
    return {"type": "required", "field": name, "message": f"The '{name}' field is required."}


def _parameter_names(handler: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = signature_of(handler)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    if any(parameter.kind not in kinds for parameter in parameters[1:]):
        raise ServiceSchemaError(f"Handler {handler.__qualname__} must name its parameters: no *args, **kwargs or '/'.")
    return {parameter.name: parameter for parameter in parameters[1:]}


def _types(handler: Callable[..., Any], names: Iterable[str]) -> dict[str, Any]:
    """The types of these parameters alone: that of the context may be imported for a type checker only."""
    function = inspect.unwrap(handler)
    written = {name: function.__annotations__[name] for name in names if name in function.__annotations__}
    try:
        return get_type_hints(SimpleNamespace(__annotations__=written), function.__globals__, include_extras=True)
    except NameError as error:
        raise ServiceSchemaError(
            f"A parameter of action handler {handler.__qualname__} has a type that is not there when the program runs: "
            f"{error}. Import it outside `if TYPE_CHECKING`, at the top of the module."
        ) from None


def _rule(item: Any) -> dict[str, Any]:
    rule = rule_of(types.type_info(item.type))
    if not item.required:
        rule["optional"] = True
        if isinstance(item.default, str | int | float | bool):
            rule["default"] = item.default
    return rule


def _default(parameter: inspect.Parameter) -> tuple[Any, ...]:
    default = parameter.default
    if default is inspect.Parameter.empty:
        return ()
    if isinstance(default, list | dict | set | Struct):
        return (msgspec.field(default_factory=lambda: copy.deepcopy(default)),)
    return (default,)


def _taken_apart(text: str) -> tuple[str, str]:
    """What msgspec says, as where and what."""
    at = _AT.search(text)
    return at["path"] if at else "", _AT.sub("", text)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
