"""Event names against patterns, exactly as JS nodes match them, oddities included (moleculer protocol §7.3)."""

import re
import warnings
from functools import lru_cache

CACHED_PATTERNS = 4096
"""Compiled patterns kept, an entry each; a cluster's services hold far fewer."""


def matches(name: str, pattern: str) -> bool:
    """Whether an event called `name` is meant for a handler of `pattern`."""
    if "?" not in pattern:
        stars = pattern.find("*")
        if stars < 0:
            return name == pattern
        if pattern == "**":
            return True
        if pattern == "*":
            return "." not in name
        if pattern.endswith("**") and stars == len(pattern) - 2:
            return name.startswith(pattern[:-2])
        if stars == len(pattern) - 1:
            # Rule 1c looks for a dot one place late, so `user*` also takes `user.created`; JS nodes do the same.
            prefix = pattern[:-1]
            return name.startswith(prefix) and "." not in name[len(prefix) + 1 :]
    return _compile(pattern).fullmatch(name) is not None


@lru_cache(maxsize=CACHED_PATTERNS)
def _compile(pattern: str) -> re.Pattern[str]:
    """Rule 2: a regular expression in which a literal dot stays a wildcard, as it does in JS."""
    text = "\\" + pattern if pattern.startswith("$") else pattern
    text = text.replace("?", ".").replace("**", "\0").replace("*", "[^.]*").replace("\0", ".*")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what a peer wrote: nobody here can change it
            return re.compile(text, re.DOTALL)
    except (re.error, OverflowError, RecursionError):  # characters that mean something else there: then only itself
        return re.compile(re.escape(pattern))
