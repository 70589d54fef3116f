"""Whether a statement only reads, by its text: only such a statement may be run twice."""

import re
from functools import lru_cache

__all__ = ["changes_rows", "is_read", "touched_rows"]

COMMENTS = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"")
WRITES = re.compile(r"\b(?:insert|update|delete|merge|replace|create|drop|alter|truncate|call|into)\b", re.IGNORECASE)


@lru_cache(maxsize=512)
def changes_rows(query: str) -> bool:
    """True for INSERT, UPDATE, DELETE and REPLACE, also after a WITH; False for reads, pragmas, and DDL."""
    text = COMMENTS.sub(" ", query).strip().lower()
    return text.startswith(("insert", "update", "delete", "replace", "with")) and not is_read(query)


@lru_cache(maxsize=512)
def is_read(query: str) -> bool:
    """True for a SELECT, a VALUES, or a WITH that holds no write; False for everything else, and in doubt."""
    text = QUOTED.sub("''", COMMENTS.sub(" ", query)).strip().lower()
    return text.startswith(("select", "with", "values")) and WRITES.search(text) is None


def touched_rows(tag: str) -> int:
    """The count in a PostgreSQL command tag: 1 of `UPDATE 1`, 0 of `CREATE TABLE`."""
    count = tag.rpartition(" ")[2]
    return int(count) if count.isdigit() else 0
