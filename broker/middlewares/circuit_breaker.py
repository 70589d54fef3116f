"""Leave an endpoint alone that keeps failing (moleculer protocol §12.3)."""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio

from broker.context import Context, Next
from broker.errors import MoleculerError
from broker.middlewares.base import Target
from broker.middlewares.circuit import After, Circuit
from broker.registry.endpoints import Endpoint
from broker.services.policies import CircuitBreakerPolicy, merge

Broadcast = Callable[[str, dict[str, Any]], None]

Find = Callable[[str, str], Endpoint | None]
"""The endpoint of an action on a node, usable or not."""


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
        self._circuits: defaultdict[str, dict[str, tuple[Endpoint, Circuit]]] = defaultdict(dict)
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
                answerer = circuit if target.local else self._answerer(ctx, endpoint, circuit, policy)
                if answerer is not None and _came_from_there(error, ctx) and _counts(error, policy):
                    answerer.fail()
                raise
            except anyio.get_cancelled_exc_class():
                if ctx.deadline is not None and ctx.deadline <= anyio.current_time():
                    circuit.fail()  # no answer in time: the timeout is around us, and tells the caller
                raise
            answerer = circuit if target.local else self._answerer(ctx, endpoint, circuit, policy)
            if answerer is not None:
                answerer.succeed()
            return result

        return guarded

    def forget_node(self, node_id: str) -> None:
        """A node is gone; when it comes back it starts anew."""
        for _, circuit in self._circuits.pop(node_id, {}).values():
            circuit.cancel()

    def stop(self) -> None:
        """Forget everything."""
        for node_id in list(self._circuits):
            self.forget_node(node_id)
        if self._cancel_window is not None:
            self._cancel_window()
            self._cancel_window = None

    def _answerer(
        self, ctx: Context, endpoint: Endpoint, circuit: Circuit, policy: CircuitBreakerPolicy
    ) -> Circuit | None:
        """The circuit of the node that answered a call to another node. None when it has left, and for this node: there
        the call went through the breaker of the action itself."""
        answerer: Endpoint | None = endpoint
        if ctx.node_id != endpoint.node_id:
            circuit.release()
            answerer = self._find(endpoint.name, ctx.node_id)
        if answerer is None or answerer.local:
            return None
        if answerer is not endpoint:
            circuit = self._circuit(answerer, policy)
            circuit.begin()
        return circuit

    def _circuit(self, endpoint: Endpoint, policy: CircuitBreakerPolicy) -> Circuit:
        circuits = self._circuits[endpoint.node_id]
        known = circuits.get(endpoint.name)
        if known is not None and known[0] is endpoint:
            return known[1]
        if known is not None:  # the service was away, and is another one now
            known[1].cancel()
        circuit = Circuit(policy, self._after, partial(self._changed, endpoint))
        circuits[endpoint.name] = endpoint, circuit
        if self._cancel_window is None:
            self._cancel_window = self._after(self._policy.window_time, self._new_window)
        return circuit

    def _new_window(self) -> None:
        """Counts begin anew; circuits that counted nothing are forgotten, unless they are not closed, and so are those
        of what nobody offers any more."""
        for node_id, circuits in list(self._circuits.items()):
            for endpoint, circuit in list(circuits.values()):
                is_offered = self._find(endpoint.name, node_id) is endpoint
                if not is_offered or (not circuit.count and circuit.state == "close"):
                    circuit.cancel()
                    del circuits[endpoint.name]
                circuit.forget()
            if not circuits:
                del self._circuits[node_id]
        self._cancel_window = self._after(self._policy.window_time, self._new_window) if self._circuits else None

    def _changed(self, endpoint: Endpoint, circuit: Circuit, event: str | None) -> None:
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
