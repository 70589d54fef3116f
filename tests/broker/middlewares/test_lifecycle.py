"""In which order users' hooks hear of a beginning and of an ending, and what their failures do."""

from typing import Any

import pytest

from broker.middlewares.lifecycle import Lifecycle

pytestmark = pytest.mark.anyio


class Noting:
    def __init__(self, name: str, notes: list[str], *, fails: bool = False) -> None:
        self.name = name
        self.notes = notes
        self.fails = fails

    def created(self, broker: Any) -> None:
        self.notes.append(f"{self.name} created")

    async def started(self, broker: Any) -> None:
        self.notes.append(f"{self.name} started")
        if self.fails:
            raise ValueError(self.name)

    def stopped(self, broker: Any) -> None:
        self.notes.append(f"{self.name} stopped")
        if self.fails:
            raise ValueError(self.name)


async def test_beginnings_go_from_the_first_and_endings_from_the_last() -> None:
    notes: list[str] = []
    lifecycle = Lifecycle([Noting("one", notes), Noting("two", notes)])
    lifecycle.created(None)
    for name in ("starting", "started", "stopping", "stopped"):
        await lifecycle.tell(name, None)
    assert notes == ["one created", "two created", "one started", "two started", "two stopped", "one stopped"]


async def test_a_beginning_that_fails_passes_and_an_ending_that_fails_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    notes: list[str] = []
    lifecycle = Lifecycle([Noting("one", notes, fails=True), Noting("two", notes, fails=True)])
    with pytest.raises(ValueError, match="one"):
        await lifecycle.tell("started", None)
    await lifecycle.tell("stopped", None)
    assert notes == ["one started", "two stopped", "one stopped"]
    assert caplog.text.count("The hook 'stopped' of a middleware failed") == 2
