"""The state of one circuit breaker, without a loop: results and timers go in, changes come out (protocol §12.3)."""

from collections.abc import Callable
from typing import Literal

from broker.services.policies import CircuitBreakerPolicy

State = Literal["close", "open", "half_open", "half_open_wait"]

After = Callable[[float, Callable[[], None]], Callable[[], None]]
"""`after(seconds, function)` runs the function later, once; what it gives back cancels that."""


class Circuit:
    """Closed while calls go well. Open: nobody may call. Half open: the next call is a trial, and until it is over,
    nobody else may call. `changed` is told each change, with the name of its event or None."""

    def __init__(
        self, policy: CircuitBreakerPolicy, after: After, changed: Callable[["Circuit", str | None], None]
    ) -> None:
        self.state: State = "close"
        self.count = 0
        self.failures = 0
        self._policy = policy
        self._after = after
        self._changed = changed
        self._cancel: Callable[[], None] | None = None

    @property
    def usable(self) -> bool:
        """Whether a call may be made."""
        return self.state in ("close", "half_open")

    @property
    def rate(self) -> float:
        """The share of calls that failed."""
        return self.failures / self.count if self.count else 0.0

    def begin(self) -> None:
        """A call is made."""
        if self.state == "half_open":
            self._enter("half_open_wait", None)
            self._half_open_later()  # the trial may never end

    def release(self) -> None:
        """The call that was begun was not made here after all: the next one is the trial."""
        if self.state == "half_open_wait":
            self.cancel()
            self._enter("half_open", None)

    def succeed(self) -> None:
        """A call went well."""
        self.count += 1
        if self.state == "half_open_wait":
            self.count = self.failures = 0
            self.cancel()
            self._enter("close", "closed")
        else:
            self._look()

    def fail(self) -> None:
        """A call failed in a way that counts."""
        self.count += 1
        self.failures += 1
        self._look()

    def forget(self) -> None:
        """A new window begins: what was counted does not count any more."""
        self.count = self.failures = 0

    def cancel(self) -> None:
        """Do nothing later."""
        if self._cancel is not None:
            self._cancel()
            self._cancel = None

    def _look(self) -> None:
        enough = self.count >= self._policy.min_request_count and self.count > 0
        if enough and self.rate >= self._policy.threshold and self.state != "open":
            self._half_open_later()
            self._enter("open", "opened")

    def _half_open_later(self) -> None:
        self.cancel()
        self._cancel = self._after(self._policy.half_open_time, self._half_open)

    def _half_open(self) -> None:
        self._cancel = None
        self._enter("half_open", "half-opened")

    def _enter(self, state: State, event: str | None) -> None:
        self.state = state
        self._changed(self, event)
