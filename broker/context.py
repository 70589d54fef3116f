"""What a handler gets: who called with what, how long there is, and the way to call on (moleculer protocol §5.1)."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from copy import copy
from typing import Any, TypedDict, Unpack
from typing import Protocol as Interface

from msgspec import UNSET, Raw, Struct

from broker.ids import new_id
from broker.options import BrokerOptions
from broker.protocol.packets import Event, Protocol, Request

Objects = dict[str, Any]

UNDECODED: Any = object()
"""Params that are not decoded yet."""

Next = Callable[["Context"], Awaitable[Any]]
"""A handler of an action, or the rest of the chain around it."""

ABSENT: Any = type("Absent", (), {"__repr__": lambda self: "<absent>"})()
"""No value was given, which is not the same as None: JS nodes see `{}` for absent params and null for None (§5.1)."""


class CallOptions(Struct, frozen=True, kw_only=True):
    """How to make one call."""

    meta: dict[str, Any] | None = None
    headers: Mapping[str, Any] | None = None
    timeout: float | None = None
    retries: int | None = None
    fallback: Any = ABSENT
    node_id: str | None = None
    stream: Any = None
    parent: Any = None
    request_id: str | None = None
    caller: str | None = None
    endpoint: Any = None
    """The endpoint to use: a service's own action, which may be private."""


PLAIN = CallOptions()
"""Those of a call that asks for nothing."""


class CallArguments(TypedDict, total=False):
    """The options of a call, as users name them; see `ServiceBroker.call`."""

    meta: dict[str, Any] | None
    headers: Mapping[str, Any] | None
    timeout: float | None
    retries: int | None
    fallback: Any
    node_id: str | None
    stream: Any
    parent: "Context | None"
    request_id: str | None
    caller: str | None


def call_options(given: CallArguments) -> CallOptions:
    """The options of a call. Raises TypeError for an unknown one."""
    if not given:
        return PLAIN
    for name in given:
        if name not in CallArguments.__annotations__:
            raise TypeError(f"A call has no option '{name}'; there are {', '.join(CallArguments.__annotations__)}.")
    return CallOptions(**given)


Calls = Sequence[Mapping[str, Any]] | Mapping[str, Mapping[str, Any]]
"""Several calls; see `ServiceBroker.mcall`."""


class EventArguments(TypedDict, total=False):
    """The options of an event, as users name them."""

    groups: str | Sequence[str] | None
    """The only groups that receive it; None for all."""
    meta: dict[str, Any] | None
    headers: Mapping[str, Any] | None
    parent: "Context | None"
    """The context of the request that it belongs to; `ctx.emit` fills it in."""


class HostedService(Interface):
    """The service that a context runs in, as handlers and middlewares see it."""

    @property
    def name(self) -> str: ...

    @property
    def full_name(self) -> str: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    @property
    def metadata(self) -> Mapping[str, Any]: ...

    @property
    def logger(self) -> logging.Logger: ...

    @property
    def broker(self) -> "Caller": ...


class Caller(Interface):
    """The broker, as contexts and services use it; a `ServiceBroker` is one."""

    node_id: str
    logger: logging.Logger

    @property
    def options(self) -> BrokerOptions: ...

    @property
    def registry(self) -> Any: ...

    async def stop(self) -> None: ...

    async def call(self, action: str, params: Any = ABSENT, **options: Unpack[CallArguments]) -> Any: ...

    async def mcall(self, calls: Calls, *, settled: bool = False, **options: Unpack[CallArguments]) -> Any: ...

    async def emit(self, event: str, data: Any = None, **options: Unpack[EventArguments]) -> None: ...

    async def broadcast(self, event: str, data: Any = None, **options: Unpack[EventArguments]) -> None: ...

    async def broadcast_local(self, event: str, data: Any = None, **options: Unpack[EventArguments]) -> None: ...

    async def ping(self, node_id: str, timeout: float = ...) -> dict[str, Any] | None: ...

    async def wait_for_services(self, *names: str, timeout: float | None = None) -> None: ...

    async def add_service(self, service: Any) -> None: ...

    async def remove_service(self, service: Any) -> None: ...

    async def call_own(
        self, service: Any, name: str, params: Any = ABSENT, **options: Unpack[CallArguments]
    ) -> Any: ...

    def start_in_background(self, service: Any, function: Callable[..., Awaitable[Any]], *arguments: Any) -> None: ...

    async def registry_changed(self) -> None: ...

    def call_again(self, ctx: "Context") -> Awaitable[Any]: ...

    def run_rest(self, chain: Next, ctx: "Context") -> None: ...

    def reply_limit(self, ctx: "Context") -> int | None: ...

    def reply_size(self, ctx: "Context", text: bytes) -> int: ...


class Context(Struct, eq=False):
    """One call of an action, or one event on its way to a handler.

    What travels (ids, caller, level, tracing, meta, headers) is read from a packet, continued from a parent call, and
    put into a packet in this class alone. A Struct, since each call makes one at both of its ends.
    """

    broker: Caller
    node_id: str
    """The node that calls, or that answers once it has."""
    id: str
    """Unique for each attempt of a call. A JS caller may have given a number."""
    request_id: Any
    """The same in the whole chain of calls. A JS caller may have given a value of any kind; it travels on."""
    action: str | None = None
    """The full name of the action; None in an event handler."""
    event: str | None = None
    """The name of the event; None in an action."""
    meta: Objects = {}
    """Travels with the call, to nested calls, and back to the caller."""
    headers: Objects = {}
    """Travels with the call only, and only between nodes of protocol 5."""
    response_headers: Objects = {}
    locals: Objects = {}
    """For middlewares and handlers of this node; never sent."""
    parent_id: str | None = None
    caller: str | None = None
    """The full name of the calling service. A JS caller may have given a value of any other kind."""
    level: int = 1
    """1 for the first call, one more for each nested one."""
    deadline: float | None = None
    """On the event loop's clock, in seconds; None when the caller waits without a limit."""
    tracing: Any = None
    stream: Any = None
    service: HostedService | None = None
    remote: bool = False
    options: CallOptions | None = None
    """How the call was made; None for one of another node, and for an event."""
    attempt: int = 0
    """How often the call was made before."""
    _params: Any = None
    _raw: Raw | None = None
    _decode: Callable[[Raw], Any] | None = None

    def __repr__(self) -> str:
        return f"<Context of {self.action or self.event!r}, {self.id}>"

    @classmethod
    def outgoing(
        cls,
        broker: Caller,
        node_id: str,
        options: CallOptions = PLAIN,
        *,
        action: str | None = None,
        event: str | None = None,
        params: Any = None,
    ) -> "Context":
        """The context of a call or an event that this node makes. One with a parent is part of that call, whose chain,
        meta and tracing it continues; without, the meta stays the caller's dict, in which that of the callee is set."""
        own_id = new_id()
        ctx = cls(broker, node_id, own_id, own_id, action, event, _params=params)
        if action is not None:
            ctx.options = options
        if options is PLAIN:
            return ctx
        if options.meta is not None:
            ctx.meta = options.meta
        if options.headers:
            ctx.headers = dict(options.headers)
        parent: Context | None = options.parent
        if parent is not None:
            ctx.level, ctx.tracing, ctx.parent_id = parent.level + 1, parent.tracing, parent.id
            ctx.meta = {**parent.meta, **ctx.meta}
            ctx.request_id, ctx.caller = parent.request_id, parent.service_name
        ctx.request_id = options.request_id or ctx.request_id
        ctx.caller = options.caller or ctx.caller
        ctx.stream = options.stream
        return ctx

    @classmethod
    def from_request(
        cls, broker: Caller, request: Request, decode: Callable[[Raw], Any], deadline: float | None
    ) -> "Context":
        """The context of a call by another node."""
        return cls(
            broker,
            request.sender,
            request.id,  # type: ignore[arg-type]  # a JS caller may have given a number
            request.id if request.request_id is None else request.request_id,
            request.action,
            meta={} if request.meta is None else request.meta,
            headers=dict(request.headers) if request.headers else {},
            parent_id=request.parent_id,
            caller=request.caller,
            level=1 if request.level == 1 else _level(request.level),
            deadline=deadline,
            tracing=request.tracing,
            remote=True,
            _params=UNDECODED,
            _raw=request.params,
            _decode=decode,
        )

    @classmethod
    def from_event(cls, broker: Caller, event: Event, decode: Callable[[Raw], Any]) -> "Context":
        """The context of one handler of an event of another node; each handler gets meta of its own."""
        own_id = new_id()
        return cls(
            broker,
            event.sender,
            own_id,
            own_id if event.request_id is None else event.request_id,
            None,
            event.event,
            dict(event.meta) if event.meta else {},
            dict(event.headers) if event.headers else {},
            parent_id=event.parent_id,
            caller=event.caller,
            level=1 if event.level == 1 else _level(event.level),
            tracing=bool(event.tracing),
            remote=True,
            _params=UNDECODED,
            _raw=event.data,
            _decode=decode,
        )

    def to_request(self, ver: Protocol, now: float) -> Request:
        """The packet of this call, sent at `now`, with its params as they are: `Codec.encode_with` encodes them."""
        return Request(
            ver=ver,
            sender=self.broker.node_id,
            id=self.id,
            action=self.action or "",
            params=self._params,
            meta=self.meta,
            headers=UNSET if ver == "4" else self.headers,
            timeout=0.0 if self.deadline is None else max(self.deadline - now, 0.001) * 1000,
            level=self.level,
            tracing=self.tracing,
            parent_id=self.parent_id,
            request_id=self.request_id,
            caller=self.caller,
        )

    def to_event(self, ver: Protocol, data: Raw, groups: Any, *, broadcast: bool) -> Event:
        """A packet of this event; each node gets one with an id of its own."""
        return Event(
            ver=ver,
            sender=self.broker.node_id,
            id=new_id(),
            event=self.event or "",
            data=data,
            groups=groups,
            broadcast=broadcast,
            meta=self.meta,
            headers=UNSET if ver == "4" else self.headers,
            level=self.level,
            tracing=self.tracing,
            parent_id=self.parent_id,
            request_id=self.request_id,
            caller=self.caller,
        )

    def again(self) -> "Context":
        """The context of one more attempt at the same call: a new id, all else the same, meta the very same (§12.2)."""
        ctx = copy(self)
        ctx.id, ctx.attempt = new_id(), self.attempt + 1
        ctx.headers, ctx.response_headers = dict(self.headers), {}
        ctx.deadline = ctx.stream = None
        return ctx

    @property
    def params(self) -> Any:
        """The parameters of the call, or the payload of the event, as plain values."""
        if self._params is UNDECODED:
            assert self._raw is not None
            assert self._decode is not None
            self._params = self._decode(self._raw)
        return self._params

    @params.setter
    def params(self, value: Any) -> None:
        self._params, self._raw = value, None

    @property
    def raw_params(self) -> Raw | None:
        """The parameters as they came over the wire; None for a call in this process, or when they were changed."""
        if self._raw is not None and self._params is not UNDECODED:
            assert self._decode is not None
            if self._decode(self._raw) != self._params:
                self._raw = None
        return self._raw

    @property
    def reply_limit(self) -> int | None:
        """The most bytes that the result may have when encoded, so that the reply fits the server's `max_payload`.

        None when there is no limit: a call in this process, or a transport without one.
        """
        return self.broker.reply_limit(self)

    def reply_size(self, text: bytes) -> int:
        """How many bytes of `reply_limit` a result takes that is given as JSON text (`msgspec.Raw`).

        With the serializer JSON that is its length; others write the same value shorter or longer. The parts of a list
        can be counted one by one.
        """
        return self.broker.reply_size(self, text)

    @property
    def service_name(self) -> str | None:
        """The full name of the service this context runs in; the `caller` of nested calls."""
        return self.service.full_name if self.service is not None else None

    async def call(self, action: str, params: Any = ABSENT, **options: Unpack[CallArguments]) -> Any:
        """Call an action as part of this request: request id, level, caller, meta and the remaining time travel on.

        Meta that the callee sets comes back into this context's meta. Parameters and errors as `ServiceBroker.call`;
        RequestSkippedError when no time is left.
        """
        options["parent"] = self
        return await self.broker.call(action, params, **options)

    async def mcall(self, calls: Calls, *, settled: bool = False, **options: Unpack[CallArguments]) -> Any:
        """Several calls at once; see `ServiceBroker.mcall`."""
        options["parent"] = self
        return await self.broker.mcall(calls, settled=settled, **options)

    async def emit(self, event: str, data: Any = None, **options: Unpack[EventArguments]) -> None:
        """Send an event to one node of each group; see `ServiceBroker.emit`."""
        options["parent"] = self
        await self.broker.emit(event, data, **options)

    async def broadcast(self, event: str, data: Any = None, **options: Unpack[EventArguments]) -> None:
        """Send an event to every node that listens; see `ServiceBroker.broadcast`."""
        options["parent"] = self
        await self.broker.broadcast(event, data, **options)


def _level(level: float | None) -> int:
    """A level of a peer; JS sends null for one that it has lost count of (§2.3)."""
    return int(level) if level and 0 < level < 1e9 else 1
