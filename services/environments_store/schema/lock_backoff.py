"""The lock timeout of each attempt to add the column, and the pause after it."""

import random
from collections.abc import Callable

from services.environments_store.defaults import MigrationBudgets

__all__ = ["LockBackoff"]


class LockBackoff:
    """Short timeouts, as every reader queues behind a waiting ALTER, and jittered pauses, as nodes start together.

    `clock` returns seconds. The pause doubles up to `sleep_patient_s` for the first `patience_s`, later up to
    `sleep_max_s`, and is long enough that readers are blocked for at most a fifth of the time.
    """

    def __init__(self, budgets: MigrationBudgets, clock: Callable[[], float], source: random.Random) -> None:
        self._budgets = budgets
        self._clock = clock
        self._random = source
        self._started: float | None = None
        self.attempts = 0

    def next_lock_timeout_ms(self) -> int:
        """Count the next attempt and return its lock timeout."""
        if self._started is None:
            self._started = self._clock()
        timeouts = self._budgets.lock_timeouts_ms
        timeout_ms = timeouts[min(self.attempts, len(timeouts) - 1)]
        self.attempts += 1
        return timeout_ms

    def pause_s(self) -> float:
        """The pause after the last attempt."""
        budgets = self._budgets
        started = self._clock() if self._started is None else self._started
        patient = self._clock() - started < budgets.patience_s
        longest = budgets.sleep_patient_s if patient else budgets.sleep_max_s
        # The exponent is bounded: after a thousand attempts the power would not fit a float.
        grown = budgets.sleep_first_s * budgets.sleep_growth ** min(self.attempts - 1, 30)
        timeouts = budgets.lock_timeouts_ms
        lock_timeout_s = timeouts[min(self.attempts, len(timeouts)) - 1] / 1000
        jittered = min(grown, longest) * self._random.uniform(0.5, 1.0)
        return max(jittered, lock_timeout_s * budgets.sleep_per_lock_timeout)

    def reset(self) -> None:
        """Start over, once the column exists."""
        self._started = None
        self.attempts = 0
