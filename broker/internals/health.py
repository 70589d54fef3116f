"""How a node and its machine are, in the words of Moleculer JS (moleculer protocol §10 `$node.health`)."""

import os
import platform
import re
import socket
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

from broker.masking import masked_text

STARTED = time.monotonic()
"""When this process started, on the event loop's clock, from which times of `$node` count. The broker is loaded within
the first moments."""

_ARCHITECTURES = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "i686": "ia32"}


def health(client: dict[str, Any], ip_list: list[str]) -> dict[str, Any]:
    """The answer of `$node.health`. What the system does not show is None."""
    now = datetime.now(UTC)
    return {
        "cpu": _cpu(),
        "mem": _memory(),
        "os": _system(),
        "process": _process(),
        "client": client,
        "net": {"ip": ip_list},
        "time": {
            "now": int(now.timestamp() * 1000),
            "iso": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "utc": format_datetime(now, usegmt=True),
        },
    }


def _cpu() -> dict[str, Any]:
    load1, load5, load15 = os.getloadavg() if hasattr(os, "getloadavg") else (0.0, 0.0, 0.0)
    cores = os.cpu_count() or 1
    utilization = min(int(load1 * 100 / cores), 100)
    return {"load1": load1, "load5": load5, "load15": load15, "cores": cores, "utilization": utilization}


def _memory() -> dict[str, Any]:
    """Free is what processes can get, as Node.js counts it."""
    free, total = (_bytes("/proc/meminfo", name) for name in ("MemAvailable", "MemTotal"))
    return {"free": free, "total": total, "percent": free * 100 / total if free is not None and total else None}


def _system() -> dict[str, Any]:
    machine = platform.machine()
    return {
        "uptime": _figure("/proc/uptime", r"([\d.]+)") or time.monotonic(),
        "type": platform.system(),
        "release": platform.release(),
        "hostname": socket.gethostname(),
        "arch": _ARCHITECTURES.get(machine.lower(), machine),
        "platform": sys.platform,
        "user": _user(),
    }


def _user() -> dict[str, Any]:
    """Empty for a user without an entry, as in a container with an id of its own."""
    try:
        import pwd  # not on every system

        name, _, uid, gid, _, home, shell = pwd.getpwuid(os.getuid())
    except (ImportError, KeyError):
        return {}
    return {"uid": uid, "gid": gid, "username": name, "homedir": home, "shell": shell}


def _process() -> dict[str, Any]:
    """The heap of JavaScript has no counterpart here. Command lines hold addresses, and those passwords."""
    resident = _bytes("/proc/self/status", "VmRSS")
    return {
        "pid": os.getpid(),
        "memory": {"rss": resident, **dict.fromkeys(("heapTotal", "heapUsed", "external", "arrayBuffers"))},
        "uptime": time.monotonic() - STARTED,
        "argv": [masked_text(argument) for argument in sys.orig_argv],
    }


def _figure(path: str, pattern: str) -> float | None:
    """A number in a file that Linux has, and no other system."""
    with suppress(OSError):
        found = re.search(pattern, Path(path).read_text(encoding="utf-8", errors="replace"))
        return float(found[1]) if found else None
    return None


def _bytes(path: str, name: str) -> int | None:
    kilobytes = _figure(path, rf"{name}:\s+(\d+) kB")
    return None if kilobytes is None else int(kilobytes) * 1024
