"""Leave an endpoint alone that keeps failing (moleculer protocol §12.3)."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal

import anyio

from broker.context import Context, Next
from broker.errors import MoleculerError
from broker.middlewares.base import After, Target
from broker.registry.endpoints import Endpoint
from broker.services.policies import CircuitBreakerPolicy, merge

Broadcast = Callable[[str, dict[str, Any]], None]

State = Literal["close", "open", "half_open", "half_open_wait"]

Find = Callable[[str, str], Endpoint | None]
"""The endpoint of an action on a node, usable or not."""


class Circuit:
    """The state of one endpoint. Closed while calls go well. Open: no call may be made. Half open: the next call is a
    trial, and until it is over no other call may be made. `changed` gets each change, with the name of its event or
    None."""

    def __init__(
        self,
        endpoint: Endpoint,
        policy: CircuitBreakerPolicy,
        after: After,
        changed: Callable[["Circuit", str | None], None],
    ) -> None:
        self.endpoint = endpoint
        self.state: State = "close"
        self.count = 0
        self.failures = 0
        self._policy = policy
        self._after = after
        self._changed = changed
        self._cancel: Callable[[], None] | None = None

    @property
    def usable(self) -> bool:
        """Whether a call may be made."""
        return self.state in ("close", "half_open")

    @property
    def rate(self) -> float:
        """The share of calls that failed."""
        return self.failures / self.count if self.count else 0.0

    def begin(self) -> None:
        """A call is made."""
        if self.state == "half_open":
            self._half_open_later()  # the trial may never end
            self._enter("half_open_wait", None)

    def release(self) -> None:
        """The call was not made here after all: the next one is the trial."""
        if self.state == "half_open_wait":
            self.cancel()
            self._enter("half_open", None)

    def end(self, *, failed: bool) -> None:
        """A call went well, or failed in a way that counts."""
        self.count += 1
        self.failures += failed
        if self.state == "half_open_wait" and not failed:
            self.forget()
            self.cancel()
            self._enter("close", "closed")
        elif (
            self.state != "open"
            and self.count >= self._policy.min_request_count
            and self.rate >= self._policy.threshold
        ):
            self._half_open_later()
            self._enter("open", "opened")

    def forget(self) -> None:
        """A new window begins."""
        self.count = self.failures = 0

    def cancel(self) -> None:
        """Do nothing later."""
        if self._cancel is not None:
            self._cancel()
            self._cancel = None

    def _half_open_later(self) -> None:
        self.cancel()
        self._cancel = self._after(self._policy.half_open_time, self._half_open)

    def _half_open(self) -> None:
        self._cancel = None
        self._enter("half_open", "half-opened")

    def _enter(self, state: State, event: str | None) -> None:
        self.state = state
        self._changed(self, event)


class CircuitBreaker:
    """The circuits of one node: one for each endpoint it calls, its own endpoints too.

    An open circuit makes its endpoint unavailable, so that it is not chosen. Changes are broadcast, so that other
    nodes can listen for `$circuit-breaker.*` (§7.4).

    A result counts for the node that answered. It may be another than the chosen one: with `disable_balancer` NATS
    chooses, and hands calls to a node whose circuit is open, too; they are refused only when all circuits are open.
    (JS counts all of these for the first node of its list, whichever answered, and refuses none.)
    """

    def __init__(self, policy: CircuitBreakerPolicy, after: After, broadcast: Broadcast, find: Find) -> None:
        self._policy = policy
        self._after = after
        self._broadcast = broadcast
        self._find = find
        self._circuits: defaultdict[str, dict[str, Circuit]] = defaultdict(dict)
        """By node and action."""
        self._cancel_window: Callable[[], None] | None = None

    def wrap(self, call_next: Next, target: Target) -> Next:
        policy = merge(self._policy, target.settings.get("circuit_breaker"))
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

    def forget_node(self, node_id: str) -> None:
        """A node has left; when it comes back it starts with a closed circuit."""
        for circuit in self._circuits.pop(node_id, {}).values():
            circuit.cancel()

    def stop(self) -> None:
        """Forget everything."""
        for node_id in list(self._circuits):
            self.forget_node(node_id)
        if self._cancel_window is not None:
            self._cancel_window()
            self._cancel_window = None

    def _answerer(self, ctx: Context, circuit: Circuit, policy: CircuitBreakerPolicy) -> Circuit | None:
        """The circuit of the node that answered a call to another node. None when it has left, and for this node: there
        the call went through the breaker of the action itself."""
        answerer: Endpoint | None = circuit.endpoint
        if ctx.node_id != circuit.endpoint.node_id:
            circuit.release()
            answerer = self._find(circuit.endpoint.name, ctx.node_id)
        if answerer is None or answerer.local:
            return None
        if answerer is not circuit.endpoint:
            circuit = self._circuit(answerer, policy)
            circuit.begin()
        return circuit

    def _circuit(self, endpoint: Endpoint, policy: CircuitBreakerPolicy) -> Circuit:
        circuits = self._circuits[endpoint.node_id]
        known = circuits.get(endpoint.name)
        if known is not None:
            if known.endpoint is endpoint:
                return known
            known.cancel()  # the service was away, and is another one now
        circuit = circuits[endpoint.name] = Circuit(endpoint, policy, self._after, self._changed)
        if self._cancel_window is None:
            self._cancel_window = self._after(self._policy.window_time, self._new_window)
        return circuit

    def _new_window(self) -> None:
        """Counts begin at zero. Circuits that are closed and counted nothing are forgotten, and those of what no node
        offers any more."""
        for node_id, circuits in list(self._circuits.items()):
            for name, circuit in list(circuits.items()):
                is_offered = self._find(name, node_id) is circuit.endpoint
                if not is_offered or (not circuit.count and circuit.state == "close"):
                    circuit.cancel()
                    del circuits[name]
                circuit.forget()
            if not circuits:
                del self._circuits[node_id]
        self._cancel_window = self._after(self._policy.window_time, self._new_window) if self._circuits else None

    def _changed(self, circuit: Circuit, event: str | None) -> None:
        endpoint = circuit.endpoint
        endpoint.set_available(available=circuit.usable)
        if event is None:
            return
        payload: dict[str, Any] = {"nodeID": endpoint.node_id, "service": endpoint.service, "action": endpoint.name}
        if event == "opened":
            payload |= {"failures": circuit.failures, "count": circuit.count, "rate": circuit.rate}
        self._broadcast(f"$circuit-breaker.{event}", payload)


def _came_from_there(error: Exception, ctx: Context) -> bool:
    """Not from a third node that the endpoint called in its turn."""
    return getattr(error, "node_id", None) in (None, ctx.node_id)


def _counts(error: Exception, policy: CircuitBreakerPolicy) -> bool:
    if policy.check is not None:
        return bool(policy.check(error))
    code = error.code if isinstance(error, MoleculerError) else 500  # which such an error has on the wire
    return isinstance(code, int | float) and code >= 500
