"""The states of a circuit breaker, with a clock that the test moves (protocol §12.3)."""

import pytest

from broker.middlewares.circuit_breaker import Circuit
from broker.registry.endpoints import Endpoint
from broker.services.policies import CircuitBreakerPolicy
from tests.support.targets import Timers


class Watched:
    """A circuit, and the events of its changes."""

    def __init__(self, *, minimum: int = 4, threshold: float = 0.5, window: float = 60) -> None:
        self.timers = Timers()
        self.events: list[str | None] = []
        endpoint = Endpoint("js-1", "posts.find", "posts", {})
        policy = CircuitBreakerPolicy(
            min_request_count=minimum, threshold=threshold, half_open_time=10, window_time=window
        )
        self.circuit = Circuit(
            endpoint,
            policy,
            lambda: self.timers.now,
            self.timers.after,
            lambda circuit, event: self.events.append(event),
        )

    @property
    def state(self) -> str:
        return self.circuit.state

    @property
    def usable(self) -> bool:
        return self.circuit.state in ("close", "half_open")

    def results(self, outcomes: str) -> None:
        """One call after the other: `+` went well, `-` failed."""
        for outcome in outcomes:
            self.circuit.begin()
            self.circuit.end(failed=outcome == "-")


def test_c78_it_stays_closed_while_too_few_calls_were_made() -> None:
    watched = Watched()
    watched.results("---")
    assert (watched.state, watched.usable, watched.events) == ("close", True, [])


def test_c78_it_opens_when_enough_calls_were_made_and_the_share_of_failures_is_reached() -> None:
    watched = Watched()
    watched.results("--++")
    assert (watched.state, watched.usable, watched.events) == ("open", False, ["opened"])
    assert (watched.circuit.count, watched.circuit.failures, watched.circuit.rate) == (4, 2, 0.5)


def test_c78_below_the_threshold_it_stays_closed() -> None:
    watched = Watched()
    watched.results("-+++" * 5)
    assert watched.state == "close"


def test_c78_results_of_calls_under_way_do_not_open_it_twice() -> None:
    watched = Watched()
    watched.results("----")
    watched.circuit.end(failed=True)
    watched.circuit.end(failed=False)
    assert (watched.events, watched.circuit.count) == (["opened"], 6)
    assert watched.timers.pending == 1


def test_c78_it_is_half_open_after_its_time_and_one_call_is_a_trial() -> None:
    watched = Watched()
    watched.results("----")
    watched.timers.advance(9.9)
    assert watched.state == "open"
    watched.timers.advance(0.2)
    assert (watched.state, watched.usable) == ("half_open", True)
    watched.circuit.begin()
    assert (watched.state, watched.usable) == ("half_open_wait", False)
    assert watched.events == ["opened", "half-opened", None]


def test_c78_a_trial_that_goes_well_closes_it_and_resets_the_counts() -> None:
    watched = Watched()
    watched.results("----")
    watched.timers.advance(10)
    watched.results("+")
    assert (watched.state, watched.circuit.count, watched.circuit.failures) == ("close", 0, 0)
    assert watched.events == ["opened", "half-opened", None, "closed"]
    assert watched.timers.pending == 0
    watched.results("---")
    assert watched.state == "close"


def test_c78_a_trial_that_fails_opens_it_at_once_as_the_counts_survived() -> None:
    watched = Watched()
    watched.results("----")
    watched.timers.advance(10)
    watched.results("-")
    assert (watched.state, watched.circuit.count) == ("open", 5)
    assert watched.events == ["opened", "half-opened", None, "opened"]
    watched.timers.advance(10)
    assert watched.state == "half_open"


def test_c78_a_trial_that_never_ends_is_followed_by_another_one() -> None:
    watched = Watched()
    watched.results("----")
    watched.timers.advance(10)
    watched.circuit.begin()
    watched.timers.advance(10)
    assert watched.state == "half_open"
    watched.results("+")
    assert watched.state == "close"


def test_c78_after_a_new_window_a_failing_trial_is_not_enough_to_open_it() -> None:
    watched = Watched(window=5)
    watched.results("----")
    watched.timers.advance(10)
    watched.results("-")
    assert watched.state == "half_open_wait"
    watched.timers.advance(10)
    assert watched.state == "half_open"


@pytest.mark.parametrize("minimum", [0, 1])
def test_a_minimum_of_one_or_none_opens_at_the_first_failure(minimum: int) -> None:
    watched = Watched(minimum=minimum)
    watched.results("+")
    assert watched.state == "close"
    watched.timers.advance(60)
    watched.results("-")
    assert watched.state == "open"


def test_a_circuit_that_is_cancelled_does_nothing_later() -> None:
    watched = Watched()
    watched.results("----")
    watched.circuit.cancel()
    watched.timers.advance(100)
    assert (watched.state, watched.events) == ("open", ["opened"])


def test_a_trial_that_was_made_elsewhere_leaves_the_next_call_to_be_the_trial() -> None:
    watched = Watched()
    watched.results("----")
    watched.timers.advance(10)
    watched.circuit.begin()
    assert not watched.usable
    watched.circuit.release()
    assert (watched.state, watched.usable, watched.timers.pending) == ("half_open", True, 0)
    watched.results("+")
    assert (watched.state, watched.events[-1]) == ("close", "closed")


def test_a_closed_or_open_circuit_stays_so_when_a_call_went_elsewhere() -> None:
    watched = Watched()
    watched.circuit.release()
    assert watched.state == "close"
    watched.results("----")
    watched.circuit.release()
    assert (watched.state, watched.timers.pending) == ("open", 1)
