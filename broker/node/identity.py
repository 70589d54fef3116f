"""Who this process is to the other nodes, and how busy its machine is (moleculer protocol §3.1, §4.4)."""

import platform
import socket
import uuid
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from broker.conversation.presence_packets import Identity
from broker.errors import BrokerOptionsError, MoleculerError
from broker.protocol.codecs.json import Codec
from broker.protocol.packets import PROTOCOLS, Protocol
from broker.registry.nodes import SPOKEN
from broker.streams.flow import FLOW_CONTROL

_STAT = Path("/proc/stat")


def make_identity(node_id: str, metadata: dict[str, Any], codec: Codec, protocol: Protocol | None = None) -> Identity:
    """A new instance of a node on this host. Raises BrokerOptionsError for metadata that cannot be sent, as the whole
    node would stay invisible then."""
    try:
        codec.encode_value(metadata)
    except MoleculerError as error:
        raise BrokerOptionsError(f"The option metadata cannot be sent to other nodes: {error}") from error
    try:
        own_version = version("environments-store")
    except PackageNotFoundError:  # run from a folder that was never installed
        own_version = "0"
    client = {
        "type": "python",
        "version": own_version,
        "langVersion": platform.python_version(),
        FLOW_CONTROL: True,
        SPOKEN: [protocol] if protocol else list(PROTOCOLS),
    }
    return Identity(node_id, str(uuid.uuid4()), socket.gethostname(), ip_addresses(), client, metadata)


def ip_addresses() -> list[str]:
    """The address of the default route, by which other machines may know this one; the loopback one without it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1 (RFC 5737): connecting a datagram socket sends nothing
            return [probe.getsockname()[0]]
        except OSError:
            return ["127.0.0.1"]


class CPUMeter:
    """The share of all cores' time that was used since the last look, as an integer percent; None where the system does
    not say (elsewhere than on Linux), and when no time has passed."""

    def __init__(self) -> None:
        self._total, self._idle = _ticks()

    def percent(self) -> int | None:
        (total, idle), before = _ticks(), (self._total, self._idle)
        self._total, self._idle = total, idle
        passed = total - before[0]
        return round(100 * (passed - idle + before[1]) / passed) if passed > 0 and before[0] else None


def _ticks() -> tuple[int, int]:
    """The time of all cores since boot, and how much of it they were idle or waited for disks."""
    try:
        user, nice, system, idle, wait, *more = map(int, _STAT.read_text().split("\n", 1)[0].split()[1:9])
    except (OSError, ValueError):
        return 0, 0
    return user + nice + system + idle + wait + sum(more), idle + wait
