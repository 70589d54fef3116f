"""A page of records, read in batches and no further than the reply may hold."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import NamedTuple

from broker.errors import PayloadTooLargeError
from services.environments_store.database.base import Database, Row
from services.environments_store.defaults import StoreLimits
from services.environments_store.document import LARGE_DOCUMENTS
from services.environments_store.model import RECORD_FIELDS
from services.environments_store.queries import Listing, Queries

__all__ = ["ListRequest", "read_list"]


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


async def read_list(
    database: Database,
    listing: Listing,
    request: ListRequest,
    queries: Queries,
    encode: Callable[[Row], Awaitable[bytes]],
    limits: StoreLimits,
) -> bytes:
    """The JSON array of the page; `encode` gives a row's record.

    Raises PayloadTooLargeError (413), with the page size that fits, as soon as the array would be larger than the
    reply may be: at most one batch of rows more than that is held.
    """
    records: list[bytes] = []
    size = len(b"[]")
    async with aclosing(_rows(database, listing, request, queries, limits)) as found:
        async for row in found:
            record = await encode(row)
            if request.reply_limit is not None:
                taken = request.measure(record)
                size += taken + (1 if records else 0)
                if size > request.reply_limit:
                    raise _too_large(len(records), row, taken, request)
            records.append(record)
    return b"[%s]" % b",".join(records)


async def _rows(
    database: Database, listing: Listing, request: ListRequest, queries: Queries, limits: StoreLimits
) -> AsyncGenerator[Row, None]:
    first, after = (
        (listing.first, listing.after) if request.with_documents else (listing.first_light, listing.after_light)
    )
    batch = limits.batch_documents if request.with_documents else limits.batch_rows
    large = queries.look if request.with_documents else None
    if request.after is None:
        parts: list[tuple[str, tuple[str, ...]]] = [(first, ())]
    else:
        parts = [(query, (request.after,)) for query in after]
    left = request.limit
    for query, arguments in parts:
        if left is not None and left <= batch:
            rows = await database.fetch(query, left, *arguments)
            for row in rows:
                found = await database.fetch_one(large, row["id"]) if large and row["large"] else row
                # One that was removed or restored in between belongs to another list now.
                if found and (found["deletedAt"] is None) == (row["deletedAt"] is None):
                    yield found
            left -= len(rows)
        else:
            count = queries.no_limit if left is None else left
            async with database.stream(
                query, count, *arguments, batch=batch, documents=queries.documents if large else None
            ) as batches:
                async for some in batches:
                    for row in some:
                        yield row
                    left = left and left - len(some)
        if left == 0:
            return


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
