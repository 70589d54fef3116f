"""The members of a JSON object as slices of its bytes, for what msgspec refuses and JavaScript sends.

JavaScript strings may hold lone surrogates (`"\\ud800"`). The scanner looks only at quotes, commas and brackets, and
does not recurse: each member keeps its exact bytes, and the address of a packet is found however deep its values nest.
It is the slow path, which runs only after the fast decoder has refused a packet.
"""

import json
import re
from typing import Any

# A string that does not end is passed over too: looking for its end again from each quote in it takes quadratic time.
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_MEMBER = re.compile(rb"\s*(%s)\s*:\s*(.*\S)\s*" % _STRING, re.DOTALL)
_TO_SIGN = re.compile(rb'(?:[^"{}\[\],]++|%s?)*+([{}\[\],])' % _STRING, re.DOTALL)
_TO_BRACKETS = re.compile(rb'(?:[^"{}\[\]]++|%s?)*+([{\[]++|[}\]]++)' % _STRING, re.DOTALL)


def split_object(data: bytes) -> dict[str, bytes]:
    """Each key of a JSON object with the bytes of its value; the last of equal keys wins, as in JSON.parse.

    Raises ValueError when `data` is not an object. The values themselves are not checked: `load` does that.
    """
    return {name: data[start:end] for name, (start, end) in locate_members(data).items()}


def locate_members(data: bytes) -> dict[str, tuple[int, int]]:
    """The same with the place of each value, its start and its end."""
    members: dict[str, tuple[int, int]] = {}
    if not data.lstrip().startswith(b"{"):
        raise ValueError("not a JSON object")
    depth = start = at = 0
    while found := (_TO_BRACKETS if depth > 1 else _TO_SIGN).match(data, at):
        first, at = found.span(1)
        sign = data[first]
        if sign in b"{[":
            depth += at - first
            start = start or at
        elif sign in b"}]":
            if at - first >= depth > 1:
                at = first + depth - 1  # what closes the outermost object is looked at by itself
            depth -= at - first
        if (depth == 1 and sign in b",") or (depth == 0 and sign in b"}"):
            member = _MEMBER.fullmatch(data, start, first)
            if member:
                members[json.loads(member[1].decode(errors="replace"))] = member.span(2)
            elif members or sign in b"," or data[start:first].strip():
                raise ValueError("a member of a JSON object has no key or no value")
            start = at
        if depth <= 0:
            break
    if depth or data[start:].strip():
        raise ValueError("the JSON object does not end, or something follows it")
    return members


def load(data: bytes) -> Any:
    """A JSON value, lone surrogates allowed, `NaN` and its kin not.

    Raises ValueError for what is not JSON, and RecursionError for what nests too deep.
    """
    return json.loads(data, parse_constant=_refuse)


def _refuse(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
