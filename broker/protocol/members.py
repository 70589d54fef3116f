"""The members of a JSON object as the bytes they stand in, for what msgspec refuses and JavaScript sends.

JavaScript strings may hold lone surrogates (`"\\ud800"`), and documents may nest deeper than a recursive parser goes.
This splitter looks only at quotes and brackets, without recursion, so each member keeps its exact bytes. It is the slow
path: it runs only after the fast decoder refused.
"""

import json
import re
from typing import Any

# A string that does not end is a token too: looking for its end again from each quote in it would take for ever.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[{}\[\],:]|[^\s"{}\[\],:]+', re.DOTALL)

# All up to the next brackets, and those that follow each other: a level of depth takes one step at most.
_TO_BRACKETS = re.compile(rb'(?:[^"{}\[\]]++|"(?:[^"\\]++|\\.)*+"?)*+([{\[]++|[}\]]++)', re.DOTALL)

_STRICT = re.compile(
    rb"""[ \t\r\n]*(?:
    (?P<string>"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*")
    |(?P<scalar>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null)
    |(?P<open>\[+|{)|(?P<close>\]+|}+)|(?P<comma>,)|(?P<colon>:))""",
    re.VERBOSE,
)
_VALUE, _FIRST_VALUE, _KEY, _FIRST_KEY, _COLON, _AFTER = "value", "first value", "key", "first key", "colon", "after"


def split_object(data: bytes) -> dict[str, bytes]:
    """Each key of a JSON object with the bytes of its value; the last of equal keys wins, as in JSON.parse.

    Raises ValueError when `data` is no object. The values themselves are not checked: `load` does that.
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
    """Raise ValueError unless `data` is one JSON value in UTF-8, however deep; lone surrogates are allowed."""
    text = data.decode()
    try:
        # Numbers are of no interest: Python's own refuse to be very long.
        json.loads(text, parse_constant=_refuse, parse_int=len, parse_float=len)
    except RecursionError:
        _check_deep(data)


def _check_deep(data: bytes) -> None:
    closers: list[bytes] = []
    expected, position = _VALUE, 0
    while expected or closers:
        token = _STRICT.match(data, position)
        kind = token.lastgroup if token else None
        if token is None or kind is None:
            raise ValueError(f"not JSON at byte {position}")
        text, position = token[kind], token.end()
        depth = len(text)  # of brackets, as many of one kind as follow each other
        if (
            kind == "close"
            and expected in (_AFTER, _FIRST_KEY, _FIRST_VALUE)
            and closers[-depth:] == [text[:1]] * depth
        ):
            del closers[-depth:]
            expected = _AFTER
        elif kind == "comma" and expected == _AFTER and closers:
            expected = _KEY if closers[-1] == b"}" else _VALUE
        elif kind == "string" and expected in (_KEY, _FIRST_KEY):
            expected = _COLON
        elif kind == "colon" and expected == _COLON:
            expected = _VALUE
        elif kind == "open" and expected in (_VALUE, _FIRST_VALUE):
            closers += [b"}" if text == b"{" else b"]"] * depth
            expected = _FIRST_KEY if text == b"{" else _FIRST_VALUE
        elif kind in ("string", "scalar") and expected in (_VALUE, _FIRST_VALUE):
            expected = _AFTER
        else:
            raise ValueError(f"not JSON at byte {token.start(kind)}")
        if not closers and expected == _AFTER:
            expected = ""
    if data[position:].strip(b" \t\r\n"):
        raise ValueError(f"there is something after the JSON value, at byte {position}")


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
