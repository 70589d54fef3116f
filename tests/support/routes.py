"""Streams to readers, for tests of flow control."""

from broker.streams.flow import Flow, Pace

__all__ = ["make_flow"]


def make_flow(*, acknowledges: bool) -> Flow:
    """A stream to node "a", which answers no pings and has no liveness probe."""

    async def ping(_: str) -> None: ...

    pace = Pace("a", ping, lambda _error, _until: None)
    pace.stop_asking()
    return Flow("a.b", "RES.a", "r1", pace, None, 0.0, acknowledges)
