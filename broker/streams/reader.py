"""The reading end of a stream: what a handler or a caller holds, and what a peer cannot overfill."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Self

from broker.errors import MoleculerError


class StreamOverflowError(MoleculerError):
    """More of a stream is waiting to be read than this node holds; its writer cannot be slowed down."""

    default_code = 429
    default_type = "STREAM_OVERFLOW"

    @property
    def name(self) -> str:
        return "MoleculerError"


class Readable:
    """What a handler or a caller reads: `async for chunk in stream`, bytes or values as the writer sent them."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        raise NotImplementedError

    async def aclose(self) -> None:
        """Read no further. Twice is quiet."""
        raise NotImplementedError

    async def read(self) -> bytes:
        """Everything that is left of a stream of bytes."""
        return b"".join([chunk async for chunk in self])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class StreamReader(Readable):
    """A stream from another node.

    Ends when the writer ends. Raises the writer's error, RequestRejectedError when its node is lost,
    RequestTimeoutError when nothing came for the idle timeout, StreamOverflowError when a writer that cannot be slowed
    down is too far ahead. `aclose` (also by leaving `async with`) stops a writer that can be told to; so does dropping
    the reader, as a `break` out of `async for chunk in await ctx.call(…)` does.
    """

    def __init__(
        self,
        *,
        limit_bytes: int,
        idle_timeout_s: float,
        describe_idle: Callable[[], Exception],
        is_loaded: Callable[[], bool] = lambda: False,
    ) -> None:
        self._limit = limit_bytes
        self._idle_timeout_s = idle_timeout_s
        self._describe_idle = describe_idle
        self._is_loaded = is_loaded
        self._chunks: deque[tuple[Any, int, bool]] = deque()
        self.waiting = 0
        """What waits to be read, in bytes."""
        self._marks = self._unanswered = 0
        self._end: Exception | StopAsyncIteration | None = None
        self._wake: asyncio.Future[None] | None = None
        self.reply = ""
        """Where the writer can be told how far we are; empty when it does not listen."""
        self.tell: Callable[[str, bool], None] | None = None
        """Tells the writer, at `reply`, whether to go on: called for each marked chunk that is read, and when the
        reader stops before the writer does; from any thread, as who drops a reader may be the garbage collector."""

    def feed(self, chunk: Any, size: int, *, marked: bool = False) -> None:
        """A chunk arrived. When a marked one is read the writer is told. Chunks after the end are dropped."""
        if self._end is not None:
            return
        if self.waiting + size > self._limit:
            self.fail(
                StreamOverflowError(
                    f"More than {self._limit} bytes of a stream wait to be read, so it was given up. Read faster, or "
                    "let the writer send less at a time.",
                    data={"limit": self._limit},
                )
            )
            return
        self.waiting += size
        self._marks += marked
        self._chunks.append((chunk, size, marked))
        self._notify()

    def end(self) -> None:
        """The writer is done."""
        self._finish(StopAsyncIteration())

    def fail(self, error: Exception) -> None:
        """The stream is broken. What came before can still be read."""
        self._finish(error)

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self._end is not None

    async def __anext__(self) -> Any:
        while not self._chunks:
            if self._end is not None:
                raise self._end
            await self._wait()
        chunk, size, marked = self._chunks.popleft()
        self.waiting -= size
        if marked:
            self._answer()
        return chunk

    async def aclose(self) -> None:
        aborted = self._end is None
        self._finish(StopAsyncIteration())
        self.drop()
        if aborted:
            self._tell(go_on=False)

    def __del__(self) -> None:
        if self._end is None:
            self._tell(go_on=False)

    def drop(self) -> None:
        """Forget what is not read yet."""
        self._chunks.clear()
        self.waiting = self._marks = 0

    def overflow(self, error: Exception) -> None:
        """Forget what is not read yet, and fail, also when the writer is done."""
        self.drop()
        self._end = None
        self.fail(error)

    def _answer(self) -> None:
        """Let the writer go on. While too much waits at this node, only for the last mark that is here: so the writer
        stays closer to its reader."""
        self._marks -= 1
        self._unanswered += 1
        answers = self._unanswered
        if self._is_loaded():
            answers = 0 if self._marks else 1
        self._unanswered -= answers
        for _ in range(answers):
            self._tell(go_on=True)

    async def _wait(self) -> None:
        self._wake = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._idle_timeout_s or None):
                await self._wake
        except TimeoutError:
            self.fail(self._describe_idle())
        finally:
            self._wake = None

    def _tell(self, *, go_on: bool) -> None:
        if self.tell is not None and self.reply:
            self.tell(self.reply, go_on)

    def _finish(self, end: Exception) -> None:
        if self._end is None:
            self._end = end
            self._notify()

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
