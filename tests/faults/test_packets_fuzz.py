"""Whatever arrives on a node's subjects, the node goes on: 50,000 packets of every kind, mutated captures included."""

import asyncio
import gc
import json
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from broker import Context, Service, ServiceBroker, action, event
from broker.transports.memory import Hub, MemoryTransport

GOLDEN = Path(__file__).parents[1] / "golden"
EXAMPLES = 50_000
SUBJECTS = (
    *("EVENT.py", "REQ.py", "RES.py", "DISCOVER", "DISCOVER.py", "INFO", "INFO.py"),
    *("DISCONNECT", "HEARTBEAT", "PING", "PING.py", "PONG.py"),
)
CAPTURES = [
    (line["subject"].split(".")[1], line["payload"])
    for file in sorted(GOLDEN.glob("protocol-*.jsonl"))
    for line in map(json.loads, file.read_text().splitlines())
]
# The node's own id is missing: an INFO under it is a conflict of ids, which stops a node on purpose (protocol §3.5).
ODD: list[Any] = [
    *(None, True, False, 0, -1, 2**63, 2**70, 1e308, -0.0, 1.5, "", "\ud800", "\u0000", "x" * 2000, "a b", "*", ">"),
    *(
        [],
        {},
        [[]],
        {"": ""},
        {"type": "Buffer", "data": [300]},
        ".",
        "4",
        "5",
        "js",
        "$node.list",
        "math.add",
        "user.x",
    ),
]


class Math(Service):
    name = "math"

    @action
    async def add(self, ctx: Context, a: float = 1, b: float = 2) -> float:
        return a + b

    @action
    async def echo(self, ctx: Context) -> Any:
        return ctx.params

    @action
    async def stream(self, ctx: Context) -> int:
        return sum([1 async for _ in ctx.stream]) if ctx.stream is not None else -1

    @event("user.*")
    async def on_user(self, ctx: Context) -> None: ...


def mutate(payload: Any, source: random.Random) -> Any:
    """A packet with some of its fields replaced, dropped, added or nested deep."""
    if not isinstance(payload, dict):
        return source.choice(ODD)
    changed = dict(payload)
    for _ in range(source.randint(1, 3)):
        name = source.choice([*changed, "ver", "sender", "id", "seq", "stream", "meta", "headers", "params", "extra"])
        match source.randrange(5):
            case 0:
                changed.pop(name, None)
            case 1:
                changed[name] = mutate(changed.get(name), source)
            case 2 if isinstance(changed.get(name), list):
                changed[name] = [*changed[name], source.choice(ODD), mutate({}, source)]
            case _:
                changed[name] = source.choice(ODD)
    return changed


def packet_bytes(kind: int, seed: int, raw: bytes) -> tuple[str, bytes]:
    source = random.Random(seed)
    if kind == 0:
        return source.choice(SUBJECTS), raw
    command, payload = source.choice(CAPTURES)
    subject = command if command in ("INFO", "DISCOVER", "DISCONNECT", "HEARTBEAT", "PING") else f"{command}.py"
    if command in ("REQB", "EVENTB"):
        subject = f"{command[:-1]}.py"
    data = json.dumps(mutate(payload, source)).encode()
    if kind == 1:
        return subject, data
    cut = source.randrange(len(data))
    if kind == 2:
        return subject, data[:cut]
    if kind == 3:
        return subject, data[:cut] + bytes([source.randrange(256)]) + data[cut + 1 :]
    return subject, data[:cut] + b"[" * source.randrange(3000) + data[cut:]


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """One loop for all examples: the node lives through every one of them."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def test_c11_no_packet_ends_the_node_leaks_a_task_or_grows_its_memory(
    loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub(max_payload=1_048_576)
    broker = ServiceBroker("py", transporter=MemoryTransport(hub), services=[Math()], request_timeout=5)
    client = ServiceBroker("client", transporter=MemoryTransport(hub))
    caplog.set_level(logging.CRITICAL + 1, logger="broker")  # a line for each packet is promised, and 50,000 are many
    failures: list[str] = []

    class Unexpected(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info and record.exc_info[0] is not None:
                failures.append(self.format(record))

    # Lines with a traceback are what a node writes when it met something it had not thought of.
    watched = logging.getLogger("broker")
    handler = Unexpected()
    watched.addHandler(handler)
    watched.setLevel(logging.ERROR)

    async def deliver(subject: str, data: bytes) -> None:
        await hub.deliver(f"MOL.{subject}", data)
        await asyncio.sleep(0)

    async def settle() -> int:
        for _ in range(50):
            await asyncio.sleep(0)
        gc.collect()
        return len(asyncio.all_tasks())

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 4), st.integers(0, 2**32), st.binary(max_size=200))
    def fuzz(kind: int, seed: int, raw: bytes) -> None:
        subject, data = packet_bytes(kind, seed, raw)
        loop.run_until_complete(deliver(subject, data))
        assert not failures, (subject, data, failures)

    try:
        loop.run_until_complete(broker.start())
        loop.run_until_complete(client.start())
        loop.run_until_complete(client.wait_for_services("math", timeout=30))
        tasks = loop.run_until_complete(settle())
        objects = len(gc.get_objects())
        fuzz()
        assert loop.run_until_complete(settle()) <= tasks + 1
        grown = len(gc.get_objects()) - objects
        assert grown < 2 * EXAMPLES, f"{grown} more objects are held after {EXAMPLES} packets"
        assert loop.run_until_complete(client.call("math.add", {"a": 1, "b": 2}, node_id="py", timeout=30)) == 3
    finally:
        watched.removeHandler(handler)
        watched.setLevel(logging.NOTSET)
        loop.run_until_complete(client.stop())
        loop.run_until_complete(broker.stop())
