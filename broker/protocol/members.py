"""The members of a JSON object as slices of its bytes, for what msgspec refuses and JavaScript sends.

JavaScript strings may hold lone surrogates (`"\\ud800"`). The splitter looks only at quotes and brackets, without
recursion: each member keeps its exact bytes, and the address of a packet is found however deep its values nest. It is
the slow path, which runs only after the fast decoder has refused a packet.
"""

import json
import re
from typing import Any

# A string that does not end is a token too: looking for its end again from each quote in it takes quadratic time.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[{}\[\],:]|[^\s"{}\[\],:]+', re.DOTALL)

# All up to the next brackets, and those that follow each other: a level of depth takes one step at most.
_TO_BRACKETS = re.compile(rb'(?:[^"{}\[\]]++|"(?:[^"\\]++|\\.)*+"?)*+([{\[]++|[}\]]++)', re.DOTALL)


def split_object(data: bytes) -> dict[str, bytes]:
    """Each key of a JSON object with the bytes of its value; the last of equal keys wins, as in JSON.parse.

    Raises ValueError when `data` is not an object. The values themselves are not checked: `load` does that.
    """
    return {name: data[start:end] for name, (start, end) in locate_members(data).items()}


def locate_members(data: bytes) -> dict[str, tuple[int, int]]:
    """The same with the place of each value, its start and its end."""
    opening, _, position = _token(data, 0)
    if opening != b"{":
        raise ValueError("not a JSON object")
    members: dict[str, tuple[int, int]] = {}
    key, _, position = _token(data, position)
    while not (key == b"}" and not members):
        colon, _, position = _token(data, position)
        if not key.startswith(b'"') or colon != b":":
            raise ValueError("a member of a JSON object has no key")
        start, end, closing, position = _value(data, position)
        members[json.loads(key)] = (start, end)
        if closing == b"}":
            break
        key, _, position = _token(data, position)
    if _token(data, position)[0]:
        raise ValueError("there is something after the JSON object")
    return members


def check(data: bytes) -> None:
    """Raise ValueError unless `data` is one JSON value in UTF-8, and RecursionError when it nests deeper than Python's
    parser goes; lone surrogates are allowed."""
    # Numbers are of no interest: Python's own refuse to be very long.
    json.loads(data.decode(), parse_constant=_refuse, parse_int=len, parse_float=len)


def load(data: bytes) -> Any:
    """A JSON value, lone surrogates allowed, `NaN` and its kin not.

    Raises ValueError for what is not JSON, and RecursionError for what nests too deep.
    """
    return json.loads(data, parse_constant=_refuse)


def _value(data: bytes, position: int) -> tuple[int, int, bytes, int]:
    """Where a member's value starts and ends, the token after it, a comma or the end of the object, and the position
    behind that."""
    start = end = -1
    while True:
        text, at, position = _token(data, position)
        if text in (b",", b"}") and start >= 0:
            return start, end, text, position
        if text in (b"{", b"["):
            position = _behind_nested(data, at)
        elif text in (b"", b"}", b"]"):
            raise ValueError("the JSON object does not end")
        if start < 0:
            start = at
        end = position


def _behind_nested(data: bytes, position: int) -> int:
    """The position behind the object or array that opens at one."""
    depth = 0
    while brackets := _TO_BRACKETS.match(data, position):
        first, position = brackets.span(1)
        if data[first] in b"{[":
            depth += position - first
        elif position - first < depth:
            depth -= position - first
        else:
            return first + depth
    raise ValueError("the JSON object does not end")


def _token(data: bytes, position: int) -> tuple[bytes, int, int]:
    """The next token, where it starts, and the position behind it; empty at the end."""
    token = _TOKEN.search(data, position)
    return (token[0], *token.span()) if token else (b"", len(data), len(data))


def _refuse(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
