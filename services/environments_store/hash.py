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
"""The key of a document in `ContentHashes`."""


class Content:
    """The content of a document; `uuid` is `""` when it has none. Raises ValueError for what is not a JSON object.

    A large one takes about its own size in memory, whatever it contains.
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
    """The parsed document; None if it is large, or nested too deeply for a recursive parser."""
    if len(text) >= _LARGE_BYTES:
        return None
    try:
        return parse(text.decode())
    except RecursionError:
        return None


def content_hash(text: bytes) -> str:
    """SHA-1, in hexadecimal, of the document as JavaScript prints it with sorted keys.

    Raises ValueError when the text is not a JSON object.
    """
    return Content(text).hash()


def digest(text: bytes) -> bytes:
    """A cryptographic digest of a text."""
    return blake2b(text, digest_size=_DIGEST_BYTES).digest()


def fingerprint(id: str, text: bytes) -> Fingerprint:
    """The key of a document among all versions of this environment.

    Python's own hash, 64 bits with a secret key, takes a tenth of the time of a cryptographic one, but holds the GIL: a
    very large text, which is read in a thread, gets the digest, which releases it.
    """
    return id, hash(text) if len(text) < _VERY_LARGE_BYTES else digest(text)


class ContentHashes:
    """A cache of content hashes by fingerprint, so that a warm read neither parses nor prints a document.

    Keeps the `entries` used last, of some 300 bytes each.
    """

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._known: OrderedDict[Fingerprint, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, document: Fingerprint) -> str | None:
        """The content hash, None when it is not cached."""
        known = self._known.get(document)
        if known is not None:
            self._known.move_to_end(document)
        return known

    def add(self, document: Fingerprint, hash: str) -> None:
        """Cache a content hash, and evict the least recently used ones above the limit."""
        self._known[document] = hash
        while len(self._known) > self._entries:
            self._known.popitem(last=False)
