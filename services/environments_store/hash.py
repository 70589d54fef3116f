"""The content hash of a document: the entity tag that clients of the original service compare."""

from collections import OrderedDict
from collections.abc import Iterable
from hashlib import blake2b, sha1

from services.environments_store.canonical import Document, canonical_pieces, exact_pieces, parse

__all__ = ["ContentHashes", "content_hash", "digest", "hash_of"]

_DIGEST_BYTES = 16


def hash_of(document: Document, *, large: bool = False) -> str:
    """SHA-1, in hexadecimal, of a parsed document in its canonical form; of a `large` one never all is printed at once,
    so that it takes no more memory, and other threads have their turn."""
    try:
        return _sha1(canonical_pieces(document, large=large))
    except RecursionError:
        return _sha1(exact_pieces(document))


def _sha1(pieces: Iterable[bytes]) -> str:
    hash = sha1(usedforsecurity=False)
    for piece in pieces:
        hash.update(piece)
    return hash.hexdigest()


def digest(text: bytes) -> bytes:
    """What `ContentHashes` knows a text by."""
    return blake2b(text, digest_size=_DIGEST_BYTES).digest()


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

    def get(self, digest: bytes) -> str | None:
        """The hash of the text with this digest, when it is known."""
        known = self._known.get(digest)
        if known is not None:
            self._known.move_to_end(digest)
        return known

    def add(self, digest: bytes, hash: str) -> None:
        """Remember the hash of a text, and forget what was used longest ago when there is no room."""
        self._known[digest] = hash
        while len(self._known) > self._entries:
            self._known.popitem(last=False)
