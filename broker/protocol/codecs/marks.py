"""JSONExt as text: its marks put into JSON and taken out of it, every other byte left as it is (protocol §11).

A mark is a prefix of a string value: `"[[DT]]1700000000000"`. A string that begins with `[[` itself is marked, too.
"""

import json
import re
from collections.abc import Callable

ESCAPED = "[[ES]]"

# A string value that begins with `[[`, however these are written. A quote that follows no backslash begins a string or
# ends one, and what follows an end is never a bracket that opens. Keys carry no marks.
_BEGIN = rb'(?<!\\)"(?=(?:\[|\\u005[bB]){2})'
_MARK = re.compile(_BEGIN)
_MARKED = re.compile(_BEGIN + rb'(?:[^"\\]++|\\.)*+"(?![ \t\r\n]*:)', re.DOTALL)


def has_marks(text: bytes) -> bool:
    """Whether any string of a JSON text begins with `[[`."""
    return (b'"[[' in text or b"\\u005" in text) and _MARK.search(text) is not None


def escape(text: bytes) -> bytes:
    """JSON to JSONExt: strings that only look marked are marked as such."""
    return _MARKED.sub(lambda match: b'"[[ES]]' + match[0][1:], text) if has_marks(text) else text


def unescape(text: bytes, print_value: Callable[[str], bytes | None]) -> bytes:
    """JSONExt to JSON: what was escaped becomes what it was.

    `print_value` gives the JSON of any other marked string, None when the mark means nothing and the string stays.
    """

    def plain(match: re.Match[bytes]) -> bytes:
        literal = match[0]
        if literal.startswith(b'"[[ES]]'):
            return b'"' + literal[7:]
        value: str = json.loads(literal)
        if value.startswith(ESCAPED):
            return json.dumps(value[len(ESCAPED) :]).encode()
        printed = print_value(value)
        return literal if printed is None else printed

    return _MARKED.sub(plain, text) if has_marks(text) else text
