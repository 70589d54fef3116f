"""Event names against patterns, exactly as JS nodes match them, oddities included (moleculer protocol §7.3)."""

import re
import warnings
from functools import lru_cache

CACHED_PATTERNS = 4096
"""Compiled patterns kept, an entry each; a cluster's services hold far fewer."""
REGULAR = frozenset("\\^$()[]{}+|")
"""What means something in the regular expression that JS makes of a pattern, beyond wildcards."""
REPETITIONS = 3
"""Open-ended parts of such an expression that are tried: matching takes up to this power of the name's length."""


def matches(name: str, pattern: str) -> bool:
    """Whether an event called `name` is meant for a handler of `pattern`."""
    stars = pattern.find("*")
    if "?" not in pattern:
        if stars < 0:
            return name == pattern
        if pattern == "*":
            return "." not in name
        if stars == len(pattern) - 2 and pattern.endswith("**"):
            return name.startswith(pattern[:-2])
        if stars == len(pattern) - 1:
            # Rule 1c looks for a dot one place late, so `user*` also takes `user.created`; JS nodes do the same.
            return name.startswith(pattern[:-1]) and "." not in name[len(pattern) :]
    if REGULAR.isdisjoint(pattern.removeprefix("$")):
        return _walk(_parse(pattern), name)
    return _compile(pattern).fullmatch(name) is not None


@lru_cache(maxsize=CACHED_PATTERNS)
def _parse(pattern: str) -> tuple[str, ...]:
    """Rule 2: a literal dot stays a wildcard, as it does in JS."""
    return tuple(re.findall(r"\*\*|.", pattern.replace(".", "?"), re.DOTALL))


def _walk(parts: tuple[str, ...], name: str) -> bool:
    """Match without going back, at all places of the pattern at once: whatever a peer listens to costs no more than
    the length of the name times that of its pattern."""
    places = _skip_stars(parts, {0})
    for character in name:
        reached = set()
        for place in places:
            part = parts[place] if place < len(parts) else ""
            if part == "**" or (part == "*" and character != "."):
                reached.add(place)
            elif part == "?" or part == character != "*":
                reached.add(place + 1)
        places = _skip_stars(parts, reached)
    return len(parts) in places


def _skip_stars(parts: tuple[str, ...], places: set[int]) -> set[int]:
    """The places, and those behind stars there, as a star also matches nothing."""
    for place in tuple(places):
        while place < len(parts) and parts[place] in ("*", "**"):
            place += 1
            places.add(place)
    return places


@lru_cache(maxsize=CACHED_PATTERNS)
def _compile(pattern: str) -> re.Pattern[str]:
    """A pattern with other characters that mean something in a regular expression. One that could take exponential
    time, or is not valid, matches only itself."""
    text = "\\" + pattern if pattern.startswith("$") else pattern
    text = text.replace("?", ".").replace("**", "\0").replace("*", "[^.]*").replace("\0", ".*")
    slow = len(re.findall(r"\*|\+|\{", text)) > REPETITIONS or re.search(r"\)[+{]", text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what a peer wrote, which cannot be changed here
        try:
            return re.compile(re.escape(pattern) if slow else text, re.DOTALL)
        except (re.error, OverflowError, RecursionError):
            return re.compile(re.escape(pattern))
