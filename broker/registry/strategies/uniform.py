"""Any endpoint, with equal chances: `Random` in the words of Moleculer."""

import random
from collections.abc import Sequence
from typing import Any, TypeVar

E = TypeVar("E")


class Uniform:
    def choose(self, endpoints: Sequence[E], ctx: Any) -> E:
        return random.choice(endpoints)
