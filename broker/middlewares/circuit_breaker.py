"""Leave an endpoint alone that keeps failing (moleculer protocol §12.3)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import WeakSet

import anyio

from broker.context import Context, Next
from broker.errors import MoleculerError
from broker.middlewares.base import After, Target
from broker.registry.endpoints import Endpoint
from broker.services.policies import CircuitBreakerPolicy, merge

Broadcast = Callable[[str, dict[str, Any]], None]

Find = Callable[[str, str], Endpoint | None]
"""The endpoint of an action on a node, usable or not."""

State = Literal["close", "open", "half_open", "half_open_wait"]


@dataclass(eq=False)
class Circuit:
    """The state of one endpoint. Closed while calls go well. Open: no call may be made. Half open: the next call is a
    trial, and until it is over no other call may be made. `changed` gets each change, with the name of its event or
    None; `clock` gives a monotonic time in seconds."""

    endpoint: Endpoint
    policy: CircuitBreakerPolicy
    clock: Callable[[], float]
    after: After
    changed: Callable[["Circuit", str | None], None]
    state: State = "close"
    count: int = 0
    failures: int = 0
    window_end: float = 0.0
    _cancel: Callable[[], None] | None = None

    @property
    def rate(self) -> float:
        """The share of calls that failed."""
        return self.failures / self.count if self.count else 0.0

    def begin(self) -> None:
        """A call is made."""
        if self.clock() >= self.window_end:
            self.count = self.failures = 0
            self.window_end = self.clock() + self.policy.window_time
        if self.state == "half_open":
            self._half_open_later()  # the trial may never end
            self._enter("half_open_wait")

    def release(self) -> None:
        """The call was not made here after all: the next one is the trial."""
        if self.state == "half_open_wait":
            self.cancel()
            self._enter("half_open")

    def end(self, *, failed: bool) -> None:
        """A call went well, or failed in a way that counts."""
        self.count += 1
        self.failures += failed
        enough = self.count >= self.policy.min_request_count and self.rate >= self.policy.threshold
        if self.state == "half_open_wait" and not failed:
            self.count = self.failures = 0
            self.cancel()
            self._enter("close", "closed")
        elif enough and self.state != "open":
            self._half_open_later()
            self._enter("open", "opened")

    def cancel(self) -> None:
        """Do nothing later."""
        if self._cancel is not None:
            self._cancel()
            self._cancel = None

    def _half_open_later(self) -> None:
        self.cancel()
        self._cancel = self.after(self.policy.half_open_time, self._half_open)

    def _half_open(self) -> None:
        self._cancel = None
        self._enter("half_open", "half-opened")

    def _enter(self, state: State, event: str | None = None) -> None:
        self.state = state
        self.changed(self, event)


@dataclass(eq=False)
class CircuitBreaker:
    """The circuits of the endpoints that a node calls, its own included.

    An open circuit makes its endpoint unavailable, so that it is not chosen. Changes are broadcast, so that other
    nodes can listen for `$circuit-breaker.*` (§7.4).

    A result counts for the node that answered. It may be another than the chosen one: with `disable_balancer` NATS
    chooses, and hands calls to a node whose circuit is open, too; they are refused only when all circuits are open.
    (JS counts all of these for the first node of its list, whichever answered, and refuses none.)
    """

    policy: CircuitBreakerPolicy
    clock: Callable[[], float]
    after: After
    broadcast: Broadcast
    find: Find
    _circuits: WeakSet[Circuit] = field(default_factory=WeakSet)
    """Each belongs to its endpoint, and goes with it."""

    def wrap(self, call_next: Next, target: Target) -> Next:
        policy = merge(self.policy, target.settings.get("circuit_breaker"))
        if not policy.enabled:
            return call_next

        async def guarded(ctx: Context) -> Any:
            endpoint: Endpoint | None = target.endpoint()
            if endpoint is None:
                return await call_next(ctx)
            circuit = self._circuit(endpoint, policy)
            circuit.begin()
            try:
                result = await call_next(ctx)
            except Exception as error:
                answerer = circuit if target.local else self._answerer(ctx, circuit, policy)
                if answerer is not None and _came_from_there(error, ctx) and _counts(error, policy):
                    answerer.end(failed=True)
                raise
            except anyio.get_cancelled_exc_class():
                if ctx.deadline is not None and ctx.deadline <= anyio.current_time():
                    circuit.end(failed=True)  # the timeout around us rejects the call
                raise
            answerer = circuit if target.local else self._answerer(ctx, circuit, policy)
            if answerer is not None:
                answerer.end(failed=False)
            return result

        return guarded

    def stop(self) -> None:
        """Do nothing later."""
        for circuit in self._circuits:
            circuit.cancel()

    def _answerer(self, ctx: Context, circuit: Circuit, policy: CircuitBreakerPolicy) -> Circuit | None:
        """The circuit of the node that answered a call to another node. None when that node has left, or is
        this one: then the breaker of the action itself has counted the call."""
        answerer: Endpoint | None = circuit.endpoint
        if ctx.node_id != circuit.endpoint.node_id:
            circuit.release()
            answerer = self.find(circuit.endpoint.name, ctx.node_id)
        if answerer is None or answerer.local:
            return None
        if answerer is not circuit.endpoint:
            circuit = self._circuit(answerer, policy)
            circuit.begin()
        return circuit

    def _circuit(self, endpoint: Endpoint, policy: CircuitBreakerPolicy) -> Circuit:
        if endpoint.circuit is None:
            endpoint.circuit = Circuit(endpoint, policy, self.clock, self.after, self._changed)
            self._circuits.add(endpoint.circuit)
        circuit: Circuit = endpoint.circuit
        return circuit

    def _changed(self, circuit: Circuit, event: str | None) -> None:
        endpoint = circuit.endpoint
        if endpoint.offered is None:  # its node or service has left
            return
        endpoint.set_available(available=circuit.state in ("close", "half_open"))
        payload: dict[str, Any] = {"nodeID": endpoint.node_id, "service": endpoint.service, "action": endpoint.name}
        if event == "opened":
            payload |= {"failures": circuit.failures, "count": circuit.count, "rate": circuit.rate}
        if event is not None:
            self.broadcast(f"$circuit-breaker.{event}", payload)


def _came_from_there(error: Exception, ctx: Context) -> bool:
    """Not from a third node that the endpoint called in its turn."""
    return getattr(error, "node_id", None) in (None, ctx.node_id)


def _counts(error: Exception, policy: CircuitBreakerPolicy) -> bool:
    if policy.check is not None:
        return bool(policy.check(error))
    code = error.code if isinstance(error, MoleculerError) else 500  # which such an error has on the wire
    return isinstance(code, int | float) and code >= 500
