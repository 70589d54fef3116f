"""The content hash of a document: the entity tag that clients of the original service compare."""

from collections import OrderedDict
from hashlib import blake2b, sha1

from services.environments_store.canonical import Document, canonical_text, parse

__all__ = ["ContentHashes", "content_hash", "hash_of"]

_DIGEST_BYTES = 16


def hash_of(document: Document) -> str:
    """SHA-1, in hexadecimal, of a parsed document in its canonical form."""
    return sha1(canonical_text(document), usedforsecurity=False).hexdigest()


def content_hash(text: bytes) -> str:
    """SHA-1, in hexadecimal, of the document as JavaScript prints it with sorted keys.

    Raises ValueError when the text is no JSON.
    """
    return hash_of(parse(text.decode()))


class ContentHashes:
    """Hashes already made, found again by a digest of the text: a warm read neither parses nor prints a document.

    Holds the `entries` used last; some 200 bytes each, whatever the size of the documents.
    """

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._known: OrderedDict[bytes, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, text: bytes) -> str | None:
        """The hash of this text when it is known."""
        digest = _digest(text)
        known = self._known.get(digest)
        if known is not None:
            self._known.move_to_end(digest)
        return known

    def add(self, text: bytes, hash: str) -> None:
        """Remember the hash of this text, and forget what was used longest ago when there is no room."""
        self._known[_digest(text)] = hash
        while len(self._known) > self._entries:
            self._known.popitem(last=False)


def _digest(text: bytes) -> bytes:
    return blake2b(text, digest_size=_DIGEST_BYTES).digest()
