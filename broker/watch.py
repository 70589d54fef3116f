"""Whether the nodes that somebody here waits for are still there (moleculer protocol §4.3).

JS nodes find one that was killed by its missing heartbeats, after 30 s and more. NATS knows at once, and says so to
whoever sends. So a node that keeps a call or a stream waiting is sent a ping now and then. That one is not heard may
only mean that it connects to NATS anew, and will answer yet; when none is heard for longer than that takes, it is gone.

A process that takes the place of another under its id says DISCOVER before all else (§4.1): what was sent to that id
before will not be answered.
"""

import math
from collections.abc import Collection

from broker.defaults import NODE_PROBE_AFTER_S, NODE_UNHEARD_S


class _Watched:
    __slots__ = ("probed", "unheard", "unheard_since")

    def __init__(self) -> None:
        self.probed = -math.inf
        self.unheard = -math.inf
        self.unheard_since: float | None = None


class Watch:
    """No I/O and no clock: `now` is a monotonic time in seconds."""

    def __init__(self) -> None:
        self._watched: dict[str, _Watched] = {}
        self._begun: dict[str, float] = {}

    def due(self, node_ids: Collection[str], now: float) -> list[str]:
        """Of the nodes that are waited for, those to send a ping now. The others are watched no more."""
        self._watched = {node_id: self._watched.get(node_id, _Watched()) for node_id in node_ids}
        due = []
        for node_id, watched in self._watched.items():
            if watched.unheard < watched.probed:  # the server had nothing to say against the last one
                watched.unheard_since = None
            if watched.unheard_since is not None or now - watched.probed >= NODE_PROBE_AFTER_S:
                watched.probed = now
                due.append(node_id)
        return due

    def unheard(self, node_id: str, now: float) -> float | None:
        """Nobody listens for a ping to this node. When it counts as gone: the time of the ping, since what was sent
        later may have been heard by another process."""
        watched = self._watched.get(node_id)
        if watched is None:
            return None
        watched.unheard = now
        if watched.unheard_since is None:
            watched.unheard_since = watched.probed
        return watched.probed if now - watched.unheard_since >= NODE_UNHEARD_S else None

    def began(self, node_id: str, now: float) -> None:
        """A process with this id, which is known already, asked who is there."""
        self._begun[node_id] = now

    def begun(self, node_id: str) -> float:
        """When the present process of a node asked who is there."""
        return self._begun.get(node_id, -math.inf)

    def forget(self, node_id: str) -> None:
        """The node is gone."""
        self._watched.pop(node_id, None)
        self._begun.pop(node_id, None)
