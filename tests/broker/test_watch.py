"""Which nodes are asked whether they are still there, and when they count as gone. The clock is the test's."""

from broker.defaults import NODE_PROBE_AFTER_S, NODE_UNHEARD_S
from broker.watch import Watch


def test_a_node_that_is_waited_for_is_asked_now_and_then() -> None:
    watch = Watch()
    assert watch.due(["a", "b"], 10.0) == ["a", "b"]
    assert watch.due(["a", "b"], 10.0 + NODE_PROBE_AFTER_S / 2) == []
    assert watch.due(["a"], 10.0 + NODE_PROBE_AFTER_S) == ["a"]


def test_a_node_that_is_unheard_for_long_is_gone_since_its_last_ping() -> None:
    watch = Watch()
    now = 10.0
    watch.due(["a"], now)
    while now < 10.0 + NODE_UNHEARD_S:
        assert watch.unheard("a", now + 0.1) is None, "it may connect to NATS anew"
        now += 1
        assert watch.due(["a"], now) == ["a"], "asked at each look once it was unheard"
    assert watch.unheard("a", now + 0.1) == now


def test_a_node_that_is_heard_again_is_not_gone() -> None:
    watch = Watch()
    watch.due(["a"], 10.0)
    watch.unheard("a", 10.1)
    watch.due(["a"], 11.0)  # heard: nobody says otherwise
    watch.due(["a"], 12.0)
    late = 12.0 + NODE_UNHEARD_S
    watch.due(["a"], late)
    assert watch.unheard("a", late + 0.1) is None


def test_a_node_that_nobody_waits_for_any_more_is_forgotten() -> None:
    watch = Watch()
    watch.due(["a"], 10.0)
    watch.due([], 11.0)
    assert watch.unheard("a", 11.0 + NODE_UNHEARD_S) is None


def test_it_is_known_when_the_process_of_a_node_began() -> None:
    watch = Watch()
    assert watch.begun("a") < 0
    watch.began("a", 10.0)
    assert watch.begun("a") == 10.0
    watch.forget("a")
    assert watch.begun("a") < 0
