"""JSON as JavaScript prints it, compared with the real one."""

import json
import random
import struct
import subprocess
from hashlib import sha1
from pathlib import Path

import pytest

from services.environments_store.canonical import Document, canonical_text, parse, parse_plain, print_plain
from services.environments_store.hash import content_hash
from tests.support.servers import script_path

SCRIPT = Path(__file__).parent / "javascript" / "content_hash.js"
DOCUMENTS = 2_000
NUMBERS = ["-0", "0.0", "-0.0", "1e400", "-1e400", "1e21", "1e-6", "1e-7", "9.99e-7", "0.0001", "5e-324", "1E+2"]
NUMBERS += ["0.00009999999999999999", "123456789012345680000", "999999999999999999999", "9007199254740993"]
KEYS = ["__proto__", "toJSON", "length", "constructor", "0", "00", "01", "10", "9", "-1", "1.5", "1e3", "", "٣", "²x"]
KEYS += ["4294967294", "4294967295", "4294967296", "99999999999", "9007199254740991"]
# No backslash: V8's parser mistakes an escaped key of one character for an earlier key "\\" (seen in Node 24.19).
CHARACTERS = 'ab019_é\u2028"\n\x00\x1f\x7f😀\ud800\udc00｡/\uffff\U00010000 '
PLAIN_KEYS = ["toJSON", "length", "constructor", "-1", "1.5", "1e3", "", "٣", "²x", "1 ", "_proto_"]
PLAIN_CHARACTERS = 'ab_é\u2028"\n\t\r\b\f\x7f😀/\U00010000 '


class Documents:
    """Random JSON texts, made of what is printed differently elsewhere; plain ones have nothing of the kind."""

    def __init__(self, seed: int, *, plain: bool = False) -> None:
        self._random = random.Random(seed)
        self._plain = plain
        self._characters = PLAIN_CHARACTERS if plain else CHARACTERS

    def document(self) -> str:
        return self._object(0)

    def _value(self, depth: int) -> str:
        kind = self._random.randrange(5 if depth > 3 else 7)
        if kind < 2:
            return self._number()
        if kind == 2:
            return self._string("".join(self._random.choices(self._characters, k=self._random.randrange(5))))
        if kind == 3:
            return self._random.choice(["true", "false", "null", "[]", "{}"])
        if kind < 6:
            return f"[{','.join(self._spaced(self._value(depth + 1)) for _ in range(self._random.randrange(4)))}]"
        return self._object(depth)

    def _object(self, depth: int) -> str:
        members = [
            f"{self._spaced(self._string(self._key()))}:{self._spaced(self._value(depth + 1))}"
            for _ in range(self._random.randrange(8))
        ]
        return f"{{{','.join(members)}}}"

    def _key(self) -> str:
        if self._random.random() < 0.5:
            return self._random.choice(PLAIN_KEYS if self._plain else KEYS)
        return "".join(self._random.choices(self._characters, k=self._random.randrange(5)))

    def _string(self, text: str) -> str:
        lone = any("\ud800" <= character <= "\udfff" for character in text)
        return json.dumps(text, ensure_ascii=not self._plain and (lone or self._random.random() < 0.5))

    def _spaced(self, text: str) -> str:
        return self._random.choice(["", "", " ", "\n\t"]) + text + self._random.choice(["", "", "\r\n"])

    def _number(self) -> str:
        if self._plain:
            return str(self._random.randrange(-(10**15) + 1, 10**15)) if self._random.random() < 0.9 else "-0"
        match self._random.randrange(6):
            case 0:
                double = struct.unpack(">d", self._random.randbytes(8))[0]
                return repr(double) if abs(double) < float("inf") else "1e999"
            case 1:
                return str(self._random.randrange(-(10**25), 10**25))
            case 2:
                return f"{self._random.randrange(-999, 1_000)}e{self._random.randrange(-330, 330)}"
            case 3:
                return repr(self._random.uniform(-1, 1) * 10.0 ** self._random.randrange(-12, 25))
            case 4:
                return str(self._random.randrange(-100, 100))
        return self._random.choice(NUMBERS)


@pytest.fixture(scope="module")
def compared() -> list[tuple[str, bytes, str]]:
    """Random documents, each with the text and the hash that Node makes of it."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 -- shown with a failure, to repeat it
    texts = [Documents(seed + number, plain=number % 2 == 0).document() for number in range(DOCUMENTS)]
    lines = "".join(json.dumps(text) + "\n" for text in texts)
    result = subprocess.run([script_path("node"), SCRIPT], input=lines.encode(), capture_output=True, check=True)
    answers = [json.loads(line) for line in result.stdout.decode().rstrip("\n").split("\n")]
    assert len(answers) == DOCUMENTS
    return [(text, answer[0].encode(), answer[1]) for text, answer in zip(texts, answers, strict=True)]


def test_random_documents_are_printed_and_hashed_as_node_does(compared: list[tuple[str, bytes, str]]) -> None:
    for text, printed, hash in compared:
        document = parse(text)
        assert canonical_text(document) == printed
        assert content_hash(text.encode()) == hash


def test_documents_without_a_trap_are_read_and_printed_by_the_fast_way(compared: list[tuple[str, bytes, str]]) -> None:
    fast = [(parse_plain(text.encode()), printed) for text, printed, _ in compared]
    assert all(value is not None for value, _ in fast[::2])
    for value, printed in fast:
        assert value is None or print_plain(value) == printed


def test_the_printer_without_recursion_prints_the_same(compared: list[tuple[str, bytes, str]]) -> None:
    for text, printed, _ in compared:
        assert canonical_text(Document(parse(text).value, tiny=True)) == printed


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1,]", "[1 2]", '{"a"}', '{"a":1,}', "{,}", "{1:2}", "nul", "[01]", "1.", "{} x", '"\x01"', "NaN"],
)
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 -- of several kinds
        parse(text)


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"a":[', "]}]")])
def test_a_small_document_of_any_depth_is_hashed_as_it_is_printed(opening: str, closing: str) -> None:
    text = ('{"a":' + opening * 1_200 + "1" + closing * 1_200 + "}").encode()
    assert content_hash(text) == sha1(text).hexdigest()


def test_a_deep_document_that_ends_too_early_is_refused() -> None:
    with pytest.raises(ValueError, match="too early"):
        content_hash(b'{"a":' + b"[" * 2_000)
