"""Ways to readers of streams, for tests of writers."""

from broker.streams.flow import Pace, Route

__all__ = ["make_route"]


def make_route(*, acknowledges: bool, mark: str = "r1") -> Route:
    """The way to node "a", which answers no pings and is not waited for."""

    async def ping(_: str) -> None: ...

    pace = Pace("a", ping, lambda _error, _until: None)
    pace.stop_asking()
    return Route("a.b", "RES.a", mark, pace, None, 0.0, acknowledges)
