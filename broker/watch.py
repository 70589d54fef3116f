"""Whether the nodes that somebody here waits for are still there (moleculer protocol §4.3).

JS nodes find one that was killed by its missing heartbeats, after 30 s and more. NATS knows at once, and says so to
whoever sends. So a node that keeps a call or a stream waiting is asked now and then. That one is not heard may only
mean that it connects to NATS anew, and will answer yet; when none is heard for longer than that takes, it is gone.

A request that is not heard tells the same. Nothing more is sent to such a node, but it is asked until it is heard: JS
nodes do not say that they are back, other than by their next heartbeat.

A process that takes the place of another under its id says DISCOVER before all else (§4.1): what was sent to that id
before will not be answered.
"""

import math
from collections.abc import Collection

from broker.defaults import NODE_PROBE_AFTER_S, NODE_SOUGHT_S, NODE_UNHEARD_S


class _Watched:
    __slots__ = ("probed", "sought_until", "unheard", "unheard_since")

    def __init__(self) -> None:
        self.probed = -math.inf
        self.unheard = -math.inf
        """When the last question went out that was not heard."""
        self.unheard_since: float | None = None
        self.sought_until = -math.inf


class Watch:
    """No I/O and no clock: `now` is a monotonic time in seconds."""

    def __init__(self) -> None:
        self._watched: dict[str, _Watched] = {}
        self._begun: dict[str, float] = {}

    def due(self, node_ids: Collection[str], now: float) -> list[str]:
        """Of the nodes that are waited for, or missed, those to ask now. The others are watched no more."""
        sought = [node_id for node_id, watched in self._watched.items() if now < watched.sought_until]
        wanted = dict.fromkeys([*node_ids, *sought])
        self._watched = {node_id: self._watched.get(node_id, _Watched()) for node_id in wanted}
        due = []
        for node_id, watched in self._watched.items():
            if watched.unheard < watched.probed:  # the server had nothing to say against the last one
                watched.unheard_since = None
            if watched.unheard_since is not None or now - watched.probed >= NODE_PROBE_AFTER_S:
                watched.probed = now
                due.append(node_id)
        return due

    def unheard(self, node_id: str, asked: float) -> bool:
        """Nobody listens for what this node was asked then. Whether it counts as gone: when this was long after the
        first time. When the word came does not count, as this process may have been busy."""
        watched = self._watched.get(node_id)
        if watched is None:
            return False
        watched.unheard = max(watched.unheard, asked)
        if watched.unheard_since is None:
            watched.unheard_since = asked
        if asked - watched.unheard_since < NODE_UNHEARD_S:
            return False
        self._begun.pop(node_id, None)
        watched.sought_until = max(watched.sought_until, watched.unheard_since + NODE_SOUGHT_S)
        return True

    def suspects(self, node_id: str) -> bool:
        """Whether the last question to a node was not heard."""
        watched = self._watched.get(node_id)
        return watched is not None and watched.unheard_since is not None

    def missed(self, node_id: str, since: float) -> None:
        """Nobody listens for what was sent to a node then: it is asked from now on, whether or not it is waited for."""
        watched = self._watched.setdefault(node_id, _Watched())
        watched.probed = max(watched.probed, since)
        watched.sought_until = since + NODE_SOUGHT_S
        self.unheard(node_id, watched.probed)

    def found(self, node_id: str) -> None:
        """The node has said that it is there."""
        watched = self._watched.get(node_id)
        if watched is not None:
            watched.sought_until = -math.inf

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
