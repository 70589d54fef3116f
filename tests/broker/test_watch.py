"""Which nodes are asked whether they are still there, and when they count as gone. The clock is the test's."""

from broker.defaults import NODE_PROBE_AFTER_S, NODE_SOUGHT_S, NODE_UNHEARD_S
from broker.watch import Watch


def test_a_node_that_is_waited_for_is_asked_now_and_then() -> None:
    watch = Watch()
    assert watch.due(["a", "b"], 10.0) == ["a", "b"]
    assert watch.due(["a", "b"], 10.0 + NODE_PROBE_AFTER_S / 2) == []
    assert watch.due(["a"], 10.0 + NODE_PROBE_AFTER_S) == ["a"]


def test_a_node_that_is_unheard_for_long_is_gone() -> None:
    watch = Watch()
    now = 10.0
    watch.due(["a"], now)
    while now < 10.0 + NODE_UNHEARD_S:
        assert not watch.unheard("a", now), "it may connect to NATS anew"
        now += 1
        assert watch.due(["a"], now) == ["a"], "asked at each look once it was unheard"
    assert watch.unheard("a", now)


def test_a_node_that_is_heard_again_is_not_gone() -> None:
    watch = Watch()
    watch.due(["a"], 10.0)
    assert not watch.suspects("a")
    watch.unheard("a", 10.0)
    assert watch.suspects("a")
    watch.due(["a"], 11.0)  # heard: nobody says otherwise
    watch.due(["a"], 12.0)
    late = 12.0 + NODE_UNHEARD_S
    watch.due(["a"], late)
    assert not watch.unheard("a", late)


def test_the_word_that_comes_late_to_a_busy_process_counts_for_the_question_it_is_about() -> None:
    watch = Watch()
    watch.due(["a"], 10.0)
    late = 10.0 + NODE_UNHEARD_S
    assert not watch.unheard("a", 10.0), "one question, however long its answer lay unread"
    watch.due(["a"], late)  # heard
    assert not watch.unheard("a", 10.0)
    watch.due(["a"], late + 1)
    watch.due(["a"], late + 2)
    assert not watch.unheard("a", late + 2)


def test_a_node_that_nobody_waits_for_any_more_is_forgotten() -> None:
    watch = Watch()
    watch.due(["a"], 10.0)
    watch.due([], 11.0)
    assert not watch.unheard("a", 10.0 + NODE_UNHEARD_S)


def test_a_node_that_was_missed_is_asked_until_it_says_that_it_is_there() -> None:
    watch = Watch()
    watch.missed("a", 10.0)
    now = 10.0
    while now < 10.0 + NODE_SOUGHT_S - 1:
        now += 1
        assert watch.due([], now) == ["a"], "nobody waits for it, and yet"
        assert watch.unheard("a", now) == (now >= 10.0 + NODE_UNHEARD_S)
    watch.found("a")
    assert watch.due([], now + 1) == []


def test_a_node_that_does_not_come_back_is_asked_no_more_after_a_while() -> None:
    watch = Watch()
    watch.missed("a", 10.0)
    assert watch.due([], 10.0 + NODE_SOUGHT_S) == []


def test_it_is_known_when_the_process_of_a_node_began() -> None:
    watch = Watch()
    assert watch.begun("a") < 0
    watch.began("a", 10.0)
    assert watch.begun("a") == 10.0
    watch.forget("a")
    assert watch.begun("a") < 0


def test_nothing_is_kept_of_nodes_that_came_and_were_killed() -> None:
    watch = Watch()
    for number in range(5):
        watch.began(f"node-{number}", 10.0)
        watch.missed(f"node-{number}", 20.0)
    watch.due([], 20.0 + NODE_UNHEARD_S)
    for number in range(5):
        assert watch.unheard(f"node-{number}", 20.0 + NODE_UNHEARD_S)
    assert watch.due([], 20.0 + NODE_SOUGHT_S) == []
    assert watch._watched == {}
    assert watch._begun == {}
