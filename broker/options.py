"""The options of a broker: from what was passed, else from the environment, else the defaults."""

import difflib
import os
import platform
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from broker import defaults
from broker.errors import BrokerOptionsError
from broker.protocol.packets import PROTOCOLS, Protocol


def default_node_id() -> str:
    """`host-pid-random`: unique, as a second node with the same id would end both (protocol §3.5)."""
    return f"{platform.node().lower()}-{os.getpid()}-{uuid.uuid4().hex[:4]}"


Seconds = Annotated[float, Meta(ge=0)]


class BrokerOptions(Struct, frozen=True, kw_only=True):
    """The settings of a ServiceBroker. Times in seconds."""

    node_id: str
    """Unique in the cluster. Default: host, process id and four random digits."""
    namespace: str = ""
    """Nodes of different namespaces never see each other."""
    transporter: Any = None
    """`nats://host:4222` (several by commas or as a list), `memory://name`, None for no cluster, or a Transport."""
    serializer: str = "JSON"
    """JSON, JSONExt, MsgPack, Notepack or CBOR; the same in the whole cluster."""
    transforms: Sequence[Any] = ()
    """Compression and Encryption of every packet, the same in the whole cluster; the first is closest to the wire."""
    protocol: Protocol | None = None
    """"4" or "5" to speak only with nodes of Moleculer 0.14 or 0.15; None for both at once."""
    request_timeout: Seconds = 0.0
    """How long a call waits for its answer when it does not say itself; 0 for no limit. The default is that of JS."""
    wait_for_connection: bool = False
    """In an outage of more than 2 s, calls wait for its end inside their timeout, and after it for the nodes that were
    lost with it; else they fail at once with BrokerDisconnectedError, which is retryable."""
    max_call_level: Annotated[int, Meta(ge=0)] = 0
    """How deep calls may nest; 0 for no limit."""
    strategy: str = "RoundRobin"
    """How one of several endpoints is chosen: RoundRobin, Random, CpuUsage, Latency or Shard."""
    strategy_options: dict[str, Any] = {}
    """See `broker.services.policies.StrategyOptions`."""
    retry_policy: dict[str, Any] = {}
    """Changes to `broker.services.policies.RetryPolicy`, such as `{"enabled": True, "retries": 3}`; so the next two."""
    circuit_breaker: dict[str, Any] = {}
    bulkhead: dict[str, Any] = {}
    cacher: Any = None
    """True, options of `broker.middlewares.cacher.MemoryCacher`, or such an object; None for no cache."""
    error_handler: Any = None
    """A function `(error, ctx)` for every error that an action or an event handler ends with: what it returns stands
    in for the error, what it raises takes its place."""
    disable_balancer: bool = False
    """Let NATS balance calls and emitted events, by queue groups. All nodes of the cluster must do the same, and speak
    one protocol version."""
    prefer_local: bool = True
    """Whether an action of this node wins over the same on others."""
    convert_params: bool = False
    """Whether actions take text for numbers, booleans and dates, and one value for a list of one, as requests over HTTP
    have them. An action's own `convert` wins."""
    internal_services: bool = True
    """Offer the service `$node`, by which tools look at this node."""
    visitor: bool = False
    """Look at the cluster, call and send events without being one of its nodes: no node learns of it but by what it is
    asked. `ServiceBroker.discover` finds nodes; a visitor with services makes itself known to those."""
    metadata: dict[str, Any] = {}
    """Anything that other nodes may read of this one."""
    transporter_options: dict[str, Any] = {}
    """More options for nats-py: tls, token, user_credentials…"""
    heartbeat_interval: Seconds = defaults.HEARTBEAT_INTERVAL_S
    heartbeat_timeout: Seconds = defaults.HEARTBEAT_TIMEOUT_S
    shutdown_timeout: Seconds = defaults.SHUTDOWN_TIMEOUT_S
    """How long `stop` waits for running requests."""
    middlewares: Sequence[Any] = ()
    """Functions `async (call_next, ctx)` around every action of this node, or objects such as `broker.Middleware`; the
    first is outermost."""


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


_READERS: dict[Any, tuple[Callable[[str], Any], str]] = {
    bool: (_yes_or_no, "true or false"),
    int: (int, "a whole number"),
    float: (float, "a number"),
    dict: (_json_object, 'a JSON object, such as {"enabled": true}'),
}
"""How an option of a type is read, and what it must be; any other is text."""

_FROM_ENVIRONMENT = {
    field.name: _READERS.get(getattr(field.type, "__origin__", field.type), (str, "text"))
    for field in msgspec.structs.fields(BrokerOptions)
    if field.name not in ("middlewares", "transforms", "error_handler")  # which hold Python objects
} | {"cacher": (_cacher, 'true, false, memory, or a JSON object such as {"ttl": 30}')}

_PREFIX = "BROKER_"

_OF_COMMANDS = ("log_level", "log_format", "nats_url")
"""What the command lines read besides, from variables without the prefix."""

_LINKED = re.compile(r"_(?:SERVICE_(?:HOST|PORT(?:_\w+)?)|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)$")
"""What Kubernetes and Docker put into the environment for a service that is called `broker`."""


def ignored_settings(environment: Mapping[str, str]) -> Iterator[str]:
    """A line for each variable that looks like an option of the broker but is not, such as a misspelt one."""
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
    for name, (convert, kind) in _FROM_ENVIRONMENT.items():
        text = environment.get(f"{_PREFIX}{name.upper()}")
        if text and name not in values:
            try:
                values[name] = convert(text)
            except ValueError:  # msgspec's are, too
                given_text = "what it is" if name == "transporter_options" else repr(text)  # which may hold a secret
                raise BrokerOptionsError(f"{_PREFIX}{name.upper()} must be {kind}, not {given_text}.") from None
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
