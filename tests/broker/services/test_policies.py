"""Policies of the broker, of an action and of a peer's INFO are merged; times are seconds here, JS's there (§12)."""

from typing import Any

import pytest

from broker.errors import BrokerOptionsError
from broker.services.policies import (
    BulkheadPolicy,
    CircuitBreakerPolicy,
    RetryPolicy,
    announce_policies,
    announced_policies,
    merge,
    without_functions,
)


def test_c79_the_defaults_are_those_of_the_reference() -> None:
    retry, breaker, bulkhead = RetryPolicy(), CircuitBreakerPolicy(), BulkheadPolicy()
    assert (retry.enabled, retry.retries, retry.delay, retry.max_delay, retry.factor) == (False, 5, 0.1, 1, 2)
    assert (breaker.enabled, breaker.threshold, breaker.window_time) == (False, 0.5, 60)
    assert (breaker.min_request_count, breaker.half_open_time) == (20, 10)
    assert (bulkhead.enabled, bulkhead.concurrency, bulkhead.max_queue_size) == (False, 10, 100)


def test_changes_win_and_the_rest_stays() -> None:
    base = merge(RetryPolicy(), {"enabled": True, "delay": 0.5})
    own = merge(base, {"retries": 2})
    assert (own.enabled, own.delay, own.retries) == (True, 0.5, 2)
    assert merge(base, None) is base


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"retries": "two"}, "retries"),
        ({"retries": -1}, "retries"),
        ({"tries": 5}, "tries"),
        ({"delay": -0.5}, "delay"),
        ({"enabled": "yes"}, "enabled"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes: dict[str, Any], wanted: str) -> None:
    with pytest.raises(
        BrokerOptionsError, match=rf"^retry_policy cannot be .*{wanted}.* RetryPolicy are enabled, retries, "
    ):
        merge(RetryPolicy(), changes)


def test_a_peer_speaks_in_the_words_and_units_of_js() -> None:
    info = {
        "retryPolicy": {"enabled": True, "retries": 2, "delay": 50, "maxDelay": 200, "factor": 3, "check": {}},
        "circuitBreaker": {"enabled": True, "threshold": 0.3, "halfOpenTime": 500, "windowTime": 30},
        "bulkhead": {"enabled": True},
    }
    assert announced_policies(info) == {
        "retry_policy": {"enabled": True, "retries": 2, "delay": 0.05, "max_delay": 0.2, "factor": 3},
        "circuit_breaker": {"enabled": True, "threshold": 0.3, "half_open_time": 0.5, "window_time": 30},
    }


@pytest.mark.parametrize("policy", [None, True, 5, [], "x", {"retries": "many"}, {"delay": []}, {"enabled": 1}])
def test_what_a_peer_says_that_makes_no_sense_is_left_out(policy: Any) -> None:
    assert announced_policies({"retryPolicy": policy}) == {}


def test_own_policies_are_announced_in_the_words_of_js_without_functions() -> None:
    settings = {
        "retry_policy": {"enabled": True, "delay": 0.05, "check": lambda error: True},
        "bulkhead": {"max_queue_size": 5},
        "fallback": "other",
    }
    assert without_functions(announce_policies(settings)) == {
        "retryPolicy": {"enabled": True, "delay": 50},
        "bulkhead": {"maxQueueSize": 5},
    }
