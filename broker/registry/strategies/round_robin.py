"""One endpoint after the other."""

from collections.abc import Sequence
from typing import Any, TypeVar

E = TypeVar("E")


class RoundRobin:
    """Starts again when the list has become shorter than its place in it."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, endpoints: Sequence[E], ctx: Any) -> E:
        index = self._next if self._next < len(endpoints) else 0
        self._next = index + 1
        return endpoints[index]
