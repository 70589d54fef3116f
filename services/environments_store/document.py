"""Validation of a document that a caller sent, and its hash."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgspec

from broker.errors import PayloadTooLargeError, ValidationError
from broker.protocol.members import locate_members
from services.environments_store.canonical import NotAnObjectError
from services.environments_store.defaults import StoreLimits
from services.environments_store.hash import Content, ContentHashes, Fingerprint, content_hash, fingerprint
from services.environments_store.model import Environment, encode_record

__all__ = [
    "LARGE_DOCUMENTS",
    "AcceptedDocument",
    "accept_document",
    "away_when_large",
    "check_document",
    "check_record",
    "check_reply",
    "check_uuid",
    "document_hash",
    "invalid",
    "with_uuid",
]

T = TypeVar("T")

LARGE_DOCUMENTS = (
    "Raise max_payload of the NATS server, or move such a document with import and export, whose streams have no limit."
)
"""The advice for a document whose record fits no reply."""

_DATE = "9999-12-31T23:59:59.999Z"
_RECORD_BYTES = 4_096  # more than a record has beside its document
_BYTES_PER_CHARACTER = 4  # at most: in UTF-8, or of a number or an escape in any serializer
_LANES: tuple[anyio.lowlevel.RunVar[anyio.CapacityLimiter], ...] = (
    anyio.lowlevel.RunVar("large documents"),
    anyio.lowlevel.RunVar("very large documents"),
)
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
# All up to the next brackets outside of strings, and those of one kind that follow each other.
_BRACKETS = re.compile(rb'(?:[^"\[\]{}]++|"(?:[^"\\]++|\\.)*+")*+([\[{]++|[\]}]++)', re.DOTALL)


class AcceptedDocument(NamedTuple):
    """`text` is stored: the bytes that were sent, with a generated uuid if there was none."""

    uuid: str
    text: str
    hash: str


def invalid(field: str, kind: str, message: str) -> ValidationError:
    """One violation in the form that JavaScript validators give."""
    return ValidationError("Parameters validation error!", None, [{"type": kind, "field": field, "message": message}])


def check_uuid(uuid: Any, field: str, limits: StoreLimits) -> str:
    """Return the uuid if every database can store it unchanged. Raises ValidationError (422) otherwise."""
    if not isinstance(uuid, str):
        raise invalid(field, "string", f"The '{field}' must be a string.")
    if not uuid:
        raise invalid(field, "stringEmpty", f"The '{field}' must not be empty.")
    if len(uuid) > limits.uuid_characters:
        raise invalid(field, "stringMax", f"The '{field}' must not be longer than {limits.uuid_characters} characters.")
    if _UNSTORABLE.search(uuid):
        raise invalid(field, "string", f"The '{field}' must not contain NUL or half of a surrogate pair.")
    return uuid


async def accept_document(raw: bytes, uuid: str | None, hashes: ContentHashes, limits: StoreLimits) -> AcceptedDocument:
    """Check a document before anything is written; with a `uuid` it must have that uuid.

    Raises ValidationError (422) for what cannot be stored.
    """
    accepted, known_by = await away_when_large(lambda: _accept(raw, uuid, limits), len(raw), limits)
    hashes.add(known_by, accepted.hash)
    return accepted


def check_reply(accepted: AcceptedDocument, reply_limit: int | None, measure: Callable[[bytes], int]) -> None:
    """Raises PayloadTooLargeError (413) for a document whose record fits no reply, so that no caller could read it."""
    if reply_limit is None or len(accepted.text) + _RECORD_BYTES < reply_limit // _BYTES_PER_CHARACTER:
        return
    environment = Environment(accepted.uuid, accepted.uuid, accepted.text.encode(), 10**13, _DATE, _DATE, _DATE)
    check_record(accepted.uuid, encode_record(environment, accepted.hash), reply_limit, measure, "Nothing was stored. ")


def check_record(
    uuid: str, record: bytes, reply_limit: int | None, measure: Callable[[bytes], int], outcome: str = ""
) -> None:
    """Raises PayloadTooLargeError (413) for a record that does not fit in a reply."""
    if reply_limit is None or len(record) < reply_limit // _BYTES_PER_CHARACTER:
        return
    size = measure(record)
    if size > reply_limit:
        raise PayloadTooLargeError(
            f"The record of '{uuid}' takes {size} bytes, more than the {reply_limit} of a reply. {outcome}"
            f"{LARGE_DOCUMENTS}",
            {"size": size, "limit": reply_limit},
        )


async def document_hash(id: str, text: bytes, hashes: ContentHashes | None, limits: StoreLimits) -> str:
    """The content hash of a stored document, cached in `hashes`. Raises ValueError when it is not a JSON object."""
    size = len(text)
    if hashes is None:
        return await away_when_large(lambda: content_hash(text), size, limits)
    if size < limits.alone_from_bytes:
        known_by = fingerprint(id, text)
    else:
        known_by = await anyio.to_thread.run_sync(fingerprint, id, text)
    known = hashes.get(known_by)
    if known is None:
        known = await away_when_large(lambda: content_hash(text), size, limits)
        hashes.add(known_by, known)
    return known


async def away_when_large(work: Callable[[], T], size: int, limits: StoreLimits) -> T:
    """Run the work in a thread if the document is large, one at a time: several parsing threads would starve the loop.
    Large documents do not wait for very large ones."""
    if size < limits.thread_from_bytes:
        return work()
    lane = _LANES[size >= limits.alone_from_bytes]
    try:
        limiter = lane.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(1)
        lane.set(limiter)
    return await anyio.to_thread.run_sync(work, limiter=limiter)


def check_document(raw: bytes, limits: StoreLimits) -> Content:
    """Parse a document. Raises ValidationError (422) for what no database can store."""
    if _is_deeper(raw, limits.document_depth):
        raise invalid(
            "environment", "object", f"The 'environment' is nested deeper than {limits.document_depth} levels."
        )
    try:
        return Content(raw)
    except NotAnObjectError:
        raise invalid("environment", "object", "The 'environment' must be an object.") from None
    except UnicodeDecodeError:
        raise invalid("environment", "object", "The 'environment' is not valid UTF-8.") from None
    except ValueError as error:
        raise invalid("environment", "object", f"The 'environment' is not valid JSON: {error}.") from None


def _accept(raw: bytes, uuid: str | None, limits: StoreLimits) -> tuple[AcceptedDocument, Fingerprint]:
    """The document, and the cache key of its hash."""
    content = check_document(raw, limits)
    if content.uuid == "":
        raw = with_uuid(raw, uuid or str(uuid4()))
        content = Content(raw)
    own = check_uuid(content.uuid, "environment.uuid", limits)
    if uuid is not None and own != uuid:
        raise invalid("environment.uuid", "equalField", "The 'environment.uuid' must be the 'uuid' to update.")
    return AcceptedDocument(own, raw.decode(), content.hash()), fingerprint(own, raw)


def with_uuid(raw: bytes, uuid: str) -> bytes:
    """Insert a uuid into a document: in place of an empty one, or as a new first member. The rest is unchanged."""
    value = msgspec.json.encode(uuid)
    start, end = locate_members(raw).get("uuid", (0, 0))
    if end:
        return raw[:start] + value + raw[end:]
    before, _, rest = raw.partition(b"{")
    return b'%s{"uuid":%s%s%s' % (before, value, b"" if rest.lstrip().startswith(b"}") else b",", rest)


def _is_deeper(raw: bytes, levels: int) -> bool:
    """Whether a JSON text is nested deeper than `levels`; scanned only when it opens more containers than that."""
    if raw.count(b"[") + raw.count(b"{") <= levels:
        return False
    depth = 0
    for found in _BRACKETS.finditer(raw):
        count = found.end(1) - found.start(1)
        depth += count if found[1][0] in b"[{" else -count
        if depth > levels:
            return True
    return False
