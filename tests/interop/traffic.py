"""Traffic of every kind between a JS node and a Python node, in repeated rounds that run concurrently."""

import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import pytest

from broker import Context, MoleculerError, Service, ServiceBroker, action, event
from tests.interop.services import python_services
from tests.interop.test_errors import ORDERS
from tests.interop.test_stream_shapes import VALUES, PythonStreams, make, read, sha1
from tests.support.js_node import JsError, JsNode, js_node
from tests.support.processes import DEADLINE_S
from tests.support.waiting import eventually

__all__ = ["Traffic"]

BYTES = {"size": 300_000, "chunk": 20_000}
# Large, so that JS does not receive the opening and the error together: its stream would have no reader yet.
BREAKS = {"size": 3_000_000, "chunk": 100_000, "breakAfter": 3}
NODE_ACTIONS = ("list", "services", "actions", "events", "health", "options")


class PythonListener(Service):
    """Records events, like the JS services `jslistener` and `both`."""

    name = "pylistener"

    def __init__(self, received: list[tuple[str, str]]) -> None:
        self.received = received

    @event("talk.*")
    async def on_talk(self, ctx: Context) -> None:
        self.received.append((ctx.params["id"], self.name))


class SharedListener(PythonListener):
    """In one group with the JS service of the same name."""

    name = "both"


class Guest(Service):
    """Joins and leaves, alone or with its node."""

    name = "pyguest"

    @action
    async def hello(self, ctx: Context) -> str:
        return "hello"


JS_GUEST = "broker.createService({ name: NAME, actions: { hello: () => 'hello' } });"


class Traffic:
    """Between the JS node `js` and the Python node `py`; visiting nodes are made with `options`."""

    def __init__(self, js: JsNode, broker: ServiceBroker, options: dict[str, Any]) -> None:
        self.js, self.broker = js, broker
        self.counts: Counter[str] = Counter()
        self.logged: list[str] = []
        """The errors logged by the JS nodes that have left."""
        self._options = options
        self._received: list[tuple[str, str]] = []

    async def prepare(self) -> None:
        """Both nodes get their services, and know those of the other."""
        for fixture in ("math", "errors", "chain", "streams"):
            await self.js.create_service(fixture)
        for name in ("jslistener", "both"):
            await self.js.create_service("recorder", name=name, patterns=["talk.*"])
        for service in (
            *python_services(),
            PythonStreams(),
            PythonListener(self._received),
            SharedListener(self._received),
        ):
            await self.broker.add_service(service)
        await self.js.wait_for_services("pymath", "pyerrors", "pychain", "pystreams", "pylistener")
        await self.broker.wait_for_services("math", "errors", "chain", "streams", "jslistener", timeout=DEADLINE_S)

    async def flow(self, seconds: float) -> None:
        """Every kind at once, each at least one round."""
        kinds = (self.calls, self.errors, self.events, self.streams_from_js, self.streams_from_python, self.pings)
        comings = (self.services_come_and_go, self.python_nodes_come_and_go, self.js_nodes_come_and_go)
        end = anyio.current_time() + seconds
        async with anyio.create_task_group() as tasks:
            for kind in (*kinds, self.node_actions, *comings):
                tasks.start_soon(self._repeat, kind, end)

    async def _repeat(self, kind: Callable[[], Awaitable[None]], end: float) -> None:
        while True:
            await kind()
            if anyio.current_time() >= end:
                return

    async def calls(self) -> None:
        """Plain ones, ten at once, and chains of calls back and forth."""
        expected = [number + 1 for number in range(10)]
        orders = [{"params": {"a": number, "b": 1}} for number in range(10)]
        assert await self.js.mcall([{"action": "pymath.add", **order} for order in orders]) == expected
        assert await self.broker.mcall([{"action": "math.add", **order} for order in orders]) == expected
        self.counts["calls"] += 20
        for caller in (self.js, self.broker):
            path = await caller.call("chain.countdown", {"steps": 4, "next": "pychain.countdown"})
            assert path == ["js", "py", "js", "py"]
            self.counts["nested calls"] += 5

    async def errors(self) -> None:
        """Of every class, of actions that are not there, and of params that do not fit."""
        for order in [{"class": "HomemadeError", "message": "own"}, *(order for order, *_ in ORDERS)]:
            await self._fails("pyerrors.throw", "errors.throw", order)
        await self._fails("no.such", "no.such", {})
        await self._fails("pymath.add", "math.add", {"a": "x", "b": 1})

    async def _fails(self, ours: str, theirs: str, params: Any) -> None:
        with pytest.raises(JsError):
            await self.js.call(ours, params, nodeID="py")
        with pytest.raises(MoleculerError):
            await self.broker.call(theirs, params, node_id="js")
        self.counts["errors"] += 2

    async def events(self) -> None:
        """Emitted and broadcast, to all groups and to one; the group on both nodes receives an emitted event once."""
        for emit in (self.js.emit, self.broker.emit):
            await self._sends(emit, ["both", "jslistener", "pylistener"])
            await self._sends(emit, ["jslistener"], groups=["jslistener"])
            await self._sends(emit, ["pylistener"], groups=["pylistener"])
        for broadcast in (self.js.broadcast, self.broker.broadcast):
            await self._sends(broadcast, ["both", "both", "jslistener", "pylistener"])
            await self._sends(broadcast, ["both", "both"], groups=["both"])

    async def _sends(self, send: Callable[..., Awaitable[None]], receivers: list[str], **options: Any) -> None:
        sent, mark = uuid.uuid4().hex, self.js.mark()
        del self._received[:]
        await send("talk.round", {"id": sent}, **options)

        def received() -> list[str]:
            there = [(one["payload"]["params"]["id"], one["service"]) for one in self._recorded(mark)]
            return sorted(name for event, name in (*self._received, *there) if event == sent)

        await eventually(
            lambda: len(received()) >= len(receivers), f"{receivers} to receive the event; {received()} did"
        )
        assert received() == receivers
        self.counts["events"] += 1

    def _recorded(self, mark: int) -> Iterator[dict[str, Any]]:
        for service in ("jslistener", "both"):
            yield from self.js.recorded_lines(service, after=mark)

    async def streams_from_js(self) -> None:
        """Bytes, values and a failing stream, in requests and in answers."""
        expected = {"size": BYTES["size"], "sha1": sha1(BYTES), "objects": []}
        sends: dict[str, Any] = {"action": "pystreams.receive", "meta": {"name": "n"}}
        assert await self.js.command("sendStream", order=BYTES, **sends) == {**expected, "meta": "n"}
        assert (await self.js.command("sendStream", order={"objects": VALUES}, **sends))["objects"] == VALUES
        assert await self.js.command("callForStream", action="pystreams.send", params=BYTES) == expected
        with pytest.raises(JsError, match="broken on purpose"):
            await self.js.command("sendStream", order=BREAKS, **sends)
        with pytest.raises(JsError, match="broken on purpose"):
            await self.js.command("callForStream", action="pystreams.send", params=BREAKS)
        self.counts["streams"] += 5

    async def streams_from_python(self) -> None:
        """The same in the other direction."""
        expected = {"size": BYTES["size"], "sha1": sha1(BYTES), "objects": []}
        answer = await self.broker.call("streams.receive", stream=make(**BYTES), meta={"name": "n"})
        assert answer == {**expected, "meta": "n"}
        assert (await self.broker.call("streams.receive", stream=VALUES))["objects"] == VALUES
        assert await read(await self.broker.call("streams.send", BYTES)) == expected
        with pytest.raises(MoleculerError, match="broken on purpose"):
            await self.broker.call("streams.receive", stream=self._breaking())
        stream = await self.broker.call("streams.send", BREAKS)
        with pytest.raises(MoleculerError, match="broken on purpose"):
            await read(stream)
        self.counts["streams"] += 5

    def _breaking(self) -> Iterator[bytes]:
        yield b"one"
        raise MoleculerError("broken on purpose", 418, "BROKEN")

    async def pings(self) -> None:
        assert (await self.js.ping("py"))["nodeID"] == "py"
        assert await self.broker.ping("js", timeout=DEADLINE_S) is not None
        self.counts["pings"] += 2

    async def node_actions(self) -> None:
        for name in NODE_ACTIONS:
            assert await self.js.call(f"$node.{name}", {}, nodeID="py")
            assert await self.broker.call(f"$node.{name}", {}, node_id="js")
            self.counts["$node calls"] += 2

    async def services_come_and_go(self) -> None:
        """On the permanent nodes."""
        await self.broker.add_service(Guest())
        await self.js.run(JS_GUEST.replace("NAME", "'jsguest'"))
        await self._greet(self.js, self.broker, "pyguest", "jsguest")
        await self.broker.remove_service("pyguest")
        await self.js.command("destroyService", name="jsguest")
        await eventually(lambda: not self.broker.registry.has_service("jsguest"), "the JS service to be gone")
        self.counts["services added and removed"] += 2

    async def python_nodes_come_and_go(self) -> None:
        class Visitor(Guest):
            name = "pyvisitor"

        async with ServiceBroker("py-visitor", services=[Visitor()], **self._options) as visitor:
            await self._greet(self.js, visitor, "pyvisitor", "math")
        self.counts["Python nodes joined and left"] += 1

    async def js_nodes_come_and_go(self) -> None:
        url, namespace = self._options["transporter"], self._options["namespace"]
        async with js_node(self.js.version, url, namespace, "js-visitor") as visitor:
            await visitor.run(JS_GUEST.replace("NAME", "'jsvisitor'"))
            await self._greet(visitor, self.broker, "pymath", "jsvisitor")
            await visitor.stop()
            self.logged += visitor.logged()
        self.counts["JS nodes joined and left"] += 1

    async def _greet(self, js: JsNode, broker: ServiceBroker, ours: str, theirs: str) -> None:
        """Both find the service of the other and call it."""
        await js.wait_for_services(ours)
        await broker.wait_for_services(theirs, timeout=DEADLINE_S)
        params = {"a": 1, "b": 2}
        await js.call(f"{ours}.add" if ours == "pymath" else f"{ours}.hello", params)
        await broker.call(f"{theirs}.add" if theirs == "math" else f"{theirs}.hello", params)
