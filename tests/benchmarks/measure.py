"""What the benchmarks share: a server, interleaved rounds, and the figures of several rounds."""

import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from tests.support.nats_server import NatsServer

__all__ = ["calls_per_second", "cpu_seconds", "figures", "interleaved", "milliseconds", "temporary_nats", "times"]

Call = Callable[[], Awaitable[object]]


@asynccontextmanager
async def temporary_nats(**options: int | str | bool) -> AsyncIterator[str]:
    """The URL of a real server that ends with the block."""
    with tempfile.TemporaryDirectory() as folder, NatsServer(Path(folder) / "nats", **options) as server:
        yield server.url


async def calls_per_second(call: Call, *, calls: int, at_once: int) -> float:
    """Makes `calls` calls, `at_once` of them open at any moment."""
    left = calls

    async def caller() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call()

    started = time.perf_counter()
    async with anyio.create_task_group() as callers:
        for _ in range(at_once):
            callers.start_soon(caller)
    return calls / (time.perf_counter() - started)


async def interleaved(subjects: Mapping[str, Call], *, rounds: int, calls: int, at_once: int) -> dict[str, list[float]]:
    """Calls per second of each subject in each round. In turns, so that a busy moment of the machine hits all."""
    for call in subjects.values():  # warm up
        await calls_per_second(call, calls=max(calls // 10, 1), at_once=at_once)
    results: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, call in subjects.items():
            results[name].append(await calls_per_second(call, calls=calls, at_once=at_once))
    return results


def figures(name: str, rates: list[float], unit: str = "calls/s") -> str:
    """One line: the median of the rounds, and their range."""
    return f"  {name:<34} {statistics.median(rates):>9.0f} {unit}   ({min(rates):.0f} … {max(rates):.0f})"


async def times(call: Call, calls: int) -> list[float]:
    """How long each of so many calls took, one after another, in seconds."""
    taken = []
    for _ in range(calls):
        started = time.perf_counter()
        await call()
        taken.append(time.perf_counter() - started)
    return taken


def milliseconds(name: str, seconds: list[float]) -> str:
    """One line: the median of many calls, and what 99 of 100 of them stayed below."""
    p99 = statistics.quantiles(seconds, n=100, method="inclusive")[98] if len(seconds) > 1 else seconds[0]
    return f"  {name:<42} {statistics.median(seconds) * 1000:>9.2f} ms   (p99 {p99 * 1000:.2f} ms)"


def cpu_seconds(pid: int) -> float:
    """What a process has used of the processors until now, as its clock says (see clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | 2)
