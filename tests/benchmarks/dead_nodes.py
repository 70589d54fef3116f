"""How long calls wait for a node that was killed or frozen, and what becomes of new calls that another node can take.

    python -m tests.benchmarks.dead_nodes

`wiretap` is a client of NATS that subscribes to everything, so that the server never finds a subject without receivers.
"""

import os
import signal
import uuid
from contextlib import AsyncExitStack

import anyio
import nats

from broker import MoleculerError
from tests.benchmarks.measure import temporary_nats
from tests.interop.victim import KINDS, Victim, open_other, open_victim

LIMIT_S = 40.0  # above the heartbeat timeout
NEW_CALLS_S = 3.0  # the least, for those whose time-out is yet to come
NEW_CALL_EACH_S = 0.05
NEW_CALL_TIMEOUT_S = 1.0
FATES = {"killed": signal.SIGKILL, "killed, wiretap": signal.SIGKILL, "frozen": signal.SIGSTOP}


class Trial:
    """Two calls that wait for a node, one of them 3 s old, and then new calls to any node."""

    def __init__(self, victim: Victim) -> None:
        self._victim = victim
        self._ended = 0.0
        self.waited: dict[str, float] = {}
        self.new = self.failed = 0
        self.last_failed = 0.0

    async def run(self, fate: signal.Signals, limit_s: float) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._wait, "old")
            await anyio.sleep(3)
            tasks.start_soon(self._wait, "just sent")
            await anyio.sleep(NEW_CALL_EACH_S)
            os.kill(self._victim.process.pid, fate)
            self._ended = anyio.current_time()
            while self._since() < NEW_CALLS_S or (len(self.waited) < 2 and self._since() < limit_s):
                self.new += 1
                tasks.start_soon(self._call)
                await anyio.sleep(NEW_CALL_EACH_S)
            await anyio.sleep(NEW_CALL_TIMEOUT_S)
            tasks.cancel_scope.cancel()

    def _since(self) -> float:
        return anyio.current_time() - self._ended

    async def _wait(self, age: str) -> None:
        try:
            await self._victim.call("wait", 3_600_000, node_id="victim")
        except MoleculerError:
            self.waited[age] = self._since()

    async def _call(self) -> None:
        sent = self._since()
        try:
            await self._victim.call("wait", 0, timeout=NEW_CALL_TIMEOUT_S)
        except MoleculerError:
            self.failed += 1
            self.last_failed = max(self.last_failed, sent)


async def measure(kind: str, how: str, url: str, limit_s: float = LIMIT_S) -> None:
    namespace = uuid.uuid4().hex
    async with AsyncExitStack() as stack:
        if "wiretap" in how:
            client = await nats.connect(url)
            stack.push_async_callback(client.close)
            await client.subscribe(">")
        victim = await stack.enter_async_context(open_victim(kind, url, namespace, heartbeat_timeout=30))
        await stack.enter_async_context(open_other(victim, url, namespace))
        trial = Trial(victim)
        await trial.run(FATES[how], limit_s)
        old, sent = (f"{trial.waited[age]:.1f} s" if age in trial.waited else "-" for age in ("old", "just sent"))
        last = f", the last sent after {trial.last_failed:.1f} s" if trial.failed else ""
        print(f"  {kind:<7} {how:<16} {old:>7} {sent:>10}   {trial.failed:>4} of {trial.new}{last}")


async def main() -> None:
    async with temporary_nats() as url:
        print("  node    fate             3 s old  just sent   new calls that failed")
        for how in FATES:
            for kind in KINDS:
                await measure(kind, how, url)


if __name__ == "__main__":
    anyio.run(main)
