"""The options of a broker: from what was passed, else from the environment, else the defaults."""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from broker.defaults import BrokerOptions, default_node_id
from broker.errors import BrokerOptionsError
from broker.protocol.packets import PROTOCOLS


def _yes_or_no(text: str) -> bool:
    if text.lower() not in _SWITCH:
        raise ValueError
    return _SWITCH[text.lower()]


_SWITCH = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def _json_object(text: str) -> dict[str, Any]:
    return msgspec.json.decode(text, type=dict[str, Any])


def _cacher(text: str) -> Any:
    if text.lower() == "memory":
        return True
    return _SWITCH[text.lower()] if text.lower() in _SWITCH else _json_object(text)


_MUST_BE = {
    float: "a number",
    int: "a whole number",
    _yes_or_no: "true or false",
    _json_object: 'a JSON object, such as {"enabled": true}',
    _cacher: 'true, false, memory, or a JSON object such as {"ttl": 30}',
}

_FROM_ENVIRONMENT: dict[str, Callable[[str], Any]] = {
    "node_id": str,
    "namespace": str,
    "transporter": str,
    "transporter_options": _json_object,
    "serializer": str,
    "protocol": str,
    "request_timeout": float,
    "wait_for_connection": _yes_or_no,
    "max_call_level": int,
    "strategy": str,
    "strategy_options": _json_object,
    "retry_policy": _json_object,
    "circuit_breaker": _json_object,
    "bulkhead": _json_object,
    "cacher": _cacher,
    "disable_balancer": _yes_or_no,
    "prefer_local": _yes_or_no,
    "convert_params": _yes_or_no,
    "internal_services": _yes_or_no,
    "visitor": _yes_or_no,
    "metadata": _json_object,
    "heartbeat_interval": float,
    "heartbeat_timeout": float,
    "shutdown_timeout": float,
}
"""How each option is read. Those that hold Python objects (`middlewares`, `transforms`, `error_handler`) cannot be."""


_PREFIX = "BROKER_"

_OF_COMMANDS = ("log_level", "log_format", "nats_url")
"""What the command lines read besides, from variables without the prefix."""

_LINKED = re.compile(r"_(?:SERVICE_(?:HOST|PORT(?:_\w+)?)|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)$")
"""What Kubernetes and Docker put into the environment for a service that is called `broker`: nobody wrote these."""


def ignored_settings(environment: Mapping[str, str]) -> Iterator[str]:
    """A line for each variable that looks like an option of the broker and is none, such as a misspelt one."""
    for variable in sorted(environment):
        name = variable.removeprefix(_PREFIX).lower()
        if not variable.startswith(_PREFIX) or name in _FROM_ENVIRONMENT or _LINKED.search(variable):
            continue
        if name in BrokerOptions.__struct_fields__:
            yield f"{variable} is set and ignored: {name} holds Python objects, and is passed to the broker."
            continue
        alike = difflib.get_close_matches(name, [*_FROM_ENVIRONMENT, *_OF_COMMANDS], n=1)
        prefix = "" if alike and alike[0] in _OF_COMMANDS else _PREFIX
        hint = f" Did you mean {prefix}{alike[0].upper()}?" if alike else ""
        yield f"{variable} is set and ignored: the broker has no such option.{hint}"


def make_options(given: Mapping[str, Any], environment: Mapping[str, str]) -> BrokerOptions:
    """Options from what was passed, else from the environment (`BROKER_NAMESPACE`, …), else the defaults.

    Raises BrokerOptionsError for a value that does not fit.
    """
    values = {name: value for name, value in given.items() if value is not None}
    for name, convert in _FROM_ENVIRONMENT.items():
        text = environment.get(f"{_PREFIX}{name.upper()}")
        if text and name not in values:
            try:
                values[name] = convert(text)
            except ValueError:  # msgspec's are, too
                given_text = "what it is" if name == "transporter_options" else repr(text)  # which may hold a secret
                raise BrokerOptionsError(
                    f"{_PREFIX}{name.upper()} must be {_MUST_BE[convert]}, not {given_text}."
                ) from None
    values.setdefault("node_id", default_node_id())
    try:
        options = BrokerOptions(**values)
    except TypeError as error:
        raise BrokerOptionsError(f"An option of the broker is not known: {error}.") from None
    if options.protocol not in (None, *PROTOCOLS):
        raise BrokerOptionsError(f"protocol must be '4' (Moleculer 0.14) or '5' (0.15), not {options.protocol!r}.")
    if not isinstance(options.middlewares, list | tuple):
        raise BrokerOptionsError("middlewares must be a list.")
    if not isinstance(options.transforms, list | tuple) or not all(map(_is_transform, options.transforms)):
        raise BrokerOptionsError("transforms must be a list of objects such as Compression() and Encryption(…).")
    for field in msgspec.structs.fields(options):
        if field.name not in ("protocol", "middlewares", "transforms"):
            _check(field.name, getattr(options, field.name), field.type)
    return options


def _is_transform(given: Any) -> bool:
    return hasattr(given, "encode") and hasattr(given, "decode") and not isinstance(given, type)


def _check(name: str, value: object, kind: Any) -> None:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        given = repr(value) if isinstance(value, str | int | float) else f"a {type(value).__name__}"
        raise BrokerOptionsError(f"The option {name} cannot be {given}: {error}.") from None
