"""Identifiers in the shape of a random UUID (RFC 9562 version 4): a prefix drawn once for each process, and a counter.

They need to be unique, not secret. The 72 random bits of the prefix tell processes and restarts apart.
"""

import itertools
import random
from collections.abc import Callable

_random = random.SystemRandom()
_digits = f"{_random.getrandbits(60):015x}"
_prefix = f"{_digits[:8]}-{_digits[8:12]}-4{_digits[12:]}-a{_random.getrandbits(12):03x}-"
_numbers = itertools.count(_random.randrange(10**11, 5 * 10**11))  # twelve digits, now and later

new_id: Callable[[], str] = map(_prefix.__add__, map(str, _numbers)).__next__
"""Gives an id for a packet or a context (moleculer protocol §2.3). As each context needs one, no Python code runs."""
