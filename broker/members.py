"""The members of a JSON object as the bytes they stand in, for what msgspec refuses and JavaScript sends.

JavaScript strings may hold lone surrogates (`"\\ud800"`), and documents may nest deeper than a recursive parser goes.
This splitter looks only at quotes and brackets, without recursion, so each member keeps its exact bytes. It is the slow
path: it runs only after the fast decoder refused.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

# A string that does not end is a token too: looking for its end again from each quote in it would take for ever.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[{}\[\],:]|[^\s"{}\[\],:]+', re.DOTALL)

_STRICT = re.compile(
    rb"""[ \t\r\n]*(?:
    (?P<string>"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*")
    |(?P<scalar>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null)
    |(?P<open>[\[{])|(?P<close>[\]}])|(?P<comma>,)|(?P<colon>:))""",
    re.VERBOSE,
)
_VALUE, _FIRST_VALUE, _KEY, _FIRST_KEY, _COLON, _AFTER = "value", "first value", "key", "first key", "colon", "after"


def split_object(data: bytes) -> dict[str, bytes]:
    """Each key of a JSON object with the bytes of its value; the last of equal keys wins, as in JSON.parse.

    Raises ValueError when `data` is no object. The values themselves are not checked: `load` does that.
    """
    tokens = _TOKEN.finditer(data)
    if _text(next(tokens, None)) != b"{":
        raise ValueError("not a JSON object")
    members: dict[str, bytes] = {}
    for key in tokens:
        if key[0] == b"}" and not members:
            break
        if not key[0].startswith(b'"') or _text(next(tokens, None)) != b":":
            raise ValueError("a member of a JSON object has no key")
        start, end, closing = _value(tokens)
        members[json.loads(key[0])] = data[start:end]
        if closing == b"}":
            break
    else:
        raise ValueError("the JSON object does not end")
    if next(tokens, None) is not None:
        raise ValueError("there is something after the JSON object")
    return members


def check(data: bytes) -> None:
    """Raise ValueError unless `data` is one JSON value in UTF-8, however deep; lone surrogates are allowed."""
    data.decode()
    closers: list[bytes] = []
    expected, position = _VALUE, 0
    while expected or closers:
        token = _STRICT.match(data, position)
        kind = token.lastgroup if token else None
        if token is None or kind is None:
            raise ValueError(f"not JSON at byte {position}")
        text, position = token[kind], token.end()
        if kind == "close" and closers and text == closers[-1] and expected in (_AFTER, _FIRST_KEY, _FIRST_VALUE):
            closers.pop()
            expected = _AFTER
        elif kind == "comma" and expected == _AFTER and closers:
            expected = _KEY if closers[-1] == b"}" else _VALUE
        elif kind == "string" and expected in (_KEY, _FIRST_KEY):
            expected = _COLON
        elif kind == "colon" and expected == _COLON:
            expected = _VALUE
        elif kind == "open" and expected in (_VALUE, _FIRST_VALUE):
            closers.append(b"}" if text == b"{" else b"]")
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


def _value(tokens: Iterator[re.Match[bytes]]) -> tuple[int, int, bytes]:
    """Where a member's value starts and ends, and the token after it: a comma or the end of the object."""
    depth, start, end = 0, -1, -1
    for token in tokens:
        text = token[0]
        if depth == 0 and text in (b",", b"}") and start >= 0:
            return start, end, text
        if start < 0:
            start = token.start()
        end = token.end()
        if text in (b"{", b"["):
            depth += 1
        elif text in (b"}", b"]"):
            depth -= 1
    raise ValueError("the JSON object does not end")


def _text(token: re.Match[bytes] | None) -> bytes:
    return token[0] if token else b""


def _refuse(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
