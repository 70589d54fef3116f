"""Choose one of several endpoints (moleculer protocol §9.2). Pure: the place in the round is handed in and out."""

import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from broker.errors import BrokerOptionsError

T = TypeVar("T")

Strategy = Callable[[Sequence[Any], int], tuple[int, int]]
"""Takes the usable endpoints (never empty) and a cursor; gives the index of the chosen one and the next cursor."""


def round_robin(endpoints: Sequence[Any], cursor: int) -> tuple[int, int]:
    """One after the other. The cursor starts at 0 and starts again when the list is shorter than it."""
    index = cursor if cursor < len(endpoints) else 0
    return index, index + 1


def uniform(endpoints: Sequence[Any], cursor: int) -> tuple[int, int]:
    """Any of them, with equal chances."""
    return random.randrange(len(endpoints)), cursor


STRATEGIES: dict[str, Strategy] = {"roundrobin": round_robin, "random": uniform}


def strategy_named(name: str) -> Strategy:
    """A strategy by its Moleculer name, in any case. Raises BrokerOptionsError for an unknown one."""
    try:
        return STRATEGIES[name.lower()]
    except KeyError:
        raise BrokerOptionsError(f"The strategy '{name}' is not known. Known are: RoundRobin, Random.") from None
