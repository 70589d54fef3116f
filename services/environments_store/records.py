"""The record of a row, and the event of its change."""

import logging
from collections.abc import Sequence
from typing import Literal, NamedTuple

from services.environments_store.database.base import Row
from services.environments_store.defaults import StoreLimits
from services.environments_store.document import document_hash
from services.environments_store.hash import ContentHashes, fingerprint
from services.environments_store.model import RECORD_FIELDS, Change, Environment, encode_record, read_row

__all__ = ["Records", "Written"]

ChangeType = Literal["created", "updated", "removed", "restored", "purged"]


class Written(NamedTuple):
    """The result of a write: the record, if the action returns one, and the event, None when nothing changed."""

    record: bytes
    change: Change | None


class Records:
    """Makes records of rows, with a cache of hashes."""

    def __init__(self, limits: StoreLimits, logger: logging.Logger) -> None:
        self.hashes = ContentHashes(limits.hash_entries)
        self._limits = limits
        self._logger = logger

    async def hash(self, environment: Environment) -> str:
        """The content hash. Raises ValueError, with the reason, for a damaged document."""
        if environment.document is None:
            raise ValueError("its document is NULL")
        hashes = self.hashes if self._limits.hash_entries else None
        return await document_hash(environment.id, environment.document, hashes, self._limits)

    async def tag(self, environment: Environment) -> str | None:
        """The content hash, None for a damaged document: no tag that a client sends is equal to it."""
        try:
            return await self.hash(environment)
        except ValueError:
            return None

    async def encode(self, environment: Environment, fields: Sequence[str] = RECORD_FIELDS) -> bytes:
        """The record. Raises ValueError, with what is wrong, for a damaged document that is asked for."""
        if "environment" not in fields and "hash" not in fields:
            return encode_record(environment, None, fields)
        return encode_record(environment, self._cached_hash(environment) or await self.hash(environment), fields)

    def _cached_hash(self, environment: Environment) -> str | None:
        """The content hash of an unchanged document, without what a new or a very large one takes."""
        document = environment.document
        if document is None or len(document) >= self._limits.alone_from_bytes:
            return None
        return self.hashes.get(fingerprint(environment.id, document))

    async def encode_listed(self, row: Row, fields: Sequence[str]) -> bytes:
        """The record; a damaged one without its document and hash: clients take what is not in a list for deleted."""
        environment = read_row(row)
        try:
            return await self.encode(environment, fields)
        except ValueError as error:
            self._logger.warning("The environment '%s' is damaged, and listed without a document: %s", row["id"], error)
            return encode_record(environment._replace(document=None), None, fields)

    async def written(self, type: ChangeType, row: Row) -> Written:
        """The outcome of a write that is answered with the record."""
        environment = read_row(row)
        hash = await self.hash(environment)
        return Written(encode_record(environment, hash), _change(type, environment, hash))

    async def marked(self, type: ChangeType, row: Row) -> Written:
        """The outcome of a write that is answered with its success alone; it works on damaged rows too."""
        environment = read_row(row)
        return Written(b"", _change(type, environment, await self.tag(environment)))


def _change(type: ChangeType, environment: Environment, hash: str | None) -> Change:
    return Change(type=type, uuid=environment.id, hash=hash, timestamp=environment.timestamp)
