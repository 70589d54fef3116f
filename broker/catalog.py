"""The services of this node: started, offered, run, withdrawn and stopped."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio

from broker.actions import bind
from broker.codec import Codec
from broker.context import Context
from broker.errors import MoleculerError, ServiceNotFoundError, ServiceSchemaError
from broker.middleware import Middleware, Next
from broker.node import Node
from broker.registry import Registry
from broker.schema import ActionDefinition, ServiceDefinition
from broker.service import Service, define

logger = logging.getLogger("broker")


@dataclass(slots=True, eq=False)
class _Background:
    scope: anyio.CancelScope
    ended: anyio.Event


@dataclass(slots=True)
class _Entry:
    service: Service
    definition: ServiceDefinition
    running: bool = False
    background: list[_Background] = field(default_factory=list)


class Catalog:
    """What this node offers. A service is registered once its `started` is done (moleculer protocol §4.1)."""

    def __init__(self, registry: Registry, node: Node, codec: Codec, middlewares: Sequence[Middleware]) -> None:
        self._registry = registry
        self._node = node
        self._codec = codec
        self._middlewares = middlewares
        self._entries: dict[str, _Entry] = {}
        self._chains: dict[str, Next] = {}

    def add(self, service: Service) -> ServiceDefinition:
        """Take a service in, without starting it. Raises ServiceSchemaError."""
        definition = define(service)
        if definition.full_name in self._entries:
            raise ServiceSchemaError(f"This node has a service '{definition.full_name}' already.")
        for action in definition.actions.values():
            if action.name in self._chains:
                raise ServiceSchemaError(f"This node has an action '{action.name}' already.")
        self._check_is_json(definition)
        self._entries[definition.full_name] = _Entry(service, definition)
        for action in definition.actions.values():
            self._chains[action.name] = bind(action, service, self._codec, self._middlewares)
        return definition

    def names(self) -> list[str]:
        """Full names, in the order in which the services were added."""
        return list(self._entries)

    def service(self, full_name: str) -> Service | None:
        entry = self._entries.get(full_name)
        return entry.service if entry else None

    async def start(self, full_name: str) -> None:
        """Run a service's `started`, then offer it. An exception of `started` passes."""
        entry = self._entries[full_name]
        await entry.service.started()
        entry.running = True
        self._node.performing.notify(*self._registry.add_service(entry.definition))
        self._node.announce_soon()
        logger.info("Service '%s' started", full_name)

    async def stop(self, full_name: str) -> None:
        """Withdraw a service, end its background work, run its `stopped`. Its failure is logged."""
        entry = self._entries.pop(full_name, None)
        if entry is None:
            raise ServiceNotFoundError({"service": full_name})
        if entry.running:
            self._node.performing.notify(*self._registry.remove_service(full_name))
            self._node.announce_soon()
        await self._end_background(entry)
        try:
            await entry.service.stopped()
        except Exception:
            logger.exception("Service '%s' did not stop cleanly", full_name)
        for action in entry.definition.actions.values():
            del self._chains[action.name]

    async def run(self, action: ActionDefinition, ctx: Context) -> Any:
        """Run an action of this node, its middlewares around it."""
        chain = self._chains.get(action.name)
        if chain is None:  # removed after it was chosen
            raise ServiceNotFoundError({"action": action.name, "nodeID": self._node.options.node_id})
        return await chain(ctx)

    def start_in_background(self, service: Service, function: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
        """Run a function until it ends or its service stops; an exception is logged."""
        job = _Background(anyio.CancelScope(), anyio.Event())
        entry = self._entries[service.full_name]
        entry.background.append(job)

        async def run() -> None:
            try:
                with job.scope:
                    await function(*arguments)
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
