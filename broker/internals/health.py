"""How a node and its machine are, in the words of Moleculer JS (moleculer protocol §10 `$node.health`)."""

import os
import platform
import socket
import sys
import time
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
    return {
        "cpu": _cpu(),
        "mem": _memory(),
        "os": _system(),
        "process": _process(),
        "client": client,
        "net": {"ip": ip_list},
        "time": _time(datetime.now(UTC)),
    }


def _cpu() -> dict[str, Any]:
    load1, load5, load15 = os.getloadavg() if hasattr(os, "getloadavg") else (0.0, 0.0, 0.0)
    cores = os.cpu_count() or 1
    return {
        "load1": load1,
        "load5": load5,
        "load15": load15,
        "cores": cores,
        "utilization": min(int(load1 * 100 / cores), 100),
    }


def _memory() -> dict[str, Any]:
    free, total = _pages("SC_AVPHYS_PAGES"), _pages("SC_PHYS_PAGES")
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):  # what Node.js calls free
            free = int(line.split()[1]) * 1024
    percent = free * 100 / total if free is not None and total else None
    return {"free": free, "total": total, "percent": percent}


def _pages(name: str) -> int | None:
    try:
        return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _system() -> dict[str, Any]:
    machine = platform.machine()
    return {
        "uptime": next((float(line.split()[0]) for line in _lines("/proc/uptime")), time.monotonic()),
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

        entry = pwd.getpwuid(os.getuid())
    except (ImportError, KeyError):
        return {}
    return {
        "uid": entry.pw_uid,
        "gid": entry.pw_gid,
        "username": entry.pw_name,
        "homedir": entry.pw_dir,
        "shell": entry.pw_shell,
    }


def _process() -> dict[str, Any]:
    """The heap of JavaScript has no counterpart here. Command lines hold addresses, and those passwords."""
    resident = next((int(line.split()[1]) * os.sysconf("SC_PAGE_SIZE") for line in _lines("/proc/self/statm")), None)
    return {
        "pid": os.getpid(),
        "memory": {"rss": resident, "heapTotal": None, "heapUsed": None, "external": None, "arrayBuffers": None},
        "uptime": time.monotonic() - STARTED,
        "argv": [masked_text(argument) for argument in sys.orig_argv],
    }


def _time(now: datetime) -> dict[str, Any]:
    return {
        "now": int(now.timestamp() * 1000),
        "iso": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "utc": format_datetime(now, usegmt=True),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return []
