"""Identifiers in the shape of a random UUID (RFC 9562 version 4): a prefix drawn once for each process, and a counter.

They need to be unique, not secret. The 72 random bits of the prefix tell processes and restarts apart.
"""

import itertools
import random

_random = random.SystemRandom()
_digits = f"{_random.getrandbits(60):015x}"
_prefix = f"{_digits[:8]}-{_digits[8:12]}-4{_digits[12:]}-a{_random.getrandbits(12):03x}-"
_next = itertools.count(_random.randrange(10**11, 5 * 10**11)).__next__  # has twelve digits, and keeps them


def new_id() -> str:
    """For packets and contexts (moleculer protocol §2.3)."""
    return f"{_prefix}{_next()}"
