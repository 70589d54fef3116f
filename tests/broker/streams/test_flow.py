"""How far a writer may be ahead of its reader."""

import anyio
import pytest

from broker.defaults import (
    STREAM_MARK_BYTES,
    STREAM_MARK_CHUNKS,
    STREAM_MARKS_AHEAD,
)
from broker.errors import MoleculerError
from broker.streams.flow import Flow
from broker.streams.ordering import CONTINUE, STOP

pytestmark = pytest.mark.anyio


async def test_a_reader_that_answers_no_marks_is_not_waited_for() -> None:
    flow = Flow(acknowledges=False)
    assert all(flow.mark(STREAM_MARK_BYTES) for _ in range(10))  # the server says when its node is gone
    with anyio.fail_after(10):
        await flow.room(1)


def test_the_first_chunk_is_marked_and_then_one_each_so_many_bytes_or_chunks() -> None:
    flow = Flow(acknowledges=True)
    assert flow.mark(1)
    assert [flow.mark(STREAM_MARK_BYTES // 2) for _ in range(4)] == [False, True, False, True]
    small = [flow.mark(1) for _ in range(STREAM_MARK_CHUNKS)]
    assert small.index(True) == STREAM_MARK_CHUNKS - 1


async def test_the_writer_waits_when_it_is_too_far_ahead_and_goes_on_when_the_reader_has_followed() -> None:
    flow = Flow(acknowledges=True)
    for _ in range(STREAM_MARKS_AHEAD):  # the first ones only when some were read
        await flow.room(1)
        assert flow.mark(STREAM_MARK_BYTES)
        flow.answered(CONTINUE)
    for _ in range(STREAM_MARKS_AHEAD):
        await flow.room(1)
        assert flow.mark(STREAM_MARK_BYTES)
    went_on = anyio.Event()

    async def write() -> None:
        await flow.room(1)
        went_on.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        await anyio.wait_all_tasks_blocked()
        assert not went_on.is_set()
        flow.answered(CONTINUE)
        with anyio.fail_after(10):
            await went_on.wait()
    assert not flow.stopped


@pytest.mark.parametrize("how", ["answer", "call"])
async def test_a_waiting_writer_learns_that_nobody_reads_any_more(how: str) -> None:
    flow = Flow(acknowledges=True)
    for _ in range(STREAM_MARKS_AHEAD):
        flow.mark(STREAM_MARK_BYTES)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(flow.room, 1)
        await anyio.wait_all_tasks_blocked()
        if how == "answer":
            flow.answered(STOP)
        else:
            flow.stop()
    assert flow.stopped


@pytest.mark.parametrize(("reason", "lost"), [(MoleculerError("given up"), True), (None, False)])
async def test_a_reader_that_was_to_learn_why_its_writer_gave_up_lacks_that_when_the_connection_is_lost(
    reason: MoleculerError | None, lost: bool
) -> None:
    flow = Flow()
    flow.stop(reason)
    flow.lose(MoleculerError("lost"))
    assert (flow.lost, flow.error) == (lost, reason)
