"""`Random` gives every endpoint equal chances (protocol §9.2)."""

import random
from collections import Counter

from broker.registry.strategies import Uniform


def test_c75_every_endpoint_is_chosen_about_as_often() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - a randomised test tells its seed
    random.seed(seed)
    counts = Counter(Uniform().choose("abc", None) for _ in range(3000))
    assert set(counts) == set("abc")
    assert min(counts.values()) > 700
