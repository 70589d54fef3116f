"""The canonical form of a large document, made of its bytes in windows: neither its text nor its values are ever held
whole, and no step keeps the interpreter, and with it the event loop, for longer than a window takes.

Runs of small values are parsed and printed together by `canonical`. A value that does not fit into a window is entered.
The members of an object wait as printed text, run by run, and get their order when the whole is read: the peak is the
document, its printed form and a few windows.
"""

import heapq
import re
import time
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator
from itertools import groupby
from json.decoder import scanstring  # type: ignore[attr-defined]  # the type stubs leave it out
from operator import itemgetter
from typing import Any, NamedTuple

from services.environments_store.canonical import (
    Document,
    Hooks,
    NotAnObjectError,
    after_gap,
    canonical_text,
    encoded,
    name_order,
    quote,
)

__all__ = ["Printed", "print_large"]

_WINDOW = 65_536
"""Characters that are seen ahead, and bytes that are read at once: parsed and printed in some 2 ms."""
_PAUSE_S = 0.0001
"""Between two windows, so that a thread that waits for the interpreter gets it."""
_RUN_DEPTH = 6  # of the values in a run; deeper ones are parsed one by one
_HEX = "[0-9a-fA-F]"
_STRING = r'"(?:[^"\\]++|\\.)*+"'
_NESTED = rf'[\[{{](?:[^"\[\]{{}}]++|{_STRING})*+[\]}}]'
for _ in range(_RUN_DEPTH - 1):
    _NESTED = rf'[\[{{](?:[^"\[\]{{}}]++|{_STRING}|{_NESTED})*+[\]}}]'
_VALUE = rf'(?:{_STRING}|[^\s"\[\]{{}},:]++|{_NESTED})'
# Complete ones alone: what follows the last comma may go on behind the window. Whether they are valid the parser says.
_ELEMENTS = re.compile(rf"(?:\s*+{_VALUE}\s*+,)++", re.DOTALL)
_MEMBERS = re.compile(rf"(?:\s*+{_STRING}\s*+:\s*+{_VALUE}\s*+,)++", re.DOTALL)
_PRINTED_MEMBER = re.compile(rf"({_STRING}):{_VALUE}".encode(), re.DOTALL)
# Of a string, ending neither in an escape nor between the halves of a surrogate pair.
_PART = re.compile(
    rf'(?:[^"\\\x00-\x1f]++|\\["\\/bfnrt]|\\u(?![dD][89abAB]){_HEX}{{4}}'
    rf"|\\u[dD][89abAB]{_HEX}{{2}}(?:\\u[dD][c-fC-F]{_HEX}{{2}}|(?=[^\\]|\\[^u]|\\u{_HEX}{{4}})))*+",
    re.DOTALL,
)
_NUMBER_STARTS = "-0123456789"


Pieces = list["bytearray | Members"]
"""Printed text, and the objects in it that were entered."""


class Members:
    """An object that was entered: runs of members, each printed in its order, and those whose value was entered."""

    def __init__(self) -> None:
        self.runs: list[bytes | tuple[str, Pieces]] = []
        self.uuid: Pieces = [bytearray(b'""')]
        """The value of the last member of this name."""

    def printed(self) -> "Iterator[bytes | bytearray | Members]":
        yield b"{"
        comma = b""
        for _, same in groupby(heapq.merge(*map(_members, self.runs), key=_ORDER), key=_ORDER):
            *_, (_, text, value) = same  # of a repeated one the last counts
            yield comma + text
            yield from value
            comma = b","
        yield b"}"


_ORDER = itemgetter(0)


def _members(run: bytes | tuple[str, Pieces]) -> Iterator[tuple[Any, bytes, Pieces]]:
    """What each is ordered by, its text, and a value that goes on behind it."""
    if isinstance(run, tuple):
        name, value = run
        yield name_order(name), encoded(quote(name)) + b":", value
        return
    for found in _PRINTED_MEMBER.finditer(run):
        yield name_order(scanstring(found[1].decode(), 1, True)[0]), found[0], []


def _texts(pieces: Pieces) -> Iterator[bytes | bytearray]:
    """All text, without recursion."""
    entered: list[Iterator[bytes | bytearray | Members]] = [iter(pieces)]
    while entered:
        for piece in entered[-1]:
            if isinstance(piece, Members):
                entered.append(piece.printed())
                break
            yield piece
        else:
            entered.pop()


class Printed(NamedTuple):
    """A document that was read to its end."""

    members: Members

    @property
    def uuid(self) -> bytes:
        """As it is printed; an empty string where there is none."""
        return b"".join(_texts(self.members.uuid))

    @property
    def pieces(self) -> Iterator[bytes | bytearray]:
        """Together the canonical form."""
        return _texts([self.members])


def print_large(raw: bytes) -> Printed:
    """The canonical form of an object of any size and depth. For a worker thread: it pauses.

    Raises ValueError for what is not a JSON object.
    """
    return _Printer(_Text(raw)).run()


class _Text:
    """The part of the text that is decoded: from `position` on a window can be seen, or all that is left."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._read = 0
        self._decoder = getincrementaldecoder("utf-8")()
        self.text = ""
        self.position = 0
        self.ended = False
        """Whether the end of the document can be seen."""

    def look(self) -> None:
        """See a window ahead."""
        while len(self.text) - self.position < _WINDOW and not self.ended:
            self._more(_WINDOW)

    def pass_gap(self) -> str:
        """The next character that means something, which is then at `position`; empty at the end."""
        while True:
            self.look()
            self.position = after_gap(self.text, self.position)
            if self.position < len(self.text) or self.ended:
                return self.text[self.position : self.position + 1]

    def read(self, parse: Callable[[str, int], tuple[Any, int]]) -> Any:
        """What `parse` finds at the position, however long that is."""
        while True:
            try:
                value, end = parse(self.text, self.position)
            except (ValueError, StopIteration):
                if self.ended:
                    raise self.broken() from None
            else:
                if self.shows_end(end):
                    self.position = end
                    return value
            self._more(len(self.text))

    def shows_end(self, end: int) -> bool:
        """Whether a value that was read ends there: a number is cut before `e+` where its digits are not seen."""
        return self.ended or end < len(self.text) - 2

    def broken(self) -> ValueError:
        found = self.text[self.position : self.position + 20]
        return ValueError(f"unexpected {found!r}" if found else "the JSON text ends too early")

    def _more(self, size: int) -> None:
        time.sleep(_PAUSE_S)
        piece = self._raw[self._read : self._read + size]
        self._read += len(piece)
        self.ended = self._read == len(self._raw)
        self.text = self.text[self.position :] + self._decoder.decode(piece, self.ended)
        self.position = 0


class _Entered:
    """An array, the text of which goes `to` there as its values come, or an object with its `members`."""

    def __init__(self, to: Pieces, members: Members | None) -> None:
        self.to = to
        self.members = members
        self.is_empty = True


class _Printer:
    def __init__(self, text: _Text) -> None:
        self._text = text
        self._hooks = Hooks()
        self._entered: list[_Entered] = []

    def run(self) -> Printed:
        document = Pieces()
        if self._text.pass_gap() != "{":
            raise NotAnObjectError
        self._enter(document, "{")
        members = self._entered[-1].members
        while self._entered:
            self._step(self._entered[-1])
        if self._text.pass_gap():
            raise self._text.broken()
        assert members is not None
        return Printed(members)

    def _step(self, inside: _Entered) -> None:
        """Print the next values, or enter the next one."""
        next = self._text.pass_gap()
        if inside.is_empty and next == _closing(inside):
            self._leave()
            self._end_value()
            return
        if self._run(inside):
            return
        to = inside.to
        if inside.members is not None:
            to = Pieces()
            self._keep(inside.members, self._name(), to)
            next = self._text.pass_gap()
        elif not inside.is_empty:
            _add(to, b",")
        inside.is_empty = False
        if next == "{" or next == "[":
            if not self._fits(to):
                self._enter(to, next)
                return
        elif next == '"':
            self._string(to)
        elif not self._fits(to):
            self._scalar(to, next)
        self._end_value()

    def _run(self, inside: _Entered) -> bool:
        """Print the values up to the last comma in the window; False where there is none."""
        pattern = _ELEMENTS if inside.members is None else _MEMBERS
        at = self._text.position
        found = pattern.match(self._text.text, at, at + _WINDOW)
        if found is None:
            return False
        self._hooks.tiny = False
        if inside.members is None:
            value = self._hooks.decoder.decode(f"[{found[0][:-1]}]")
            if not inside.is_empty:
                _add(inside.to, b",")
            _add(inside.to, self._printed(value)[1:-1])
        else:
            values = self._hooks.decoder.decode(f"{{{found[0][:-1]}}}")
            inside.members.runs.append(self._printed(values)[1:-1])
            if "uuid" in values:
                inside.members.uuid = [bytearray(self._printed(values["uuid"]))]
        inside.is_empty = False
        self._text.position = found.end()
        return True

    def _fits(self, to: Pieces) -> bool:
        """Print a value that ends within the window; False, and nothing is done, for another."""
        self._hooks.tiny = False
        try:
            value, end = self._hooks.scan(self._text.text, self._text.position)
        except (ValueError, StopIteration, RecursionError):
            return False
        if not self._text.shows_end(end):
            return False
        self._text.position = end
        _add(to, self._printed(value))
        return True

    def _printed(self, value: Any) -> bytes:
        return canonical_text(Document(value, self._hooks.tiny))

    def _keep(self, members: Members, name: str, value: Pieces) -> None:
        if name != "__proto__":
            members.runs.append((name, value))
        if name == "uuid":
            members.uuid = value

    def _enter(self, to: Pieces, opening: str) -> None:
        self._text.position += 1
        members = None
        if opening == "{":
            members = Members()
            to.append(members)
        else:
            _add(to, b"[")
        self._entered.append(_Entered(to, members))

    def _leave(self) -> None:
        self._text.position += 1
        inside = self._entered.pop()
        if inside.members is None:
            _add(inside.to, b"]")

    def _end_value(self) -> None:
        """Behind a value: go on to the next one, and leave what ends here."""
        while self._entered:
            next = self._text.pass_gap()
            if next == ",":
                self._text.position += 1
                return
            if next != _closing(self._entered[-1]):
                raise self._text.broken()
            self._leave()

    def _name(self) -> str:
        if self._text.pass_gap() != '"':
            raise self._text.broken()
        name: str = self._text.read(lambda text, position: scanstring(text, position + 1, True))
        if self._text.pass_gap() != ":":
            raise self._text.broken()
        self._text.position += 1
        return name

    def _string(self, to: Pieces) -> None:
        _add(to, b'"')
        self._text.position += 1
        while True:
            self._text.look()
            found = _PART.match(self._text.text, self._text.position)
            part = found[0] if found else ""
            self._text.position += len(part)
            _add(to, encoded(quote(scanstring(part + '"', 0, True)[0])[1:-1]))
            if self._text.text.startswith('"', self._text.position):
                break
            if not part:
                raise self._text.broken()
        _add(to, b'"')
        self._text.position += 1

    def _scalar(self, to: Pieces, first: str) -> None:
        """One that is not valid, or a number of very many digits."""
        if not first or first not in _NUMBER_STARTS:
            raise self._text.broken()
        _add(to, self._printed(self._text.read(self._hooks.scan)))


def _closing(inside: _Entered) -> str:
    return "]" if inside.members is None else "}"


def _add(to: Pieces, text: bytes) -> None:
    """Small pieces go together."""
    last = to[-1] if to else None
    if isinstance(last, bytearray) and len(last) < _WINDOW:
        last += text
    else:
        to.append(bytearray(text))
