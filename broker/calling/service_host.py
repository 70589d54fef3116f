"""The services of this node: started, offered, run, withdrawn and stopped."""

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio

from broker.cancellation import failure_of, invoke_user
from broker.context import Context, Next
from broker.conversation.effects import trouble
from broker.errors import (
    BROKER_STATE,
    BrokerOptionsError,
    GracefulStopTimeoutError,
    MoleculerError,
    MoleculerServerError,
    ServiceNotFoundError,
    ServiceSchemaError,
    first_error,
    text_of,
)
from broker.internals.service import NAME as NODE_SERVICE
from broker.middlewares.chains import Chains
from broker.node.node import Node
from broker.node.work import Life, Owners, State, Tracker, belong_to, set_owners
from broker.services.schema import ActionDefinition, EventDefinition, ServiceDefinition
from broker.services.service import Service, define

logger = logging.getLogger("broker")


@dataclass(slots=True, eq=False)
class _Background:
    scope: anyio.CancelScope
    ended: anyio.Event


@dataclass(slots=True, eq=False)
class _Entry:
    service: Service
    definition: ServiceDefinition
    node: Node
    life: Life = field(default_factory=Life)
    background: list[_Background] = field(default_factory=list)
    in_work: Tracker = field(default_factory=Tracker)
    context: contextvars.Context = field(default_factory=contextvars.Context)
    """What each request of another node begins in; set at the start."""

    def owners(self) -> Owners:
        """Whose work a handler is that no code of this process called."""
        return frozenset({self.node, self})


@dataclass(slots=True, frozen=True)
class HostedAction:
    """An action with what goes on around it."""

    entry: _Entry
    chain: Next

    async def run(self, ctx: Context) -> Any:
        """Run it, once after `ServiceHost.begin`."""
        ctx.service = self.entry.service
        try:
            return await self.chain(ctx)
        except asyncio.CancelledError as error:  # hooks and middlewares wait for tasks, too
            raise failure_of(error)  # noqa: B904 - it may be the error itself
        finally:
            self.entry.in_work.end()


@dataclass(slots=True, frozen=True)
class EventHandler:
    """A chain that no caller waits for."""

    entry: _Entry
    chain: Next
    in_work: Tracker
    """Counts it from when it is due until it has run: its service does not stop before."""

    def enter(self) -> None:
        """The current task runs it for another node."""
        set_owners(self.entry.owners())


class ServiceHost:
    """What this node offers. A service is registered once its `started` is done (moleculer protocol §4.1)."""

    def __init__(self, node: Node, chains: Chains, run_hooks: Callable[[str, Service], Awaitable[None]]) -> None:
        """`run_hooks` runs users' hooks in the life of a service."""
        self._registry = node.transit.registry
        self._node = node
        self._codec = node.codec
        self._chains = chains
        self._entries: dict[str, _Entry] = {}
        self._actions: dict[str, HostedAction] = {}
        self._handlers: dict[EventDefinition, EventHandler] = {}
        self._ending: set[Life] = set()
        self._run_hooks = run_hooks

    def add(self, service: Service) -> ServiceDefinition:
        """Take a service in, without starting it. Raises ServiceSchemaError."""
        definition = define(service, convert=self._node.options.convert_params)
        if definition.full_name in self._entries:
            raise ServiceSchemaError(f"This node has a service '{definition.full_name}' already.")
        for action in definition.actions.values():
            if action.name in self._actions:
                raise ServiceSchemaError(f"This node has an action '{action.name}' already.")
        self._check_is_json(definition)
        entry = _Entry(service, definition, self._node)
        try:
            actions = {
                action.name: HostedAction(entry, self._chains.local_action(action, service))
                for action in definition.actions.values()
            }
            handlers = {
                event: EventHandler(entry, self._chains.local_event(event, service), entry.in_work)
                for event in definition.events
            }
        except BrokerOptionsError as error:
            raise ServiceSchemaError(f"The service '{definition.full_name}' cannot be offered: {error}") from error
        self._entries[definition.full_name] = entry
        self._actions |= actions
        self._handlers |= handlers
        return definition

    def names(self) -> list[str]:
        """Full names, in the order in which the services were added."""
        return list(self._entries)

    def service(self, full_name: str) -> Service | None:
        entry = self._entries.get(full_name)
        return entry.service if entry else None

    def own_action(self, service: Service, name: str) -> ActionDefinition:
        """An action of a service, by its name within it or by its method's. Raises ServiceNotFoundError."""
        entry = self._entries.get(service.full_name)
        actions = entry.definition.actions.values() if entry else ()
        for action in actions:
            if name in (action.raw_name, getattr(action.handler, "__name__", None)):
                return action
        raise ServiceNotFoundError({"action": f"{service.full_name}.{name}", "nodeID": self._node.options.node_id})

    async def start(self, full_name: str, wait_for_services: Callable[..., Awaitable[None]]) -> None:
        """Wait for what a service depends on, run its `started`, then offer it. An exception of `started` passes.

        Returns without offering it when it is withdrawn meanwhile, which ends its start.
        """
        entry = self._entries.get(full_name)
        if entry is not None:
            await entry.life.start(partial(self._start, entry, wait_for_services))

    async def _start(self, entry: _Entry, wait_for_services: Callable[..., Awaitable[None]]) -> None:
        full_name = entry.definition.full_name
        entry.context = self._node.context.copy()
        entry.context.run(set_owners, entry.owners())
        if entry.definition.dependencies:
            missing = [name for name in entry.definition.dependencies if not self._registry.has_service(name)]
            if missing:
                logger.info("Service '%s' waits for: %s", full_name, ", ".join(missing))
            await wait_for_services(*entry.definition.dependencies)
        await self._run_hooks("service_starting", entry.service)
        try:
            await invoke_user(entry.service.started)
        except Exception as error:
            logger.error("Service '%s' could not start: %s: %s", full_name, type(error).__name__, text_of(error))
            raise
        if entry.life.state is not State.STARTING:  # withdrawn, and its `started` did not heed that
            return
        entry.life.state = State.STARTED
        self._node.notify(*self._registry.add_service(entry.definition))
        self._node.announce_soon()
        await self._run_hooks("service_started", entry.service)
        _log(full_name, "started")

    async def start_all(self, wait_for_services: Callable[..., Awaitable[None]]) -> None:
        """`$node`, which is listed first (§3.2), then the others, those that a service adds while it starts too."""
        begun = {name for name in self._entries if name == NODE_SERVICE}
        await self.start_some(begun, wait_for_services)
        while waiting := [name for name in self._entries if name not in begun]:
            begun.update(waiting)
            await self.start_some(waiting, wait_for_services)

    async def start_some(self, names: Iterable[str], wait_for_services: Callable[..., Awaitable[None]]) -> None:
        """Start services at once. The first failure is raised and ends the others' start."""
        try:
            async with anyio.create_task_group() as tasks:
                for name in names:
                    tasks.start_soon(self.start, name, wait_for_services)
        except* Exception as group:
            raise first_error(group) from None

    async def stop_all(self) -> None:
        """In the reverse order, and those that are withdrawn meanwhile to their end."""
        for name in reversed(self.names()):
            if name in self._entries:
                await self.stop(name)
        with anyio.move_on_after(self._node.options.shutdown_timeout):
            for life in list(self._ending):
                await life.stopped.wait()

    async def stop(self, full_name: str) -> None:
        """Withdraw a service, end its start or finish what it does, end its background work, run its `stopped`. All
        this in a task of its own: a start that withdraws its service ends the task that asks for it. Returns when the
        service has stopped; at once when a handler of it asks. Raises ServiceNotFoundError."""
        entry = self._entries.pop(full_name, None)
        if entry is None:
            raise ServiceNotFoundError({"service": full_name})
        offered = entry.life.ask_to_stop() is State.STARTED
        self._ending.add(entry.life)
        stop, timeout_s = partial(self._stop, entry, offered=offered), self._node.options.shutdown_timeout
        if self._node.is_open:
            self._node.background.start_soon(entry.life.stop, stop, timeout_s)
        else:
            await entry.life.stop(stop, timeout_s)
        await entry.life.ended(entry)

    async def _stop(self, entry: _Entry, *, offered: bool) -> None:
        full_name = entry.definition.full_name
        if offered:
            self._node.notify(*self._registry.remove_service(full_name))
            self._node.announce_soon()
            await self._wait_until_idle(entry)
        await self._run_hooks("service_stopping", entry.service)
        await self._end_background(entry)
        try:
            await invoke_user(entry.service.stopped)
        except Exception as error:
            logger.exception("Service '%s' did not stop cleanly", full_name)
            self._node.notify(*trouble("broker", "failedServiceDestruction", error))
        for action in entry.definition.actions.values():
            del self._actions[action.name]
        for event in entry.definition.events:
            del self._handlers[event]
        await self._run_hooks("service_stopped", entry.service)
        self._ending.discard(entry.life)
        if offered:
            _log(full_name, "stopped")

    async def run(self, action: ActionDefinition, ctx: Context) -> Any:
        """Run an action of this node, its middlewares around it."""
        found = self.begin(action)
        if found is None:  # removed after it was chosen
            raise ServiceNotFoundError({"action": action.name, "nodeID": self._node.options.node_id})
        before = belong_to(found.entry)
        try:
            return await found.run(ctx)
        finally:
            set_owners(before)

    def begin(self, action: ActionDefinition) -> HostedAction | None:
        """An action of this node, which will run soon: its service does not stop before it has. None when that was
        removed."""
        found = self._actions.get(action.name)
        if found is not None:
            found.entry.in_work.count += 1
        return found

    def handler(self, event: EventDefinition) -> "EventHandler | None":
        """An event handler of this node, its middlewares around it; None when its service was removed meanwhile."""
        return self._handlers.get(event)

    def rest(self, chain: Next, ctx: Context) -> "EventHandler | None":
        """What is left of a chain of a service of this node; None when the service was removed meanwhile."""
        entry = self._entries.get(ctx.service_name or "")
        if entry is None or entry.service is not ctx.service:
            return None
        return EventHandler(entry, chain, entry.in_work)

    async def _wait_until_idle(self, entry: _Entry) -> None:
        """A node that stops has waited already, and has ended what took too long."""
        if self._node.transit.stopping:
            return
        with anyio.move_on_after(self._node.options.shutdown_timeout) as scope:
            await entry.in_work.wait_idle()
        if scope.cancelled_caught:
            logger.error("%s", GracefulStopTimeoutError({"name": entry.definition.full_name}))

    def start_in_background(self, service: Service, function: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
        """Run a function until it ends or its service stops; an exception is logged."""
        entry = self._entries.get(service.full_name)
        if entry is None or entry.service is not service or not self._node.is_open:
            raise MoleculerServerError(
                f"The service '{service.full_name}' does not run: start background work in `started` and later, and "
                "not in `stopped`.",
                type=BROKER_STATE,
            )
        job = _Background(anyio.CancelScope(), anyio.Event())
        entry.background.append(job)

        async def run() -> None:
            belong_to(self._node)
            try:
                with job.scope:
                    await invoke_user(function, *arguments)
            except Exception:
                logger.exception("Background work of service '%s' failed", service.full_name)
            finally:
                entry.background.remove(job)
                job.ended.set()

        self._node.background.start_soon(run)

    async def _end_background(self, entry: _Entry) -> None:
        """Cancel and wait, so that `stopped` may close what the background work uses until its end."""
        jobs = list(entry.background)
        for job in jobs:
            job.scope.cancel()
        with anyio.move_on_after(self._node.options.shutdown_timeout):
            for job in jobs:
                await job.ended.wait()

    def _check_is_json(self, definition: ServiceDefinition) -> None:
        """INFO must be sendable, or the whole node would stay invisible."""
        try:
            self._codec.encode_value(definition.to_info())
        except MoleculerError as error:
            raise ServiceSchemaError(
                f"Settings, metadata or action options of service '{definition.full_name}' have no JSON form: "
                f"{error.message}"
            ) from error


def _log(full_name: str, what: str) -> None:
    logger.log(logging.DEBUG if full_name.startswith("$") else logging.INFO, "Service '%s' %s", full_name, what)
