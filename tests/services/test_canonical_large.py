"""Large documents, printed window by window, against the same printed whole."""

import json
import random
import tracemalloc

import pytest

from services.environments_store import canonical_large
from services.environments_store.canonical import canonical_text, parse
from services.environments_store.canonical_large import print_large
from tests.services.test_canonical import Documents

MEGABYTE = 1_000_000
LARGE = {
    "routes": [
        {"uuid": f"r{n}", "responses": [{"body": "lorem 😀 \\" * 100, "statusCode": 200}]} for n in range(1_000)
    ],
    "one string": "a\n😀\\" * (MEGABYTE // 8),
    "numbers": [n / 7 for n in range(MEGABYTE // 20)],
    "a long number": [1, int("7" * 4_000), 2],
    "members": {f"k{n * 7 % MEGABYTE}": n for n in range(MEGABYTE // 20)},
    "nested": {"b": [{"z": ["é" * MEGABYTE], "a": 1e-7}, []], "a": {}},
}


@pytest.mark.parametrize("window", [12, 13, 50, 2_000])
def test_random_documents_are_printed_or_refused_as_whole_ones_are(
    window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canonical_large, "_WINDOW", window)
    monkeypatch.setattr(canonical_large, "_PAUSE_S", 0)
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 -- shown with a failure, to repeat it
    documents, choose = Documents(seed), random.Random(seed)
    refused = 0
    for _ in range(250):
        raw = documents.document().encode()
        assert _printed(raw) == _whole(raw) is not None
        at = choose.randrange(len(raw))
        broken = raw[:at] + choose.choice([b"", *b'"\\,[]{}:\x01\xff0e '.split()]) + raw[at + 1 :]
        assert _printed(broken) == _whole(broken)
        refused += _whole(broken) is None
    assert refused > 50


@pytest.mark.parametrize(
    ("kind", "ascii"),
    [*((kind, True) for kind in LARGE), *((kind, False) for kind in ("routes", "one string", "nested"))],
)
def test_a_large_document_takes_its_own_size_whatever_is_in_it(kind: str, ascii: bool) -> None:
    raw = json.dumps({"uuid": "U", kind: LARGE[kind]}, ensure_ascii=ascii).encode()
    tracemalloc.start()
    try:
        printed = print_large(raw)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert b"".join(printed.pieces) == _whole(raw)
    assert printed.uuid == b'"U"'
    assert peak < 1.5 * len(raw) + 3 * MEGABYTE


def test_any_depth_is_printed() -> None:
    text = '{"a":' + '[{"b":' * 1_500 + '"%s",1' % ("x" * 70_000) + "}]" * 1_500 + "}"
    text = text.replace(",1", ',"c":1')
    assert b"".join(print_large(text.encode()).pieces) == text.encode()


def _whole(raw: bytes) -> bytes | None:
    try:
        document = parse(raw.decode())
    except ValueError:
        return None
    return canonical_text(document) if isinstance(document.value, dict) else None


def _printed(raw: bytes) -> bytes | None:
    try:
        return b"".join(print_large(raw).pieces)
    except ValueError:
        return None
