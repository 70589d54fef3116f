"""The content hash: the vectors of the original service, and the memory of hashes already made."""

import pytest

from services.environments_store.canonical import canonical_text, parse
from services.environments_store.defaults import StoreLimits
from services.environments_store.hash import ContentHashes, content_hash, fingerprint

VECTORS = [
    (r'{"b":1,"a":2}', '{"a":2,"b":1}', "1c072775cb3d4104c26a2bc3483f500d1b5c0e17"),
    (r'{"a":1.0}', '{"a":1}', "9f89c740ceb46d7418c924a78ac57941d5e96520"),
    (r'{"a":1e21}', '{"a":1e+21}', "539f17f774675eeeb2329bc66b689664a2e9fa9f"),
    (r'{"a":12345678901234567890}', '{"a":12345678901234567000}', "da98085d44d0a78892fab6ac9f551fb9370c18d0"),
    (r'{"a":-0}', '{"a":0}', "9538984bf72dafdf35fa15b4f2e08e3e498febfb"),
    (
        r'{"10":1,"9":2,"b":3,"a":4,"1b":5}',
        '{"9":2,"10":1,"1b":5,"a":4,"b":3}',
        "639d6fafe1e4dacad0d3108076788a7487d85323",
    ),
    (r'{"__proto__":{"x":1},"a":1}', '{"a":1}', "9f89c740ceb46d7418c924a78ac57941d5e96520"),
    (r'{"a":"\ud800"}', r'{"a":"\ud800"}', "901161cbdf833703aa4f3d9c6ac0c96a9c77828c"),
    (r'{"\uff61":1,"\ud83d\ude00":2}', '{"😀":2,"｡":1}', "a2f5ef7cc02c51f4328cb3adfda1aa9a1568b755"),
]


@pytest.mark.parametrize(("text", "printed", "hash"), VECTORS)
def test_the_hash_is_the_original_services(text: str, printed: str, hash: str) -> None:
    assert canonical_text(parse(text)).decode() == printed
    assert content_hash(text.encode()) == hash


def test_order_of_keys_and_spaces_do_not_matter() -> None:
    assert content_hash(b'{"a":[1,2],"b":{"c":3}}') == content_hash(b' { "b" : {"c":3.0}, "a":[1, 2] } ')


def test_of_a_repeated_key_the_last_one_counts() -> None:
    assert content_hash(b'{"a":1,"a":2}') == content_hash(b'{"a":2}')


def test_an_infinite_number_is_null() -> None:
    assert content_hash(b'{"a":1e400,"b":-1e400}') == content_hash(b'{"a":null,"b":null}')


def test_what_is_no_json_has_no_hash() -> None:
    with pytest.raises(ValueError, match="Expecting"):
        content_hash(b"{")


@pytest.mark.parametrize("size", [2, StoreLimits().alone_from_bytes])
def test_a_remembered_hash_is_found_by_environment_and_text(size: int) -> None:
    text = b"{}".ljust(size)
    hashes = ContentHashes(entries=2)
    assert hashes.get(fingerprint("a", text)) is None
    hashes.add(fingerprint("a", text), "hash of an empty object")
    assert hashes.get(fingerprint("a", bytes(bytearray(text)))) == "hash of an empty object"
    assert hashes.get(fingerprint("a", text + b" ")) is None
    assert hashes.get(fingerprint("b", text)) is None


def test_what_was_used_longest_ago_is_forgotten() -> None:
    hashes = ContentHashes(entries=2)
    hashes.add(("a", 1), "one")
    hashes.add(("a", 2), "two")
    assert hashes.get(("a", 1)) == "one"
    hashes.add(("a", 3), "three")
    assert (hashes.get(("a", 1)), hashes.get(("a", 2)), hashes.get(("a", 3))) == ("one", None, "three")
    assert len(hashes) == 2
