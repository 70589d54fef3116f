"""A node keeps running whatever arrives on its subjects: packets of every kind, and mutated captures."""

import asyncio
import gc
import json
import logging
import sys
import types
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from broker import Context, MoleculerError, Service, ServiceBroker, action, event
from broker.conversation.transit import Limits
from broker.transports.base import Observer
from broker.transports.memory import Hub, MemoryTransport
from tests.contract.test_captures import Plain
from tests.faults.packets import Packet, hostile, is_object
from tests.support.waiting import eventually

LINE_CHARACTERS = 1_000  # per log line: packets of a peer must not fill the log
GROWTH_BYTES = 400_000  # 16 bytes for each packet of the second half of the long form; nodes it made up are kept


class Math(Service):
    """The actions that the captured calls name, and a group that the captured events name. None of them fails."""

    name = "math"

    @action
    async def add(self, ctx: Context, a: float, b: float) -> float:
        return a + b

    @action
    async def echo(self, ctx: Context) -> dict[str, Any]:
        return {"params": ctx.params, "meta": ctx.meta, "headers": ctx.headers, "level": ctx.level, "id": ctx.id}

    @action
    async def setmeta(self, ctx: Context) -> str:
        ctx.meta |= {"added": 1, "$dollar": 2}
        return "ok"

    @action
    async def slow(self, ctx: Context, ms: float) -> None:
        await anyio.sleep(0.1)  # bounded: a hostile call may claim to have no timeout

    @action
    async def recv(self, ctx: Context) -> int:
        return sum([1 async for _ in ctx.stream]) if ctx.stream is not None else 0

    @event("**")
    async def on_any(self, ctx: Context) -> None: ...


class Log(logging.Handler):
    """The lines that the node logs about received packets."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines = 0
        self.unexpected: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines += 1
        # A traceback in the log means an error that the node did not expect.
        if record.exc_info or len(record.getMessage()) > LINE_CHARACTERS:
            self.unexpected.append(self.format(record))


class Besieged:
    """A node, and a raw peer that it calls and that never answers properly."""

    def __init__(self) -> None:
        self.hub = Hub(max_payload=1_048_576)
        services = [Math(), Plain()]
        self.broker = ServiceBroker("py", transporter=MemoryTransport(self.hub), services=services, request_timeout=0.5)
        self.transit = self.broker._node.transit
        self.log = Log()
        self.asked: deque[str] = deque(maxlen=4)
        self.answered: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.calls: set[asyncio.Task[None]] = set()
        self.outcomes: Counter[str] = Counter()
        self.tasks = 0
        """The number of tasks of an idle node, including those of the test."""

    async def start(self) -> None:
        await self.broker.start()
        peer = MemoryTransport(self.hub)
        await peer.connect(Observer(), "far")
        await peer.subscribe("MOL.REQ.far", self._on_request)
        await peer.subscribe("MOL.RES.far", self._on_answer)
        await self.broker.wait_for_services("math")
        await asyncio.sleep(0.1)  # the handlers of start events end
        self.tasks = len(asyncio.all_tasks())

    async def deliver(self, packet: Packet) -> int:
        """The number of lines that the node logged about it."""
        before = self.log.lines
        await self.hub.deliver(f"MOL.{packet.subject}", packet.data, packet.reply)
        written = self.log.lines - before
        await asyncio.sleep(0)
        return written

    async def ask(self) -> None:
        """The node calls the peer, which will send a hostile answer."""
        actions = {"far.away": {"name": "far.away", "rawName": "away"}}
        services = [{"name": "far", "fullName": "far", "settings": {}, "metadata": {}, "actions": actions}]
        info = {"ver": "5", "sender": "far", "services": services, "instanceID": f"{len(self.asked)}", "seq": 2}
        await self.hub.deliver("MOL.INFO", json.dumps(info).encode())
        task = asyncio.get_running_loop().create_task(self._call())
        self.calls.add(task)
        task.add_done_callback(self.calls.discard)
        await asyncio.sleep(0)

    async def _call(self) -> None:
        outcome = "answered"
        try:
            answer = await self.broker.call("far.away")
            if isinstance(answer, AsyncIterator):
                outcome = "streamed"
                async for _ in answer:
                    pass
        except MoleculerError as error:
            outcome = type(error).__name__
        self.outcomes[outcome] += 1

    async def add(self) -> Any:
        """The answer of the node to a valid request."""
        request = {"ver": "5", "sender": "far", "id": "good", "action": "math.add", "params": {"a": 1, "b": 2}}
        await self.hub.deliver("MOL.REQ.py", json.dumps(request).encode())
        while (answer := await asyncio.wait_for(self.answered.get(), 30))["id"] != "good":
            pass
        return answer["data"]

    async def quiet(self) -> int:
        """The bytes that the node holds when all work has ended."""
        await eventually(lambda: not self.transit.in_work and not self.calls, "the node to have nothing in work")
        await eventually(lambda: not self.transit.streams.open, "streams without a reader to be forgotten")
        await eventually(lambda: len(asyncio.all_tasks()) <= self.tasks, f"no more than {self.tasks} tasks to be left")
        return held_by(self.broker)

    async def stop(self) -> None:
        await self.broker.stop()

    async def _on_request(self, data: bytes, _reply: str) -> None:
        self.asked.append(json.loads(data)["id"])

    async def _on_answer(self, data: bytes, _reply: str) -> None:
        answer = json.loads(data)
        if answer.get("id") == "good":
            self.answered.put_nowait(answer)


def held_by(broker: ServiceBroker) -> int:
    """The bytes of all objects reachable from the broker and its modules."""
    modules = [vars(module) for name, module in sys.modules.items() if name.partition(".")[0] == "broker"]
    elsewhere = (type, types.ModuleType, types.FunctionType, types.FrameType, types.CoroutineType, logging.Logger)
    waiting: list[Any] = [broker, *modules]
    known, total = {id(one) for one in waiting}, 0
    while waiting:
        thing = waiting.pop()
        # msgspec reports the address of a Raw as its size.
        total += memoryview(thing).nbytes if isinstance(thing, msgspec.Raw) else sys.getsizeof(thing)
        for other in gc.get_referents(thing):
            if id(other) not in known and not isinstance(other, (*elsewhere, asyncio.AbstractEventLoop)):
                known.add(id(other))
                waiting.append(other)
    return total


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """One event loop for all examples: the node must survive every one of them."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def watch(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node logs only to this handler: there are many lines."""
    logger = logging.getLogger("broker")
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "handlers", [log])


@pytest.mark.parametrize("count", [1_000, pytest.param(50_000, marks=pytest.mark.long)])
def test_c11_no_packet_stops_the_node_leaks_a_task_or_grows_its_memory(
    count: int, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.broker.Limits", partial(Limits, stream_idle_s=0.5))
    run: Callable[[Any], Any] = loop.run_until_complete
    escaped: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: escaped.append(context))
    node = Besieged()
    watch(node.log, monkeypatch)
    measured: list[int] = []
    examples = 0

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 5), st.integers(0, 2**32), st.binary(max_size=200))
    def fuzz(kind: int, seed: int, noise: bytes) -> None:
        nonlocal examples
        if kind == 2:
            run(node.ask())
        packet = hostile(kind, seed, noise, node.asked)
        written = run(node.deliver(packet))
        assert written <= 1, packet
        assert written == 1 or kind not in (0, 3) or is_object(packet.data), packet
        assert not node.log.unexpected, (packet, node.log.unexpected)
        assert not escaped, (packet, escaped)
        examples += 1
        if examples == count // 2:
            measured.append(run(node.quiet()))

    try:
        run(node.start())
        fuzz()
        measured.append(run(node.quiet()))
        print(f"{examples} packets, {node.log.lines} lines; calls that got a bad answer: {dict(node.outcomes)}")  # noqa: T201 # what was tried
        print(f"bytes held after half of them and after all: {measured}")  # noqa: T201 # same
        assert run(node.add()) == 3
        assert measured[1] - measured[0] < GROWTH_BYTES
        assert node.log.lines <= examples, "no more lines than packets, including later failures"
    finally:
        run(node.stop())
