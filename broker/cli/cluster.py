"""What commands on a cluster share: their options, and the visit of a cluster without joining it."""

import difflib
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import anyio
import typer

from broker.broker import ServiceBroker
from broker.cli.output import print_error, print_note
from broker.cli.running import run
from broker.defaults import CLI_CONNECT_TIMEOUT_S
from broker.errors import BrokerOptionsError, MoleculerError, ServiceNotFoundError
from broker.logs import configure_logs, encode
from broker.masking import masked_text
from broker.options import default_node_id
from broker.services.service import Service


@dataclass(frozen=True)
class Cluster:
    """The options that all commands have. Each can also be set by the variable that other programs read, `BROKER_…`."""

    nats: Annotated[
        str,
        typer.Option(
            "--nats-url", envvar=["NATS_URL", "BROKER_TRANSPORTER"], help="NATS servers, separated by commas."
        ),
    ] = "nats://127.0.0.1:4222"
    namespace: Annotated[
        str, typer.Option(envvar=["NAMESPACE", "BROKER_NAMESPACE"], help="The cluster's namespace.")
    ] = ""
    protocol: Annotated[
        str | None, typer.Option(envvar="BROKER_PROTOCOL", help="4 or 5: speak with Moleculer 0.14 or 0.15 only.")
    ] = None

    def make_broker(self, node_id: str | None, services: Sequence[Service], **options: Any) -> ServiceBroker:
        """Raises typer.BadParameter for options that no broker takes, whether they are flags or in the environment."""
        options |= {"namespace": self.namespace, "transporter": self.nats, "protocol": self.protocol}
        try:
            return ServiceBroker(node_id, services=services, **options)
        except BrokerOptionsError as error:
            raise typer.BadParameter(error.message) from None


@dataclass(frozen=True)
class Visit(Cluster):
    """A command that looks at a cluster and acts in it, without joining it."""

    json: Annotated[bool, typer.Option("--json", help="Print JSON, also on a terminal.")] = False

    @asynccontextmanager
    async def broker(
        self, *, services: Sequence[Service] = (), node: str | None = None
    ) -> AsyncIterator[ServiceBroker]:
        """A broker that has found the nodes, or only that `node`. The nodes learn of it if it has `services`.

        A MoleculerError in the block becomes one line with its type and data, and exit code 1.
        """
        configure_logs("warning")
        # Not the node id of the environment: a running node may have it.
        broker = self.make_broker(default_node_id(), services, internal_services=False, visitor=True)
        try:
            with anyio.fail_after(CLI_CONNECT_TIMEOUT_S):
                await broker.start()
        except TimeoutError:
            raise MoleculerError(
                f"No connection to a NATS server within {CLI_CONNECT_TIMEOUT_S:g} s; the lines above say why."
            ) from None
        try:
            await broker.discover(node)
            if node is None and not known_nodes(broker):
                print_note(f"No node answered in the namespace {self.namespace!r} at {masked_text(self.nats)}.")
            yield broker
        except MoleculerError as error:
            where = f" (node {error.node_id})" if error.node_id else ""
            print_error(f"{error.name} {error.code} {error.type or ''}: {error.message}{where}")
            if error.data:
                print_note(encode(error.data).decode())
            raise typer.Exit(1) from None
        finally:
            await broker.stop()


def on_cluster(function: Callable[..., Coroutine[Any, Any, int | None]]) -> Callable[..., None]:
    """The command of an async function, with the options of `Cluster` or `Visit` in place of its first parameter. What
    the function returns is the exit code."""
    first, *own = inspect.signature(function).parameters.values()
    shared = inspect.signature(first.annotation).parameters
    parameters = [*own, *shared.values()]

    @functools.wraps(function)
    def command(**given: Any) -> None:
        cluster = first.annotation(**{name: given.pop(name) for name in shared})
        raise typer.Exit(run(lambda: function(cluster, **given)))

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def known_nodes(broker: ServiceBroker) -> set[str]:
    """The nodes that have answered, and those that only other nodes know."""
    return {node.id for node in broker.registry.nodes.values() if not node.local} | broker.peers.named.keys()


def unknown_node(broker: ServiceBroker, node_id: str) -> MoleculerError:
    """The error for a node that was not found, or that did not answer."""
    if node_id in broker.peers.named:
        message = f"The node '{node_id}' did not say what it offers: it is frozen or busy."
        return MoleculerError(message, 504, "NODE_NOT_RESPONDING", {"nodeID": node_id})
    message = f"There is no node '{node_id}'.{_did_you_mean(node_id, known_nodes(broker) | broker.peers.listed)}"
    return MoleculerError(message, 404, "NODE_NOT_FOUND", {"nodeID": node_id})


def check_is_offered(broker: ServiceBroker, action: str, node_id: str | None) -> None:
    """Raises the error for an action that no node offers, or for a node that was not found, with similar names."""
    if node_id is not None and node_id not in broker.registry.nodes:
        raise unknown_node(broker, node_id)
    offered = {name for name, known in broker.registry.actions.items() if known.members}
    if action in offered:
        return
    error = ServiceNotFoundError({"action": action, "nodeID": node_id} if node_id else {"action": action})
    error.message += _did_you_mean(action, offered)
    if broker.peers.named:
        error.message += f" These nodes did not say what they offer: {', '.join(sorted(broker.peers.named))}."
    raise error


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that suggests similar names; empty when there are none."""
    alike = difflib.get_close_matches(name, known)
    return f" Did you mean {' or '.join(alike)}?" if alike else ""
