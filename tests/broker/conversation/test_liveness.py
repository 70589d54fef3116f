"""Which nodes get liveness probes, when they count as gone, and when as unresponsive. The clock is the test's."""

from collections.abc import Callable, Iterator

from broker.conversation.liveness import Liveness, Probe
from broker.defaults import (
    NODE_PROBE_INTERVAL_S,
    NODE_RECONNECT_S,
    NODE_SOUGHT_S,
    NODE_UNREACHABLE_S,
    NODE_UNRESPONSIVE_S,
    TICK_S,
)

START = 10.0


def ticks(until: float, since: float = START) -> Iterator[float]:
    now = since
    while now <= until:
        yield now
        now += TICK_S


def probed(watch: Liveness, until: float, *waited_for: str, since: float = START) -> list[Probe]:
    """All probes of nodes that are waited for."""
    return [probe for now in ticks(until, since) for probe in watch.probes(waited_for, now)]


def gone_at(watch: Liveness, until: float, is_delivered: Callable[[float], bool] = lambda _: False) -> float | None:
    """When "a", which is waited for, counts as gone; its probes have no responders unless they are delivered."""
    for now in ticks(until):
        for probe in watch.probes(["a"], now):
            if not is_delivered(now) and watch.refused(probe):
                return now
    return None


def test_a_node_that_is_waited_for_is_probed_now_and_then() -> None:
    watch = Liveness()
    assert watch.probes(["a", "b"], START) == [Probe("a", 1, START), Probe("b", 1, START)]
    assert watch.probes(["a", "b"], START + NODE_PROBE_INTERVAL_S / 2) == []
    later = START + NODE_PROBE_INTERVAL_S
    watch.answered("b")
    assert watch.probes(["a"], later) == [Probe("a", 2, later)]


def test_a_node_without_responders_is_probed_at_each_tick_and_gone_soon() -> None:
    watch = Liveness()
    assert gone_at(watch, START + 10) == START + NODE_UNREACHABLE_S
    assert watch._watched["a"].probes == NODE_UNREACHABLE_S / TICK_S + 1


def test_a_node_that_receives_one_probe_of_a_run_is_not_gone() -> None:
    reconnects = START + NODE_UNREACHABLE_S / 2
    assert gone_at(Liveness(), START + NODE_UNREACHABLE_S, lambda now: now == reconnects - reconnects % TICK_S) is None
    assert gone_at(Liveness(), START + 10, lambda now: now == START + 2 * TICK_S) is not None, "but later it may be"


def test_answers_of_the_server_that_come_late_count_for_the_probes_they_are_about() -> None:
    watch = Liveness()
    probes = probed(watch, START + 10, "a")
    assert not watch.refused(probes[0]), "one probe, however long its answer lay unread"
    assert not watch.refused(probes[-1]), "those between were delivered"
    watch = Liveness()
    sent = [probe for probe in probed(watch, START + 10, "a") if probe.sent <= START + NODE_UNREACHABLE_S + 0.5]
    assert [watch.refused(probe) for probe in sent] == [probe.sent - START >= NODE_UNREACHABLE_S for probe in sent], (
        "as if they had come at once"
    )


def test_nodes_have_longer_to_reconnect_when_servers_came_or_went() -> None:
    for news in (Liveness.moved, Liveness.resume):
        watch = Liveness()
        news(watch, START)
        assert gone_at(watch, START + 10) == START + NODE_RECONNECT_S


def test_a_node_that_nothing_waits_for_is_watched_until_it_has_answered() -> None:
    watch = Liveness()
    watch.probes(["a"], START)
    assert len(probed(watch, START + 2, since=START + 1)) > 1, "it still owes an answer"
    watch.answered("a")
    assert watch.probes([], START + 3) == []
    assert not watch.refused(Probe("a", 1, START))
    assert watch._watched == {}


def test_a_node_that_answers_nothing_is_unresponsive_until_it_does() -> None:
    watch = Liveness()
    for now in ticks(START + NODE_UNRESPONSIVE_S - TICK_S):
        watch.probes(["a", "b"], now)
        watch.answered("b")
        assert watch.unresponsive(now) == []
    assert watch.unresponsive(START + NODE_UNRESPONSIVE_S) == ["a"]
    watch.answered("a")
    assert watch.unresponsive(START + NODE_UNRESPONSIVE_S) == []


def test_a_node_is_not_unresponsive_for_the_time_in_which_nothing_could_be_received() -> None:
    watch = Liveness()
    watch.probes(["a"], START)
    back = START + NODE_UNRESPONSIVE_S
    watch.resume(back)
    assert watch.unresponsive(back) == []
    assert watch.unresponsive(back + NODE_UNRESPONSIVE_S) == ["a"]


def test_a_node_that_was_missed_is_probed_until_it_introduces_itself() -> None:
    watch = Liveness()
    watch.missed("a", START)
    for now in ticks(START + NODE_SOUGHT_S / 2):
        for probe in watch.probes([], now):
            assert watch.refused(probe) == (now >= START + NODE_UNREACHABLE_S)
    assert len(probed(watch, START + NODE_SOUGHT_S - 1, since=START + NODE_SOUGHT_S / 2)) > 10, "nothing waits for it"
    watch.answered("a", introduced=True)
    assert watch.probes([], START + NODE_SOUGHT_S - 1) == []


def test_a_node_that_does_not_return_is_probed_no_more_after_a_while() -> None:
    watch = Liveness()
    watch.missed("a", START)
    assert watch.probes([], START + NODE_SOUGHT_S) == []


def test_nothing_is_known_any_more_of_a_node_that_is_gone() -> None:
    watch = Liveness()
    watch.begun["a"] = START
    watch.forget("a")
    assert watch.begun == {}


def test_nothing_is_kept_of_nodes_that_came_and_were_killed() -> None:
    watch = Liveness()
    for number in range(5):
        watch.begun[f"node-{number}"] = START
        watch.missed(f"node-{number}", 2 * START)
    for now in ticks(2 * START + NODE_SOUGHT_S + NODE_UNRESPONSIVE_S + 1, 2 * START):
        for probe in watch.probes([], now):
            watch.refused(probe)
    assert watch._watched == {}
    assert watch.begun == {}
