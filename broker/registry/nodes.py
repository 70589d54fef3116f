"""The nodes of the cluster, and how long their hosts take to answer."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from broker.protocol.packets import PROTOCOLS, Protocol

SPOKEN = "protocols"
"""The key in the `client` of INFO under which nodes like this list the protocol versions that they take."""


@dataclass(slots=True, eq=False)
class KnownNode:
    """One node of the cluster, available or not."""

    id: str
    local: bool = False
    available: bool = False
    ver: Protocol = "5"
    instance_id: str | None = None
    sequence: int = 0
    services: list[dict[str, Any]] = field(default_factory=list)
    client: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    ip_list: list[Any] = field(default_factory=list)
    hostname: str | None = None
    cpu: float | None = None
    cpu_sequence: int | None = None
    last_heartbeat: float = 0.0
    offline_since: float | None = None
    raw_info: dict[str, Any] | None = None
    """The last INFO, as it came."""
    offers: dict[Any, None] = field(default_factory=dict)
    """Its endpoints that are in a list now, in order of registration."""

    def introduce(self, instance_id: str, hostname: str, ip_list: list[str], client: dict[str, Any]) -> None:
        """Take in what this node says of itself."""
        self.instance_id, self.hostname, self.ip_list, self.client = instance_id, hostname, ip_list, client

    @property
    def bilingual(self) -> bool:
        """Whether it is a node like this, which takes packets of both versions."""
        spoken = self.client.get(SPOKEN)
        return isinstance(spoken, list) and all(ver in spoken for ver in PROTOCOLS)

    def note_cpu(self, percent: float | None) -> None:
        """Note how busy the node is, by its heartbeat."""
        if percent is not None:
            self.cpu, self.cpu_sequence = percent, (self.cpu_sequence or 0) + 1 if self.local else 1

    def describe(self, started: float) -> dict[str, Any]:
        """The node as tools show it (§7.4, §10). Times are whole seconds since `started`."""
        offline_since = self.offline_since
        return {
            "id": self.id,
            "instanceID": self.instance_id,
            "available": self.available,
            "local": self.local,
            "lastHeartbeatTime": round(max(0.0, self.last_heartbeat - started)),
            "config": {},
            "client": self.client,
            "metadata": self.metadata,
            "ipList": self.ip_list,
            **({"port": None} if self.local else {}),  # another node announces its own
            "hostname": self.hostname,
            "udpAddress": None,
            "cpu": self.cpu,
            "cpuSeq": self.cpu_sequence,
            "seq": self.sequence,
            "offlineSince": None if offline_since is None else round(max(0.0, offline_since - started)),
            "services": self.services,
            "rawInfo": self.raw_info,
        }


class Latencies:
    """The average of the last round-trip times to each host. One for all strategies of a node.

    `on_use` is called when the first strategy needs it: from then on hosts have to be pinged.
    """

    def __init__(self) -> None:
        self.used = False
        self.on_use: Callable[[], None] = lambda: None
        self.ping_interval_s = 0.0
        self._collect = 0
        self._times: dict[str, deque[float]] = {}
        self._averages: dict[str | None, float] = {}

    def use(self, *, collect_count: int, ping_interval_s: float) -> None:
        """Start to collect; the options of the first strategy count."""
        if not self.used:
            self.used, self._collect, self.ping_interval_s = True, collect_count, ping_interval_s
            self.on_use()

    def record(self, host: str, elapsed_s: float) -> None:
        """Note that a ping was answered."""
        if self.used:
            times = self._times.setdefault(host, deque(maxlen=self._collect))
            times.append(elapsed_s)
            self._averages[host] = sum(times) / len(times)

    def average(self, host: str | None) -> float | None:
        return self._averages.get(host)

    def forget(self, host: str) -> None:
        """The last node of a host is gone."""
        self._times.pop(host, None)
        self._averages.pop(host, None)
