"""A page of records, read in batches and no further than the reply may hold."""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from broker.errors import PayloadTooLargeError
from services.environments_store.database.base import Database, Row
from services.environments_store.defaults import StoreLimits
from services.environments_store.document import LARGE_DOCUMENTS
from services.environments_store.model import RECORD_FIELDS
from services.environments_store.queries import Listing, Queries

__all__ = ["ListRequest", "PageReader"]


class ListRequest(NamedTuple):
    """What a caller asks of `list` or `listDeleted`; `reply_limit` is the most bytes that the answer may have, in which
    a record takes what `measure` says."""

    limit: int | None = None
    after: str | None = None
    fields: Sequence[str] = RECORD_FIELDS
    reply_limit: int | None = None
    measure: Callable[[bytes], int] = len

    @property
    def with_documents(self) -> bool:
        return "environment" in self.fields or "hash" in self.fields


class PageReader:
    """Reads one page; `encode` gives a row's record."""

    def __init__(
        self,
        database: Database,
        queries: Queries,
        request: ListRequest,
        encode: Callable[[Row], Awaitable[bytes]],
        limits: StoreLimits,
    ) -> None:
        self._database = database
        self._queries = queries
        self._request = request
        self._encode = encode
        self._batch = limits.batch_documents if request.with_documents else limits.batch_rows
        self._records: list[bytes] = []
        self._size = len(b"[]")

    async def read(self, listing: Listing) -> bytes:
        """The JSON array of the page.

        Raises PayloadTooLargeError (413), with the page size that fits, as soon as the array would be larger than the
        reply may be: at most one batch of rows more than that is held.
        """
        request = self._request
        first, after = (
            (listing.first, listing.after) if request.with_documents else (listing.first_light, listing.after_light)
        )
        for query in (first,) if request.after is None else after:
            left = None if request.limit is None else request.limit - len(self._records)
            if left == 0:
                break
            arguments = () if request.after is None else (request.after,)
            if not await self._read_at_once(query, left, arguments):
                await self._read_in_batches(query, left, arguments)
        return b"[%b]" % b",".join(self._records)

    async def _read_at_once(self, query: str, left: int | None, arguments: tuple[str, ...]) -> bool:
        """By one statement, without a transaction. False, with nothing read, where that is not surely all."""
        if left is not None and left > self._batch:
            return False
        rows = await self._database.fetch(query, self._batch + 1 if left is None else left, *arguments)
        with_large = self._request.with_documents and any(row["large"] for row in rows)
        if left is None and (with_large or len(rows) > self._batch):
            return False
        for row in rows:
            if with_large and row["large"]:
                found = await self._database.fetch_one(self._queries.look, row["id"])
                # One that was removed or restored in between belongs to another list now.
                if found is None or (found["deletedAt"] is None) != (row["deletedAt"] is None):
                    continue
                row = found
            await self._add(row)
        return True

    async def _read_in_batches(self, query: str, left: int | None, arguments: tuple[str, ...]) -> None:
        """All of one snapshot."""
        count = self._queries.no_limit if left is None else left
        documents = self._queries.documents if self._request.with_documents else None
        stream = self._database.stream(query, count, *arguments, batch=self._batch, documents=documents)
        async with stream as batches:
            async for rows in batches:
                for row in rows:
                    await self._add(row)

    async def _add(self, row: Row) -> None:
        request, record = self._request, await self._encode(row)
        if request.reply_limit is not None:
            taken = request.measure(record)
            self._size += taken + (1 if self._records else 0)
            if self._size > request.reply_limit:
                raise _too_large(len(self._records), row, taken, request)
        self._records.append(record)


def _too_large(fitting: int, row: Row, record_bytes: int, request: ListRequest) -> PayloadTooLargeError:
    data = {"limit": request.reply_limit, "pageSize": fitting}
    if fitting:
        return PayloadTooLargeError(
            f"The list is larger than the {request.reply_limit} bytes that one reply may have. From here a page of"
            f" {fitting} fits: pass limit: {fitting}, then the last uuid as after; or leave out fields.",
            data,
        )
    if "environment" in request.fields:
        advice = f"Ask without the field 'environment'. {LARGE_DOCUMENTS}"
    else:
        advice = "Ask for fewer fields."
    return PayloadTooLargeError(
        f"The record of '{row['id']}' alone has {record_bytes} bytes, more than the {request.reply_limit} that one"
        f" reply may have. {advice}",
        {"size": record_bytes, **data},
    )
