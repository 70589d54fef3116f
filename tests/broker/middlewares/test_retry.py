"""Retries follow the reference: which errors, how often, after which waits (protocol §12.2)."""

import anyio
import pytest

from broker.errors import (
    BrokerDisconnectedError,
    MoleculerError,
    MoleculerServerError,
    RequestTimeoutError,
    ServiceNotAvailableError,
    ServiceNotFoundError,
    ValidationError,
)
from broker.middlewares.retry import with_retries

pytestmark = pytest.mark.anyio


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, which cost no time."""
    made: list[float] = []

    async def sleep(delay: float) -> None:
        made.append(delay)

    monkeypatch.setattr(anyio, "sleep", sleep)
    return made


class Attempts:
    """Fails with each error in turn, then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.count = 0

    async def __call__(self) -> str:
        self.count += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


async def test_a_success_is_not_repeated(waits: list[float]) -> None:
    attempts = Attempts()
    assert await with_retries(attempts, 3) == "done"
    assert (attempts.count, waits) == (1, [])


async def test_c77_the_waits_grow_to_a_second(waits: list[float]) -> None:
    attempts = Attempts(*[MoleculerServerError("again") for _ in range(7)])
    assert await with_retries(attempts, 7) == "done"
    assert attempts.count == 8
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]


async def test_when_all_attempts_fail_the_last_error_is_raised(waits: list[float]) -> None:
    errors = [MoleculerServerError(str(number)) for number in range(3)]
    with pytest.raises(MoleculerServerError, match="2"):
        await with_retries(Attempts(*errors), 2)
    assert len(waits) == 2


@pytest.mark.parametrize("error", [ValidationError("no"), MoleculerError("no"), ValueError("no")])
async def test_what_another_attempt_cannot_mend_is_raised_at_once(error: Exception, waits: list[float]) -> None:
    attempts = Attempts(error)
    with pytest.raises(type(error)):
        await with_retries(attempts, 5)
    assert (attempts.count, waits) == (1, [])


@pytest.mark.parametrize("error", [RequestTimeoutError(), BrokerDisconnectedError()])
async def test_what_another_attempt_may_mend_is_tried_again(error: Exception, waits: list[float]) -> None:
    assert await with_retries(Attempts(error), 1) == "done"


@pytest.mark.parametrize("kind", [ServiceNotFoundError, ServiceNotAvailableError])
async def test_c77_a_lookup_that_fails_here_is_not_tried_again(kind: type[MoleculerError], waits: list[float]) -> None:
    attempts = Attempts(kind({"action": "a.b"}))
    with pytest.raises(kind):
        await with_retries(attempts, 5)
    assert attempts.count == 1


async def test_the_same_error_from_another_node_is_tried_again(waits: list[float]) -> None:
    error = ServiceNotAvailableError({"action": "a.b", "nodeID": "js-1"})
    error.node_id = "js-1"
    assert await with_retries(Attempts(error), 1) == "done"
