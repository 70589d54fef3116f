"""How long each attempt to add the column waits for its lock, and how long the pause after it is."""

import random
from collections.abc import Callable

from services.environments_store.defaults import MigrationBudgets

__all__ = ["LockBackoff"]


class LockBackoff:
    """Short waits, because every reader queues behind a waiting ALTER; jittered pauses, because nodes start together.

    `clock` gives seconds. The pause doubles up to `sleep_patient_s` while the patience lasts, later up to
    `sleep_max_s`, and is never so short that readers are held up for more than a fifth of the time.
    """

    def __init__(self, budgets: MigrationBudgets, clock: Callable[[], float], source: random.Random) -> None:
        self._budgets = budgets
        self._clock = clock
        self._random = source
        self._started: float | None = None
        self.attempts = 0

    def next_lock_timeout_ms(self) -> int:
        """The lock timeout of the next attempt, which it counts."""
        if self._started is None:
            self._started = self._clock()
        timeouts = self._budgets.lock_timeouts_ms
        timeout_ms = timeouts[min(self.attempts, len(timeouts) - 1)]
        self.attempts += 1
        return timeout_ms

    def pause_s(self) -> float:
        """How long to sleep after the attempt that was just made."""
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
        """Begin anew, after the column came."""
        self._started = None
        self.attempts = 0
