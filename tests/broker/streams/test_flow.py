"""How far a writer may be ahead of its reader, how much is on its way to a node, and what a missing answer shows."""

import anyio
import pytest

from broker.defaults import (
    STREAM_FLIGHT_BYTES,
    STREAM_IDLE_TIMEOUT_S,
    STREAM_MARK_BYTES,
    STREAM_MARK_CHUNKS,
    STREAM_MARKS_AHEAD,
    STREAM_OVERTAKEN_S,
    STREAM_PING_AGAIN_S,
)
from broker.errors import MoleculerError
from broker.streams.flow import Fate, Pace
from broker.streams.packets import CONTINUE, STOP
from tests.support.routes import make_flow

pytestmark = pytest.mark.anyio
AHEAD = STREAM_FLIGHT_BYTES // STREAM_MARK_BYTES


class Node:
    """What is sent to a node, and its pace."""

    def __init__(self) -> None:
        self.pings: list[str] = []
        self.losses: list[tuple[str | None, float]] = []
        self.pace = Pace("js-1", self._ping, self._lost)

    async def send(self) -> None:
        await self.pace.room(STREAM_MARK_BYTES)
        await self.pace.sent()

    async def _ping(self, ping_id: str) -> None:
        self.pings.append(ping_id)

    def _lost(self, error: Exception, until: float) -> None:
        assert isinstance(error, MoleculerError)
        self.losses.append((error.type, until))


async def test_a_reader_that_answers_no_marks_is_not_waited_for() -> None:
    flow = make_flow(acknowledges=False)
    assert all(flow.mark(STREAM_MARK_BYTES, 1) for _ in range(10))  # the server says when its node is gone
    with anyio.fail_after(10):
        await flow.room(1)


def test_the_first_chunk_is_marked_and_then_one_after_a_number_of_bytes_or_chunks() -> None:
    flow = make_flow(acknowledges=True)
    assert flow.mark(1, 1)
    assert [flow.mark(STREAM_MARK_BYTES // 2, number) for number in range(4)] == [None, "r1:1", None, "r1:3"]
    small = [flow.mark(1, 1) for _ in range(STREAM_MARK_CHUNKS)]
    assert small.index("r1:1") == STREAM_MARK_CHUNKS - 1


async def test_the_writer_waits_when_it_is_too_far_ahead_and_goes_on_when_the_reader_has_followed() -> None:
    flow = make_flow(acknowledges=True)
    for _ in range(STREAM_MARKS_AHEAD):  # the first ones only when some were read
        await flow.room(1)
        assert flow.mark(STREAM_MARK_BYTES, 1)
        flow.mark_answered(CONTINUE)
    for _ in range(STREAM_MARKS_AHEAD):
        await flow.room(1)
        assert flow.mark(STREAM_MARK_BYTES, 1)
    went_on = anyio.Event()

    async def write() -> None:
        await flow.room(1)
        went_on.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        await anyio.wait_all_tasks_blocked()
        assert not went_on.is_set()
        flow.mark_answered(CONTINUE)
        with anyio.fail_after(10):
            await went_on.wait()
    assert flow.fate is Fate.OPEN


@pytest.mark.parametrize("how", ["answer", "call"])
async def test_a_waiting_writer_learns_that_its_reader_has_gone(how: str) -> None:
    flow = make_flow(acknowledges=True)
    for _ in range(STREAM_MARKS_AHEAD):
        flow.mark(STREAM_MARK_BYTES, 1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(flow.room, 1)
        await anyio.wait_all_tasks_blocked()
        if how == "answer":
            flow.mark_answered(STOP)
        else:
            flow.stop(Fate.STOPPED)
    assert flow.fate is Fate.STOPPED


@pytest.mark.parametrize(("reason", "lost"), [(MoleculerError("given up"), True), (None, False)])
async def test_a_reader_that_was_to_learn_why_its_writer_gave_up_lacks_that_when_the_connection_is_lost(
    reason: MoleculerError | None, lost: bool
) -> None:
    flow = make_flow(acknowledges=False)
    flow.stop(Fate.STOPPED, reason)
    flow.stop(Fate.LOST, MoleculerError("lost"))
    assert (flow.fate is Fate.LOST, flow.error) == (lost, reason)


async def test_some_mb_are_on_their_way_to_a_node_and_no_more() -> None:
    node = Node()
    async with anyio.create_task_group() as tasks:
        for _ in range(AHEAD + 3):
            tasks.start_soon(node.send)  # as of several streams
        await anyio.wait_all_tasks_blocked()
        assert len(node.pings) == AHEAD
        for number in range(AHEAD + 3):
            node.pace.answered(node.pings[number])
            await anyio.wait_all_tasks_blocked()
    node.pace.answered(node.pings[0])
    assert node.losses == []


async def test_a_ping_that_stays_unanswered_after_a_later_one_shows_a_loss() -> None:
    node = Node()
    await node.send()
    before = anyio.current_time()
    await node.pace.tick(before + STREAM_PING_AGAIN_S)
    assert len(node.pings) == 2
    assert node.pace.is_late(before + STREAM_PING_AGAIN_S)
    node.pace.answered(node.pings[1])
    await node.pace.tick(anyio.current_time())
    assert node.losses == []
    await node.pace.tick(anyio.current_time() + STREAM_OVERTAKEN_S)
    ((kind, until),) = node.losses
    assert kind == "STREAM_LOST"
    assert until >= before
    assert not node.pace.is_late(before + 100)


async def test_answers_in_another_order_show_no_loss_and_a_stream_settles_with_the_last_of_them() -> None:
    node = Node()
    settled: list[bool] = []

    async def settle() -> None:
        await node.pace.settled()
        settled.append(True)

    await node.send()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(settle)
        await anyio.wait_all_tasks_blocked()
        node.pace.answered(node.pings[1])
        await anyio.wait_all_tasks_blocked()
        assert settled == []
        node.pace.answered(node.pings[0])
    await node.pace.tick(anyio.current_time() + STREAM_OVERTAKEN_S)
    assert node.losses == []


async def test_a_little_is_asked_for_after_a_while_and_nothing_is_not() -> None:
    node = Node()
    now = anyio.current_time() + STREAM_PING_AGAIN_S
    await node.pace.tick(now)
    assert node.pings == []
    await node.pace.room(1)
    await node.pace.sent()
    await node.pace.tick(now)
    assert len(node.pings) == 1


@pytest.mark.parametrize(("size", "losses"), [(1, []), (AHEAD, ["STREAM_STALLED"])])
async def test_a_node_that_answers_no_pings_gets_a_little_and_much_is_given_up(size: int, losses: list[str]) -> None:
    node = Node()
    for _ in range(size):
        await node.send()
    await node.pace.tick(anyio.current_time() + STREAM_IDLE_TIMEOUT_S)
    assert [kind for kind, _ in node.losses] == losses
    with anyio.fail_after(10):
        await node.pace.room(1)


async def test_a_node_to_which_pings_are_forbidden_is_not_waited_for() -> None:
    node = Node()
    node.pace.stop_asking()
    with anyio.fail_after(10):
        for _ in range(AHEAD * 2):
            await node.send()
        await node.pace.settled()
    assert node.pings == []
