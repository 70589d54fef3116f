"""The content hash of a document: the entity tag that clients of the original service compare."""

import json
from collections import OrderedDict
from hashlib import blake2b, sha1
from typing import Any

from services.environments_store.canonical import (
    Document,
    NotAnObjectError,
    canonical_text,
    parse,
    parse_plain,
    print_plain,
)
from services.environments_store.canonical_large import print_large
from services.environments_store.defaults import StoreLimits

__all__ = ["Content", "ContentHashes", "Fingerprint", "content_hash", "digest", "fingerprint"]

_DIGEST_BYTES = 16
_LARGE_BYTES = StoreLimits().thread_from_bytes
_VERY_LARGE_BYTES = StoreLimits().alone_from_bytes

Fingerprint = tuple[str, int | bytes]
"""What `ContentHashes` knows a document by."""


class Content:
    """What a document says. `uuid` is its own, `""` where it has none. Raises ValueError for what is not a JSON object.

    A large one is read on a worker thread, and takes its own size in memory, whatever is in it.
    """

    def __init__(self, text: bytes) -> None:
        self._plain: Any = parse_plain(text) if len(text) < _LARGE_BYTES else None
        self._document = None if isinstance(self._plain, dict) else _parsed(text)
        if isinstance(self._plain, dict):
            self.uuid: Any = self._plain.get("uuid", "")
        elif self._document is not None:
            if not isinstance(self._document.value, dict):
                raise NotAnObjectError
            self.uuid = self._document.value.get("uuid", "")
        else:
            self._printed = print_large(text)
            self.uuid = json.loads(self._printed.uuid)

    def hash(self) -> str:
        """SHA-1, in hexadecimal, of the canonical form."""
        if self._plain is not None:
            return sha1(print_plain(self._plain), usedforsecurity=False).hexdigest()
        hash = sha1(usedforsecurity=False)
        for piece in (canonical_text(self._document),) if self._document else self._printed.pieces:
            hash.update(piece)
        return hash.hexdigest()


def _parsed(text: bytes) -> Document | None:
    """A document with its values; None for one that is large, or nests deeper than a recursive parser goes."""
    if len(text) >= _LARGE_BYTES:
        return None
    try:
        return parse(text.decode())
    except RecursionError:
        return None


def content_hash(text: bytes) -> str:
    """SHA-1, in hexadecimal, of the document as JavaScript prints it with sorted keys.

    Raises ValueError when the text is no JSON object.
    """
    return Content(text).hash()


def digest(text: bytes) -> bytes:
    """A short form of a text, which no other text has."""
    return blake2b(text, digest_size=_DIGEST_BYTES).digest()


def fingerprint(id: str, text: bytes) -> Fingerprint:
    """What a document is known by among all that this environment has had.

    Python's own hash, 64 bits by a secret key, takes a tenth of the time of a cryptographic one and holds up the
    interpreter: of a very large text, which is read on a thread, it is the digest, which lets others run.
    """
    return id, hash(text) if len(text) < _VERY_LARGE_BYTES else digest(text)


class ContentHashes:
    """Hashes already made, found again by a fingerprint: a warm read neither parses nor prints a document.

    Holds the `entries` used last; some 300 bytes each, whatever the size of the documents.
    """

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._known: OrderedDict[Fingerprint, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, document: Fingerprint) -> str | None:
        """The content hash, when it is known."""
        known = self._known.get(document)
        if known is not None:
            self._known.move_to_end(document)
        return known

    def add(self, document: Fingerprint, hash: str) -> None:
        """Remember a content hash, and forget what was used longest ago when there is no room."""
        self._known[document] = hash
        while len(self._known) > self._entries:
            self._known.popitem(last=False)
